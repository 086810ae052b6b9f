# The gathered structures of a bundle -> the files that people open. Rules of their own, so that a
# change to these files folds nothing again.
from esm_pipeline.settings import StructureSettings

STRUCTURES_OF_BUNDLE = "structures/{bundle}/structures.tsv"


def add_structures_rule(layout):
    """Add the rule that writes the structures of a bundle."""
    table = layout.of_bundle("structures.tsv", STRUCTURES_OF_BUNDLE)

    rule:
        name:
            f"structures{layout.suffix}"
        input:
            h5=layout.result("structures.h5"),
            records=layout.work("bundles/{bundle}.records.tsv"),
            status=layout.work("fold/{bundle}.status.tsv"),
            listed=[
                f"{OUT}/{{sample}}/bundles/digests.sha256",
                layout.work("fold/{bundle}.sha256"),
            ],
        output:
            table=table if layout.samples is ONE else temp(table),
            digests=layout.result("structures.sha256"),
            folders=[
                directory(layout.result(name))
                for name in ("structures", *(["pae"] if settings.fold.pae else []))
            ],
        log:
            layout.of_job("logs/structures", "log"),
        benchmark:
            layout.of_job("benchmarks/structures", "tsv")
        wildcard_constraints:
            sample=one_of(layout.samples),
        conda:
            "../../envs/esm.yaml"
        threads: job_threads(settings.fold)
        resources:
            mem_mb=by_size("mem_mb", 4000),
            runtime=by_size("runtime", 60, 0.1),
        params:
            esm=esm,
            flags=flags(settings.fold.part(StructureSettings)),
            folder=lambda wildcards, output: Path(output.table).parent,
        message:
            "structures: the files of the structures in {input.h5}"
        shell:
            "{params.esm} structures --records={input.records:q} --status={input.status:q}"
            " {params.flags} --threads {threads} -- {input.h5:q} {params.folder:q}"
            " 2>&1 | tee -- {log:q}"


for layout in LAYOUTS:
    add_structures_rule(layout)
if MANY:
    add_merge_rule("structures.tsv", STRUCTURES_OF_BUNDLE)
