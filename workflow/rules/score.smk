# A sample's table of variants -> scores.tsv, its columns untouched and the scores behind; a sample's
# sequences -> saturation.h5, every substitution, and pictures of it.
strategy = settings.score.computing()
reading = settings.score.part(VariantSettings)
# What became of each record: of the saturation, if there is one.
VARIANTS_FOLDER = f"{OUT}/{{sample}}/score"
VARIANTS_STATUS = f"{VARIANTS_FOLDER}/status.tsv"
if settings.score.saturation:
    VARIANTS_FOLDER = f"{OUT}/{{sample}}/variants"
    VARIANTS_STATUS = temp(f"{VARIANTS_FOLDER}/status.tsv")

SCORE_COMMAND = (
    "{params.esm} score --unchanged={input.inputs:q} {params.models} {params.flags}"
    " {params.validated}"
    " --device {resources.device} --token-budget {resources.token_budget} --threads {threads}"
    " --allow-empty --on-failure keep --sha256={output.digests:q}"
)


def model_flags(wildcards, input):
    """A parameter: the models, and the labels of an ensemble's, as command-line flags."""
    labels = [f"--label={label}" for label in settings.score.models]
    return shlex.join([*labels, *(f"--model={file}" for file in input.models)])


if settings.score.saturation:

    rule score:
        input:
            fasta=f"{OUT}/{{sample}}/shards/{{shard}}.fasta",
            listed=f"{OUT}/{{sample}}/shards/digests.sha256",
            inputs=f"{OUT}/{{sample}}/inputs.sha256",
            models=models_of("score"),
            checked=f"{OUT}/logs/checked/score",
        output:
            h5=temp(f"{OUT}/{{sample}}/score/{{shard}}.h5"),
            records=temp(f"{OUT}/{{sample}}/score/{{shard}}.records.tsv"),
            digests=temp(f"{OUT}/{{sample}}/score/{{shard}}.sha256"),
        log:
            f"{OUT}/logs/score/{{sample}}/{{shard}}.log",
        benchmark:
            f"{OUT}/benchmarks/score/{{sample}}/{{shard}}.tsv"
        retries: 2
        conda:
            "../../envs/esm.yaml"
        threads: job_threads(settings.score)
        resources:
            mem_mb=lambda wildcards, attempt: 8000 * attempt,
            runtime=lambda wildcards, attempt: 1440 * attempt,
            device=settings.score.device,
            gpu=int(settings.score.device.startswith("cuda")),
            token_budget=lambda wildcards, attempt: max(1, settings.score.token_budget // attempt),
        params:
            esm=esm,
            models=model_flags,
            flags=flags(strategy),
            validated=validated_flags,
        message:
            "score: every substitution of shard {wildcards.shard} of sample {wildcards.sample}"
        shell:
            SCORE_COMMAND + " --saturation -- {input.fasta:q} {output.h5:q} 2>&1 | tee -- {log:q}"

    rule gather_score:
        input:
            records=f"{OUT}/{{sample}}/shards/records.tsv",
            listed=f"{OUT}/{{sample}}/shards/digests.sha256",
            h5=shards_of(f"{OUT}/{{sample}}/score/{{shard}}.h5"),
            statuses=shards_of(f"{OUT}/{{sample}}/score/{{shard}}.records.tsv"),
            digests=shards_of(f"{OUT}/{{sample}}/score/{{shard}}.sha256"),
        output:
            h5=f"{OUT}/{{sample}}/saturation.h5",
            status=f"{OUT}/{{sample}}/score/status.tsv",
            digests=f"{OUT}/{{sample}}/score/digests.sha256",
        log:
            f"{OUT}/logs/gather_score/{{sample}}.log",
        benchmark:
            f"{OUT}/benchmarks/gather_score/{{sample}}.tsv"
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=4000,
            runtime=240,
        params:
            esm=esm,
            shards=lambda wildcards: SHARDS[wildcards.sample],
            folder=lambda wildcards, output: Path(output.status).parent,
        message:
            "gather_score: every substitution of sample {wildcards.sample} into one file"
        shell:
            "{params.esm} aggregate score --records={input.records:q}"
            " --shards-dir={params.folder:q} --shards {params.shards} --out={output.h5:q}"
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
            flags=flags(reading),
            strategy=strategy.strategy,
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


if TABLES:

    rule score_variants:
        input:
            variants=f"{OUT}/{{sample}}/split/{{shard}}.tsv",
            fasta=f"{OUT}/{{sample}}/split/{{shard}}.fasta",
            listed=f"{OUT}/{{sample}}/split/digests.sha256",
            inputs=f"{OUT}/{{sample}}/inputs.sha256",
            table=f"{OUT}/{{sample}}/variants.sha256",
            models=models_of("score"),
            checked=f"{OUT}/logs/checked/score",
        output:
            scores=temp(f"{OUT}/{{sample}}/variants/{{shard}}.tsv"),
            records=temp(f"{OUT}/{{sample}}/variants/{{shard}}.records.tsv"),
            provenance=temp(f"{OUT}/{{sample}}/variants/{{shard}}.json"),
            digests=temp(f"{OUT}/{{sample}}/variants/{{shard}}.sha256"),
        log:
            f"{OUT}/logs/score_variants/{{sample}}/{{shard}}.log",
        benchmark:
            f"{OUT}/benchmarks/score_variants/{{sample}}/{{shard}}.tsv"
        retries: 2
        conda:
            "../../envs/esm.yaml"
        threads: job_threads(settings.score)
        resources:
            mem_mb=lambda wildcards, attempt: 8000 * attempt,
            runtime=lambda wildcards, attempt: 1440 * attempt,
            device=settings.score.device,
            gpu=int(settings.score.device.startswith("cuda")),
            token_budget=lambda wildcards, attempt: max(1, settings.score.token_budget // attempt),
        params:
            esm=esm,
            models=model_flags,
            flags=flags(strategy),
            validated=validated_flags,
        message:
            "score_variants: shard {wildcards.shard} of the variants of sample {wildcards.sample}"
        shell:
            SCORE_COMMAND + " --unchanged={input.table:q} --provenance={output.provenance:q}"
            " --variants={input.variants:q} -- {input.fasta:q} {output.scores:q} 2>&1 | tee -- {log:q}"

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
