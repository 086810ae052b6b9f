# The FASTA files of a sample -> records.tsv, and its unique sequences in shards of equal cost. One
# rule for each sample, because samples differ in their number of shards. The shards are kept: made
# again for one task that changes, they would make all other tasks run again too.
for sample, files in SAMPLES.items():

    rule:
        name:
            f"shard_{sample}"
        input:
            files,
        output:
            inputs=f"{OUT}/{sample}/inputs.sha256",
            records=f"{OUT}/{sample}/shards/records.tsv",
            digests=f"{OUT}/{sample}/shards/digests.sha256",
            shards=[f"{OUT}/{sample}/shards/{name}.fasta" for name in shard_names(SHARDS[sample])],
        log:
            f"{OUT}/logs/shard/{sample}.log",
        benchmark:
            f"{OUT}/benchmarks/shard/{sample}.tsv"
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=4000,
            runtime=240,
        params:
            esm=esm,
            shards=SHARDS[sample],
            files=files,  # in order, which Snakemake does not compare
            cleaning=cleaning_flags,
            folder=lambda wildcards, output: Path(output.records).parent,
        message:
            f"shard: {len(files)} file(s) of sample {sample} into {SHARDS[sample]} shard(s)"
        shell:
            "{params.esm} shard --shards {params.shards} {params.cleaning} --out={params.folder:q}"
            " --inputs={output.inputs:q} -- {input:q} 2>&1 | tee -- {log:q}"
