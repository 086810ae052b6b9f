# The model, once, before any job that runs it: fetched into the cache of the hub's client if it is
# not there, then judged. Jobs take it from there, at the commit found here, without network. It is
# made again when the files of a local model are others.
rule model:
    input:
        MODEL_FILES,
    output:
        MODEL,
    log:
        f"{OUT}/logs/model.log",
    benchmark:
        f"{OUT}/benchmarks/model.tsv"
    conda:
        "../../envs/esm.yaml"
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        esm=esm,
        model=model_flags,
        embed=flags(settings.embed),
        files=[list(file_state(file)) for file in MODEL_FILES],
    message:
        "model: {params.model}, found once for all jobs"
    shell:
        "{params.esm} download {params.model} --out={output:q} embed {params.embed}"
        " 2>&1 | tee -- {log:q}"
