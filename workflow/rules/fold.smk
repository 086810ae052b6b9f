# The gathered structures of a bundle -> the files that people open. Rules of their own, so that a
# change to these files folds nothing again.
from importlib.util import find_spec

from esm_pipeline.settings import StructureSettings

STRUCTURE_TABLES = ("structures.tsv", "flags.tsv", "chain_pairs.tsv")
ATLAS_TABLE = "structures.parquet"
OF_BUNDLE = "structures/{bundle}"


if (
    "foldcomp" in settings.fold.formats
    and not jobs_have_own_python()
    and find_spec("foldcomp") is None
):
    raise WorkflowError(
        "fold.formats: foldcomp needs the package foldcomp; install it with "
        "pip install 'esm-pipeline[foldcomp]', or choose pdb or cif"
    )


def add_structures_rule(layout):
    """Add the rule that writes the structures of a bundle."""
    names = (*STRUCTURE_TABLES, ATLAS_TABLE)
    tables = [layout.of_bundle(name, f"{OF_BUNDLE}/{name}") for name in names]

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
            tables=tables if layout.samples is ONE else temp(tables),
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
            folder=lambda wildcards, output: Path(output.tables[0]).parent,
        message:
            "structures: the files of the structures in {input.h5}"
        shell:
            "{params.esm} structures --records={input.records:q} --status={input.status:q}"
            " {params.flags} --threads {threads} -- {input.h5:q} {params.folder:q}"
            " 2>&1 | tee -- {log:q}"


for layout in LAYOUTS:
    add_structures_rule(layout)
if MANY:
    add_merge_rule("structures.tsv", f"{OF_BUNDLE}/structures.tsv")
    for name in STRUCTURE_TABLES[1:]:
        add_merge_rule(name, f"{OF_BUNDLE}/{name}", "--any-rows")

    rule:
        name:
            "atlas"
        input:
            f"{OUT}/{{sample}}/structures.tsv",
        output:
            f"{OUT}/{{sample}}/{ATLAS_TABLE}",
        log:
            f"{OUT}/logs/atlas/{{sample}}.log",
        benchmark:
            f"{OUT}/benchmarks/atlas/{{sample}}.tsv"
        wildcard_constraints:
            sample=one_of(MANY),
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=by_size("mem_mb", 1000),
            runtime=by_size("runtime", 30, 0.02),
        params:
            esm=esm,
        message:
            "atlas: the table of structures of sample {wildcards.sample} as Parquet"
        shell:
            "{params.esm} aggregate atlas --out={output:q} -- {input:q} 2>&1 | tee -- {log:q}"
