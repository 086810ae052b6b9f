# The variant table of a sample -> its shards; their scores -> scores.tsv, the same table with the
# scores appended. saturation.h5 -> heat maps.
from esm_pipeline.settings import VariantSettings

# One rule for each sample, because samples differ in their number of shards.
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
            files=SAMPLES[sample],  # in order, which Snakemake does not compare
            flags=flags(settings.score.part(VariantSettings)),
            strategy=settings.score.strategy,
            cleaning=cleaning_flags,
            folder=lambda wildcards, output: Path(output.status).parent,
        message:
            f"split: the variant table of sample {sample} into {TABLE_SHARDS[sample]} shard(s)"
        shell:
            "{params.esm} split --variants={input.variants:q} --shards {params.shards}"
            " --strategy={params.strategy} {params.flags} {params.cleaning}"
            " --out={params.folder:q} --inputs={output.inputs:q} --unchanged={input.read:q}"
            " -- {input.fasta:q}"
            " 2>&1 | tee -- {log:q}"


if TABLES:
    computed = SHARD_RULES["score_variants"].output
    # `score` has one table of outcomes: that of the saturation, if there is one.
    if settings.score.saturation:
        status_folder = f"{OUT}/{{sample}}/variants"
        status = temp(f"{status_folder}/status.tsv")
    else:
        status_folder = f"{OUT}/{{sample}}/score"
        status = f"{status_folder}/status.tsv"

    rule join:
        input:
            variants=lambda wildcards: TABLES[wildcards.sample],
            records=f"{OUT}/{{sample}}/shards/records.tsv",
            listed=[f"{OUT}/{{sample}}/{name}/digests.sha256" for name in ("shards", "split")],
            unusable=f"{OUT}/{{sample}}/split/unusable.tsv",
            before=f"{OUT}/{{sample}}/split/status.tsv",
            scores=shards_of(computed["scores"], TABLE_SHARDS),
            statuses=shards_of(computed["records"], TABLE_SHARDS),
            provenance=shards_of(computed["provenance"], TABLE_SHARDS),
            digests=shards_of(computed["digests"], TABLE_SHARDS),
        output:
            scores=f"{OUT}/{{sample}}/scores.tsv",
            provenance=f"{OUT}/{{sample}}/scores.json",
            status=status,
            digests=f"{status_folder}/digests.sha256",
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
            "join: the scores appended to the variant table of sample {wildcards.sample}"
        shell:
            "{params.esm} join --variants={input.variants:q} --records={input.records:q}"
            " --split={params.split:q} --scores={params.folder:q} --shards {params.shards}"
            " --out={output.scores:q} --provenance={output.provenance:q}"
            " --status={output.status:q} 2>&1 | tee -- {log:q}"


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
            "heatmaps: a picture of every protein of sample {wildcards.sample}"
        shell:
            "{params.esm} heatmaps --listed={input.listed:q} --sha256={output.digests:q}"
            " -- {input.h5:q} {output.folder:q} 2>&1 | tee -- {log:q}"
