# The end of every run: the final table of records, the report, the counts and the provenance. The
# verdict comes last, so that a failed record never keeps a result from being written.
rule records:
    input:
        records=f"{OUT}/{{sample}}/shards/records.tsv",
        statuses=[f"{OUT}/{{sample}}/{task}/status.tsv" for task in settings.tasks],
        listed=[f"{OUT}/{{sample}}/{name}/digests.sha256" for name in ("shards", *settings.tasks)],
    output:
        f"{OUT}/{{sample}}/records.tsv",
    log:
        f"{OUT}/logs/records/{{sample}}.log",
    benchmark:
        f"{OUT}/benchmarks/records/{{sample}}.tsv"
    localrule: True
    conda:
        "../../envs/esm.yaml"
    params:
        esm=esm,
        statuses=status_flags,
    message:
        "records: the outcome of each record of sample {wildcards.sample}"
    shell:
        "{params.esm} aggregate records --records={input.records:q} {params.statuses}"
        " --out={output:q} 2>&1 | tee -- {log:q}"


rule report:
    input:
        results=RESULTS,
    output:
        report(f"{OUT}/report.html", caption="../report/results.rst", category="Results"),
    log:
        f"{OUT}/logs/report.log",
    benchmark:
        f"{OUT}/benchmarks/report.tsv"
    localrule: True
    conda:
        "../../envs/esm.yaml"
    params:
        esm=esm,
        settings=all_settings,
    message:
        "report: a page with counts, reasons, embeddings and structures"
    shell:
        "{params.esm} report --settings={params.settings:q} --out={output:q} 2>&1 | tee -- {log:q}"


rule counts:
    input:
        records=expand(f"{OUT}/{{sample}}/records.tsv", sample=SAMPLES),
        scores=expand(f"{OUT}/{{sample}}/scores.tsv", sample=TABLES),
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
        pages=[f"{OUT}/report.html", f"{OUT}/verdict.txt"],
    output:
        json=f"{OUT}/provenance.json",
        digest=f"{OUT}/provenance.sha256",
    log:
        f"{OUT}/logs/provenance.log",
    benchmark:
        f"{OUT}/benchmarks/provenance.tsv"
    localrule: True
    conda:
        "../../envs/esm.yaml"
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
        "verdict: nothing failed, or on_failure is keep"
    shell:
        "tail -n 1 -- {input.counts:q} | tee -- {log:q} | grep -qx {params.accepted:q}"
