# The end of every run: the final table of records, the report, the counts and the provenance. They
# read what was counted when the results were written. The verdict comes last, so that a failed record
# never keeps a result from being written.
rule records:
    input:
        records=of_bundles(f"{OUT}/{{sample}}/bundles/{{bundle}}.records.tsv"),
        statuses=status_files,
        listed=f"{OUT}/{{sample}}/bundles/digests.sha256",
    output:
        table=f"{OUT}/{{sample}}/records.tsv",
        counts=f"{OUT}/{{sample}}/counts/records.json",
        digests=f"{OUT}/{{sample}}/counts/digests.sha256",
    log:
        f"{OUT}/logs/records/{{sample}}.log",
    benchmark:
        f"{OUT}/benchmarks/records/{{sample}}.tsv"
    localrule: SMALL
    conda:
        "../../envs/esm.yaml"
    resources:
        mem_mb=by_size("mem_mb", 1000, 0.1),
        runtime=by_size("runtime", 30, 0.02),
    params:
        esm=esm,
        bundles=lambda wildcards, input: Path(input.listed).parent,
        number=lambda wildcards: len(BUNDLES[wildcards.sample]),
        statuses=status_flags,
    message:
        "records: the outcome of each record of sample {wildcards.sample}"
    shell:
        "{params.esm} aggregate records --bundles={params.bundles:q} --count {params.number}"
        " {params.statuses} --out={output.table:q} --counts={output.counts:q}"
        " 2>&1 | tee -- {log:q}"


COUNTS = [
    *(f"{OUT}/{sample}/counts/records.json" for sample in SAMPLES),
    *(f"{OUT}/{sample}/counts/variants.json" for sample in TABLES),
]


rule report:
    input:
        results=RESULTS,
        counts=COUNTS,
    output:
        report(f"{OUT}/report.html", caption="../report/results.rst", category="Results"),
    log:
        f"{OUT}/logs/report.log",
    benchmark:
        f"{OUT}/benchmarks/report.tsv"
    localrule: SMALL
    conda:
        "../../envs/esm.yaml"
    resources:
        mem_mb=by_size("mem_mb", 2000),
        runtime=by_size("runtime", 60),
    params:
        esm=esm,
        settings=all_settings,
    message:
        "report: a page with counts, reasons, embeddings and structures"
    shell:
        "{params.esm} report --settings={params.settings:q} --out={output:q} 2>&1 | tee -- {log:q}"


rule counts:
    input:
        COUNTS,
    output:
        f"{OUT}/verdict.txt",
    log:
        f"{OUT}/logs/counts.log",
    benchmark:
        f"{OUT}/benchmarks/counts.tsv"
    localrule: True
    conda:
        "../../envs/esm.yaml"
    params:
        esm=esm,
        settings=all_settings,
        names=result_names,
    message:
        "counts: the outcomes of all records and variants"
    shell:
        "{params.esm} verdict --on-failure keep --settings={params.settings:q} --out={output:q}"
        " 2>&1 | tee -- {log:q}"


# After all other results are written, because it contains their digests.
rule provenance:
    input:
        fasta=list(SAMPLES.values()),
        variants=list(TABLES.values()),
        models=[f"{OUT}/{name}" for name in MODELS],
        results=RESULTS,
        counts=COUNTS,
        pages=[f"{OUT}/report.html", f"{OUT}/verdict.txt"],
    output:
        json=f"{OUT}/provenance.json",
        digest=f"{OUT}/provenance.sha256",
    log:
        f"{OUT}/logs/provenance.log",
    benchmark:
        f"{OUT}/benchmarks/provenance.tsv"
    localrule: SMALL
    conda:
        "../../envs/esm.yaml"
    resources:
        mem_mb=by_size("mem_mb", 1000),
        runtime=by_size("runtime", 60, 0.01, of=("fasta", "variants")),
    params:
        esm=esm,
        settings=all_settings,
    message:
        "provenance: versions, models, settings, and the digests of all inputs and results"
    shell:
        "{params.esm} provenance --settings={params.settings:q} --out={output.json:q}"
        " 2>&1 | tee -- {log:q}"


# A rule of its own, because Snakemake removes the outputs of a failed job: verdict.txt has to stay.
rule verdict:
    input:
        counts=f"{OUT}/verdict.txt",
        others=[f"{OUT}/provenance.json", f"{OUT}/report.html"],
    output:
        touch(f"{OUT}/.accepted"),
    log:
        f"{OUT}/logs/verdict.log",
    localrule: True
    conda:
        "../../envs/esm.yaml"
    params:
        accepted=".*" if settings.on_failure == "keep" else "nothing failed",
    message:
        "verdict: whether any record or variant failed"
    shell:
        "tail -n 1 -- {input.counts:q} | tee -- {log:q} | grep -qx {params.accepted:q}"
