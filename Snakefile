# Where Snakemake looks when it is started in this folder. The workflow is workflow/Snakefile.
include: "workflow/Snakefile"


# An included file does not set the default target: without this rule, nothing would run.
rule default:
    default_target: True
    input:
        rules.all.input,
    localrule: True
