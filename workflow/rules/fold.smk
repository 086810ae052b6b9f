# The gathered structures of a sample -> the files that people open. A rule of its own, so that a
# change to these files folds nothing again.
from esm_pipeline.settings import StructureSettings


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
        "structures: the structure files of sample {wildcards.sample}"
    shell:
        "{params.esm} structures --records={input.records:q} --status={input.status:q}"
        " {params.flags} --threads {threads} -- {input.h5:q} {params.folder:q}"
        " 2>&1 | tee -- {log:q}"
