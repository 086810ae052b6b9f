# A shard's sequences -> their representations; a sample's shards -> embeddings.h5.


rule embed:
    input:
        fasta=f"{OUT}/{{sample}}/shards/{{shard}}.fasta",
        digests=f"{OUT}/{{sample}}/shards/digests.sha256",
        inputs=f"{OUT}/{{sample}}/inputs.sha256",
        model=models_of("embed"),
        checked=f"{OUT}/logs/checked/embed",
    output:
        h5=temp(f"{OUT}/{{sample}}/embed/{{shard}}.h5"),
        records=temp(f"{OUT}/{{sample}}/embed/{{shard}}.records.tsv"),
        digests=temp(f"{OUT}/{{sample}}/embed/{{shard}}.sha256"),
    log:
        f"{OUT}/logs/embed/{{sample}}/{{shard}}.log",
    benchmark:
        f"{OUT}/benchmarks/embed/{{sample}}/{{shard}}.tsv"
    retries: 2
    conda:
        "../../envs/esm.yaml"
    threads: job_threads(settings.embed)
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 480 * attempt,
        device=settings.embed.device,
        gpu=int(settings.embed.device.startswith("cuda")),
        token_budget=lambda wildcards, attempt: max(1, settings.embed.token_budget // attempt),
    params:
        esm=esm,
        flags=flags(settings.embed),
        validated=validated_flags,
    message:
        "embed: shard {wildcards.shard} of sample {wildcards.sample}"
    shell:
        "{params.esm} embed --unchanged={input.inputs:q} --model={input.model:q} {params.flags}"
        " {params.validated}"
        " --device {resources.device}"
        " --token-budget {resources.token_budget} --threads {threads} --allow-empty"
        " --on-failure keep --sha256={output.digests:q} -- {input.fasta:q} {output.h5:q}"
        " 2>&1 | tee -- {log:q}"


rule gather_embed:
    input:
        records=f"{OUT}/{{sample}}/shards/records.tsv",
        listed=f"{OUT}/{{sample}}/shards/digests.sha256",
        h5=shards_of(f"{OUT}/{{sample}}/embed/{{shard}}.h5"),
        statuses=shards_of(f"{OUT}/{{sample}}/embed/{{shard}}.records.tsv"),
        digests=shards_of(f"{OUT}/{{sample}}/embed/{{shard}}.sha256"),
    output:
        h5=f"{OUT}/{{sample}}/embeddings.h5",
        status=f"{OUT}/{{sample}}/embed/status.tsv",
        digests=f"{OUT}/{{sample}}/embed/digests.sha256",
    log:
        f"{OUT}/logs/gather_embed/{{sample}}.log",
    benchmark:
        f"{OUT}/benchmarks/gather_embed/{{sample}}.tsv"
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
        "gather_embed: embeddings of sample {wildcards.sample} into one file"
    shell:
        "{params.esm} aggregate embed --records={input.records:q}"
        " --shards-dir={params.folder:q} --shards {params.shards} --out={output.h5:q}"
        " --status={output.status:q} 2>&1 | tee -- {log:q}"
