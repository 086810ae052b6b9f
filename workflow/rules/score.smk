# The variant table of a sample -> its usable rows, in an order from which jobs take ranges; their
# scores -> scores.tsv, the same table with the scores appended. saturation.h5 -> heat maps.
from esm_pipeline.settings import VariantSettings

if TABLES:

    rule split:
        input:
            fasta=lambda wildcards: SAMPLES[wildcards.sample],
            variants=lambda wildcards: TABLES[wildcards.sample],
            read=f"{OUT}/{{sample}}/inputs.sha256",
        output:
            inputs=f"{OUT}/{{sample}}/variants.sha256",
            variants=temp(f"{OUT}/{{sample}}/split/variants.tsv"),
            index=temp(f"{OUT}/{{sample}}/split/variants.index.npz"),
            fasta=temp(f"{OUT}/{{sample}}/split/wild_types.fasta"),
            unusable=temp(f"{OUT}/{{sample}}/split/unusable.tsv"),
            status=temp(f"{OUT}/{{sample}}/split/status.tsv"),
            digests=temp(f"{OUT}/{{sample}}/split/digests.sha256"),
        log:
            f"{OUT}/logs/split/{{sample}}.log",
        benchmark:
            f"{OUT}/benchmarks/split/{{sample}}.tsv"
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=by_size("mem_mb", 1000, 6, remedy=SMALLER_SAMPLE),
            runtime=by_size("runtime", 30, 0.1, remedy=SMALLER_SAMPLE),
        params:
            esm=esm,
            least=settings.shard.least,
            files=lambda wildcards: SAMPLES[wildcards.sample],  # in order, see shard.smk
            flags=flags(settings.score.part(VariantSettings)),
            strategy=settings.score.strategy,
            cleaning=cleaning_flags,
            folder=lambda wildcards, output: Path(output.status).parent,
        message:
            "split: the variant table of sample {wildcards.sample}, checked and in order"
        shell:
            "{params.esm} split --variants={input.variants:q} --least {params.least}"
            " --strategy={params.strategy} {params.flags} {params.cleaning}"
            " --out={params.folder:q} --inputs={output.inputs:q} --unchanged={input.read:q}"
            " -- {input.fasta:q}"
            " 2>&1 | tee -- {log:q}"

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
            rows=f"{OUT}/{{sample}}/split/variants.tsv",
            index=f"{OUT}/{{sample}}/split/variants.index.npz",
            listed=f"{OUT}/{{sample}}/split/digests.sha256",
            unusable=f"{OUT}/{{sample}}/split/unusable.tsv",
            before=f"{OUT}/{{sample}}/split/status.tsv",
            scores=lambda wildcards: expand(
                SHARD_RULES["score_variants"].output,
                sample=wildcards.sample,
                range=range_names(TABLE_RANGES[wildcards.sample]),
            ),
        output:
            scores=f"{OUT}/{{sample}}/scores.tsv",
            provenance=f"{OUT}/{{sample}}/scores.json",
            counts=f"{OUT}/{{sample}}/counts/variants.json",
            status=status,
            digests=f"{status_folder}/digests.sha256",
        log:
            f"{OUT}/logs/join/{{sample}}.log",
        benchmark:
            f"{OUT}/benchmarks/join/{{sample}}.tsv"
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=by_size("mem_mb", 1000, 2, of=("variants", "rows"), remedy=SMALLER_SAMPLE),
            runtime=by_size("runtime", 30, 0.1),
        params:
            esm=esm,
            number=lambda wildcards: TABLE_RANGES[wildcards.sample],
            split=lambda wildcards, input: Path(input.unusable).parent,
            folder=lambda wildcards, input: Path(input.scores[0]).parent,
        message:
            "join: the scores appended to the variant table of sample {wildcards.sample}"
        shell:
            "{params.esm} join --variants={input.variants:q} --split={params.split:q}"
            " --scores={params.folder:q} --count {params.number} --out={output.scores:q}"
            " --provenance={output.provenance:q} --counts={output.counts:q}"
            " --status={output.status:q} 2>&1 | tee -- {log:q}"


def add_heatmaps_rule(layout):
    """Add the rule that draws the saturated proteins of a bundle."""

    rule:
        name:
            f"heatmaps{layout.suffix}"
        input:
            h5=layout.result("saturation.h5"),
            listed=layout.work("score/{bundle}.sha256"),
        output:
            folder=directory(layout.result("heatmaps")),
            digests=layout.result("heatmaps.sha256"),
        log:
            layout.of_job("logs/heatmaps", "log"),
        benchmark:
            layout.of_job("benchmarks/heatmaps", "tsv")
        wildcard_constraints:
            sample=one_of(layout.samples),
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=by_size("mem_mb", 2000),
            runtime=by_size("runtime", 60, 1),
        params:
            esm=esm,
        message:
            "heatmaps: a picture of every protein in {input.h5}"
        shell:
            "{params.esm} heatmaps --listed={input.listed:q} --sha256={output.digests:q}"
            " -- {input.h5:q} {output.folder:q} 2>&1 | tee -- {log:q}"


if settings.score.plots:
    for layout in LAYOUTS:
        add_heatmaps_rule(layout)
