# A shard's sequences -> what a classifier says of them; a sample's shards -> classes.h5 and the table
# of it, classes.tsv, or residue_classes.h5.
from esm_pipeline.settings.sections import LabelSettings

CLASSES = "residue_classes.h5" if CLASSIFIED == "residues" else "classes.h5"


rule classify:
    input:
        fasta=f"{OUT}/{{sample}}/shards/{{shard}}.fasta",
        digests=f"{OUT}/{{sample}}/shards/digests.sha256",
        inputs=f"{OUT}/{{sample}}/inputs.sha256",
        model=models_of("classify"),
        checked=f"{OUT}/logs/checked/classify",
    output:
        h5=temp(f"{OUT}/{{sample}}/classify/{{shard}}.h5"),
        records=temp(f"{OUT}/{{sample}}/classify/{{shard}}.records.tsv"),
        digests=temp(f"{OUT}/{{sample}}/classify/{{shard}}.sha256"),
    log:
        f"{OUT}/logs/classify/{{sample}}/{{shard}}.log",
    benchmark:
        f"{OUT}/benchmarks/classify/{{sample}}/{{shard}}.tsv"
    retries: 2
    conda:
        "../../envs/esm.yaml"
    threads: job_threads(settings.classify)
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 480 * attempt,
        device=settings.classify.device,
        gpu=int(settings.classify.device.startswith("cuda")),
        token_budget=lambda wildcards, attempt: max(1, settings.classify.token_budget // attempt),
    params:
        esm=esm,
        flags=flags(settings.classify.computing()),
        validated=validated_flags,
    message:
        "classify: shard {wildcards.shard} of sample {wildcards.sample}"
    shell:
        "{params.esm} classify --unchanged={input.inputs:q} --model={input.model:q} {params.flags}"
        " {params.validated}"
        " --device {resources.device}"
        " --token-budget {resources.token_budget} --threads {threads} --allow-empty"
        " --on-failure keep --sha256={output.digests:q} -- {input.fasta:q} {output.h5:q}"
        " 2>&1 | tee -- {log:q}"


rule gather_classify:
    input:
        records=f"{OUT}/{{sample}}/shards/records.tsv",
        listed=f"{OUT}/{{sample}}/shards/digests.sha256",
        h5=shards_of(f"{OUT}/{{sample}}/classify/{{shard}}.h5"),
        statuses=shards_of(f"{OUT}/{{sample}}/classify/{{shard}}.records.tsv"),
        digests=shards_of(f"{OUT}/{{sample}}/classify/{{shard}}.sha256"),
    output:
        h5=f"{OUT}/{{sample}}/{CLASSES}",
        status=f"{OUT}/{{sample}}/classify/status.tsv",
        digests=f"{OUT}/{{sample}}/classify/digests.sha256",
    log:
        f"{OUT}/logs/gather_classify/{{sample}}.log",
    benchmark:
        f"{OUT}/benchmarks/gather_classify/{{sample}}.tsv"
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
        "gather_classify: classes of sample {wildcards.sample} into one file"
    shell:
        "{params.esm} aggregate classify --records={input.records:q}"
        " --shards-dir={params.folder:q} --shards {params.shards} --out={output.h5:q}"
        " --status={output.status:q} 2>&1 | tee -- {log:q}"


if CLASSIFIED == "sequences":

    # By itself: with another threshold nothing is classified or gathered again.
    rule classes:
        input:
            h5=f"{OUT}/{{sample}}/classes.h5",
            records=f"{OUT}/{{sample}}/shards/records.tsv",
            status=f"{OUT}/{{sample}}/classify/status.tsv",
            listed=[f"{OUT}/{{sample}}/{name}/digests.sha256" for name in ("shards", "classify")],
        output:
            f"{OUT}/{{sample}}/classes.tsv",
        log:
            f"{OUT}/logs/classes/{{sample}}.log",
        benchmark:
            f"{OUT}/benchmarks/classes/{{sample}}.tsv"
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=4000,
            runtime=240,
        params:
            esm=esm,
            flags=flags(settings.classify.part(LabelSettings)),
        message:
            "classes: the table of classes of sample {wildcards.sample}"
        shell:
            "{params.esm} classes --records={input.records:q} --status={input.status:q}"
            " {params.flags} -- {input.h5:q} {output:q} 2>&1 | tee -- {log:q}"
