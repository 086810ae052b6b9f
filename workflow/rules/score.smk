# The variant table of a sample -> shards of it; their scores -> scores.tsv. Heat maps of saturation.h5.
from esm_pipeline.sections import VariantSettings

if settings.score.plots:

    rule heatmaps:
        input:
            h5=f"{OUT}/{{sample}}/saturation.h5",
            listed=f"{OUT}/{{sample}}/score/digests.sha256",
        output:
            folder=directory(f"{OUT}/{{sample}}/heatmaps"),
            digests=f"{OUT}/{{sample}}/heatmaps.sha256",
        log:
            f"{OUT}/logs/heatmaps/{{sample}}.log",
        benchmark:
            f"{OUT}/benchmarks/heatmaps/{{sample}}.tsv"
        conda:
            "../../envs/esm.yaml"
        resources:
            runtime=240,
        params:
            esm=esm,
        message:
            "heatmaps: a picture of each protein of sample {wildcards.sample}"
        shell:
            "{params.esm} heatmaps --listed={input.listed:q} --sha256={output.digests:q}"
            " -- {input.h5:q} {output.folder:q} 2>&1 | tee -- {log:q}"


# One rule for each table: they differ in their number of shards.
for sample, table in TABLES.items():

    rule:
        name:
            f"split_{sample}"
        input:
            fasta=SAMPLES[sample],
            variants=table,
            read=f"{OUT}/{sample}/inputs.sha256",
        output:
            inputs=f"{OUT}/{sample}/variants.sha256",
            unusable=temp(f"{OUT}/{sample}/split/unusable.tsv"),
            status=temp(f"{OUT}/{sample}/split/status.tsv"),
            digests=temp(f"{OUT}/{sample}/split/digests.sha256"),
            shards=temp(
                [
                    f"{OUT}/{sample}/split/{name}.{end}"
                    for name in shard_names(TABLE_SHARDS[sample])
                    for end in ("tsv", "fasta")
                ]
            ),
        log:
            f"{OUT}/logs/split/{sample}.log",
        benchmark:
            f"{OUT}/benchmarks/split/{sample}.tsv"
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=4000,
            runtime=240,
        params:
            esm=esm,
            shards=TABLE_SHARDS[sample],
            files=SAMPLES[sample],  # in their order, which Snakemake does not compare
            flags=flags(settings.score.part(VariantSettings)),
            strategy=settings.score.strategy,
            cleaning=cleaning_flags,
            folder=lambda wildcards, output: Path(output.status).parent,
        message:
            f"split: the variants of sample {sample} into {TABLE_SHARDS[sample]} shard(s)"
        shell:
            "{params.esm} split --variants={input.variants:q} --shards {params.shards}"
            " --strategy={params.strategy} {params.flags} {params.cleaning}"
            " --out={params.folder:q} --inputs={output.inputs:q} --unchanged={input.read:q}"
            " -- {input.fasta:q}"
            " 2>&1 | tee -- {log:q}"


# The outcome of each record in `score`: that of the saturation, if there is one.
VARIANTS_FOLDER = f"{OUT}/{{sample}}/score"
VARIANTS_STATUS = f"{VARIANTS_FOLDER}/status.tsv"
if settings.score.saturation:
    VARIANTS_FOLDER = f"{OUT}/{{sample}}/variants"
    VARIANTS_STATUS = temp(f"{VARIANTS_FOLDER}/status.tsv")

if TABLES:

    rule join:
        input:
            variants=lambda wildcards: TABLES[wildcards.sample],
            records=f"{OUT}/{{sample}}/shards/records.tsv",
            listed=[f"{OUT}/{{sample}}/{name}/digests.sha256" for name in ("shards", "split")],
            unusable=f"{OUT}/{{sample}}/split/unusable.tsv",
            before=f"{OUT}/{{sample}}/split/status.tsv",
            scores=table_shards_of(f"{OUT}/{{sample}}/variants/{{shard}}.tsv"),
            statuses=table_shards_of(f"{OUT}/{{sample}}/variants/{{shard}}.records.tsv"),
            provenance=table_shards_of(f"{OUT}/{{sample}}/variants/{{shard}}.json"),
            digests=table_shards_of(f"{OUT}/{{sample}}/variants/{{shard}}.sha256"),
        output:
            scores=f"{OUT}/{{sample}}/scores.tsv",
            provenance=f"{OUT}/{{sample}}/scores.json",
            status=VARIANTS_STATUS,
            digests=f"{VARIANTS_FOLDER}/digests.sha256",
        log:
            f"{OUT}/logs/join/{{sample}}.log",
        benchmark:
            f"{OUT}/benchmarks/join/{{sample}}.tsv"
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=4000,
            runtime=240,
        params:
            esm=esm,
            shards=lambda wildcards: TABLE_SHARDS[wildcards.sample],
            split=lambda wildcards, input: Path(input.unusable).parent,
            folder=lambda wildcards, input: Path(input.scores[0]).parent,
        message:
            "join: the scores of sample {wildcards.sample} behind its variants"
        shell:
            "{params.esm} join --variants={input.variants:q} --records={input.records:q}"
            " --split={params.split:q} --scores={params.folder:q} --shards {params.shards}"
            " --out={output.scores:q} --provenance={output.provenance:q}"
            " --status={output.status:q} 2>&1 | tee -- {log:q}"
