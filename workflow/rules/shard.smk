# The FASTA files of a sample -> its records, and its unique sequences in bundles of equal cost, from
# which the jobs of all tasks take ranges. One rule for each sample, because samples differ in their
# number of bundles. The bundles are kept: made again for one task that changes, they would make all
# other tasks run again too.
for sample, files in SAMPLES.items():

    rule:
        name:
            f"shard_{sample}"
        input:
            files,
        output:
            inputs=f"{OUT}/{sample}/inputs.sha256",
            digests=f"{OUT}/{sample}/bundles/digests.sha256",
            fasta=[f"{OUT}/{sample}/bundles/{name}.fasta" for name in BUNDLES[sample]],
            index=[f"{OUT}/{sample}/bundles/{name}.index.npz" for name in BUNDLES[sample]],
            records=[f"{OUT}/{sample}/bundles/{name}.records.tsv" for name in BUNDLES[sample]],
        log:
            f"{OUT}/logs/shard/{sample}.log",
        benchmark:
            f"{OUT}/benchmarks/shard/{sample}.tsv"
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=by_size("mem_mb", 1000, 2, remedy=SMALLER_SAMPLE),
            runtime=by_size("runtime", 30, 0.05, remedy=SMALLER_SAMPLE),
        params:
            esm=esm,
            bundles=len(BUNDLES[sample]),
            files=files,  # in order, which Snakemake does not compare
            least=settings.shard.least,
            cleaning=cleaning_flags,
            folder=lambda wildcards, output: Path(output.digests).parent,
        message:
            f"shard: {number_of(len(files), 'file')} of sample {sample} into"
            f" {number_of(len(BUNDLES[sample]), 'bundle')}"
        shell:
            "{params.esm} shard --bundles {params.bundles} --least {params.least} {params.cleaning}"
            " --out={params.folder:q} --inputs={output.inputs:q} -- {input:q}"
            " 2>&1 | tee -- {log:q}"
