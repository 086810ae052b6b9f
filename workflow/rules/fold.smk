# A shard's sequences -> their structures as arrays; a sample's shards -> structures.h5, and from it
# the files that people open. What only changes those files folds nothing again.
from esm_pipeline.settings.sections import StructureSettings


rule fold:
    input:
        fasta=f"{OUT}/{{sample}}/shards/{{shard}}.fasta",
        digests=f"{OUT}/{{sample}}/shards/digests.sha256",
        inputs=f"{OUT}/{{sample}}/inputs.sha256",
        model=models_of("fold"),
        checked=f"{OUT}/logs/checked/fold",
    output:
        h5=temp(f"{OUT}/{{sample}}/fold/{{shard}}.h5"),
        records=temp(f"{OUT}/{{sample}}/fold/{{shard}}.records.tsv"),
        digests=temp(f"{OUT}/{{sample}}/fold/{{shard}}.sha256"),
    log:
        f"{OUT}/logs/fold/{{sample}}/{{shard}}.log",
    benchmark:
        f"{OUT}/benchmarks/fold/{{sample}}/{{shard}}.tsv"
    retries: 2
    conda:
        "../../envs/esm.yaml"
    threads: job_threads(settings.fold)
    resources:
        mem_mb=lambda wildcards, attempt: 32000 * attempt,
        runtime=lambda wildcards, attempt: 1440 * attempt,
        device=settings.fold.device,
        gpu=int(settings.fold.device.startswith("cuda")),
        token_budget=lambda wildcards, attempt: max(1, settings.fold.token_budget // attempt),
        chunk_size=str(settings.fold.chunk_size),
        memory=str(settings.fold.memory),
    params:
        esm=esm,
        flags=flags(settings.fold.computing()),
        validated=validated_flags,
    message:
        "fold: shard {wildcards.shard} of sample {wildcards.sample}"
    shell:
        "{params.esm} fold --unchanged={input.inputs:q} --model={input.model:q} {params.flags}"
        " {params.validated}"
        " --device {resources.device}"
        " --token-budget {resources.token_budget} --chunk-size {resources.chunk_size}"
        " --memory {resources.memory} --threads {threads} --allow-empty --on-failure keep"
        " --sha256={output.digests:q} -- {input.fasta:q} {output.h5:q} 2>&1 | tee -- {log:q}"


rule gather_fold:
    input:
        records=f"{OUT}/{{sample}}/shards/records.tsv",
        listed=f"{OUT}/{{sample}}/shards/digests.sha256",
        h5=shards_of(f"{OUT}/{{sample}}/fold/{{shard}}.h5"),
        statuses=shards_of(f"{OUT}/{{sample}}/fold/{{shard}}.records.tsv"),
        digests=shards_of(f"{OUT}/{{sample}}/fold/{{shard}}.sha256"),
    output:
        h5=f"{OUT}/{{sample}}/structures.h5",
        status=f"{OUT}/{{sample}}/fold/status.tsv",
        digests=f"{OUT}/{{sample}}/fold/digests.sha256",
    log:
        f"{OUT}/logs/gather_fold/{{sample}}.log",
    benchmark:
        f"{OUT}/benchmarks/gather_fold/{{sample}}.tsv"
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
        "gather_fold: structures of sample {wildcards.sample} into one file"
    shell:
        "{params.esm} aggregate fold --records={input.records:q}"
        " --shards-dir={params.folder:q} --shards {params.shards} --out={output.h5:q}"
        " --status={output.status:q} 2>&1 | tee -- {log:q}"


rule structures:
    input:
        h5=f"{OUT}/{{sample}}/structures.h5",
        records=f"{OUT}/{{sample}}/shards/records.tsv",
        status=f"{OUT}/{{sample}}/fold/status.tsv",
        listed=[f"{OUT}/{{sample}}/{name}/digests.sha256" for name in ("shards", "fold")],
    output:
        table=f"{OUT}/{{sample}}/structures.tsv",
        digests=f"{OUT}/{{sample}}/structures.sha256",
        folders=[
            directory(f"{OUT}/{{sample}}/{name}")
            for name in ("structures", *(["pae"] if settings.fold.pae else []))
        ],
    log:
        f"{OUT}/logs/structures/{{sample}}.log",
    benchmark:
        f"{OUT}/benchmarks/structures/{{sample}}.tsv"
    conda:
        "../../envs/esm.yaml"
    threads: job_threads(settings.fold)
    resources:
        mem_mb=4000,
        runtime=480,
    params:
        esm=esm,
        flags=flags(settings.fold.part(StructureSettings)),
        folder=lambda wildcards, output: Path(output.table).parent,
    message:
        "structures: files of the structures of sample {wildcards.sample}"
    shell:
        "{params.esm} structures --records={input.records:q} --status={input.status:q}"
        " {params.flags} --threads {threads} -- {input.h5:q} {params.folder:q} 2>&1 | tee -- {log:q}"
