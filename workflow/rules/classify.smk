# The gathered probabilities of a sample -> classes.tsv, for models that classify sequences. A rule
# of its own, so that another threshold classifies and gathers nothing again.
from esm_pipeline.settings import LabelSettings

if CLASSIFIED == "sequences":

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
            "classes: the class table of sample {wildcards.sample}"
        shell:
            "{params.esm} classes --records={input.records:q} --status={input.status:q}"
            " {params.flags} -- {input.h5:q} {output:q} 2>&1 | tee -- {log:q}"
