# The gathered probabilities of a bundle -> the class table, for models that classify sequences. Rules
# of their own, so that another threshold classifies and gathers nothing again.
from esm_pipeline.settings import LabelSettings

CLASSES_OF_BUNDLE = "classify/{bundle}.tsv"


def add_classes_rule(layout):
    """Add the rule that writes the class table of a bundle."""
    table = layout.of_bundle("classes.tsv", CLASSES_OF_BUNDLE)

    rule:
        name:
            f"classes{layout.suffix}"
        input:
            h5=layout.result("classes.h5"),
            records=layout.work("bundles/{bundle}.records.tsv"),
            status=layout.work("classify/{bundle}.status.tsv"),
            listed=[
                f"{OUT}/{{sample}}/bundles/digests.sha256",
                layout.work("classify/{bundle}.sha256"),
            ],
        output:
            table if layout.samples is ONE else temp(table),
        log:
            layout.of_job("logs/classes", "log"),
        benchmark:
            layout.of_job("benchmarks/classes", "tsv")
        wildcard_constraints:
            sample=one_of(layout.samples),
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=by_size("mem_mb", 1000, 1),
            runtime=by_size("runtime", 30, 0.02),
        params:
            esm=esm,
            flags=flags(settings.classify.part(LabelSettings)),
        message:
            "classes: the table of the classes in {input.h5}"
        shell:
            "{params.esm} classes --records={input.records:q} --status={input.status:q}"
            " {params.flags} -- {input.h5:q} {output:q} 2>&1 | tee -- {log:q}"


if CLASSIFIED == "sequences":
    for layout in LAYOUTS:
        add_classes_rule(layout)
    if MANY:
        add_merge_rule("classes.tsv", CLASSES_OF_BUNDLE)
