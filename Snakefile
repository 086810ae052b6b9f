# Protein sequences in, embeddings and scores of variants out:
# `snakemake --cores all --config fasta=my.fasta`.
# Every setting is explained in config/README.md, every result in README.md.
import os

from snakemake.utils import min_version

min_version("9.5")


include: "workflow/rules/config.smk"


if os.path.exists("config/config.yaml"):

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"


wildcard_constraints:
    sample="|".join(map(re.escape, SAMPLES)),
    shard=r"\d{5}",


include: "workflow/rules/shard.smk"
include: "workflow/rules/model.smk"


for task in settings.tasks:

    include: f"workflow/rules/{task}.smk"


include: "workflow/rules/gather.smk"


localrules:
    all,
    records,
    provenance,
    report,
    counts,
    verdict,


rule all:
    default_target: True
    input:
        f"{OUT}/.accepted",
        f"{OUT}/verdict.txt",
        f"{OUT}/provenance.json",
        f"{OUT}/report.html",
        RESULTS,
