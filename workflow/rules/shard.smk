# FASTA files of a sample -> records.tsv, and its unique sequences in shards of equal cost.
# One rule for each sample: samples differ in their number of shards. The shards stay: made
# again for one task, they would have all other tasks done again too.
for sample, files in SAMPLES.items():

    rule:
        name:
            f"shard_{sample}"
        input:
            files,
        output:
            records=f"{OUT}/{sample}/shards/records.tsv",
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
            cleaning=flags(settings.shard.part(CleaningSettings)),
            folder=lambda wildcards, output: Path(output.records).parent,
        message:
            f"shard: {len(files)} file(s) of sample {sample} into {SHARDS[sample]} shard(s)"
        shell:
            "{params.esm} shard --shards {params.shards} {params.cleaning} --out {params.folder:q}"
            " {input:q} 2>&1 | tee {log:q}"
