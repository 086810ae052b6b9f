# The rules that compute a shard, and those that gather the shards of a sample into one file. A row
# of SHARD_RULES holds what is particular to one rule; a new task needs one row.
from typing import NamedTuple


def shard_files(folder, **suffixes):
    """Patterns of the files of a shard in `folder` of its sample, by name."""
    return {name: f"{OUT}/{{sample}}/{folder}/{{shard}}.{end}" for name, end in suffixes.items()}


def shard_outputs(folder, **suffixes):
    """The same for the outputs of a computed shard, its records and digests among them."""
    return shard_files(folder, **suffixes, records="records.tsv", digests="sha256")


class ShardRule(NamedTuple):
    """What is particular to a rule that computes shards."""

    task: str  # the command, and the section of the settings
    output: dict  # patterns by name, the result first
    input: dict = shard_files("shards", fasta="fasta")
    source: str = "shards"  # the folder that `input` comes from
    result: str = ""  # the file that the shards of a sample are gathered into, if any
    content: str = ""  # of that file, for the message
    what: str = "shard {wildcards.shard} of sample {wildcards.sample}"  # for the message
    ensemble: bool = False  # whether the task may run several models
    options: tuple = ()  # further words of the command line
    mem_mb: int = 8000  # in the first attempt
    runtime: int = 480  # minutes in the first attempt
    execution: dict = {}  # further settings that leave results as they are: resources and flags
    needed: bool = True  # whether the task needs this rule when it runs

    @property
    def command(self):
        """The shell command of a job."""
        words = [
            "{params.esm}",
            self.task,
            "--unchanged={input.inputs:q}",
            "{params.models}" if self.ensemble else "--model={input.model:q}",
            "{params.flags}",
            "{params.validated}",
            "--device {resources.device}",
            "--token-budget {resources.token_budget}",
            *(f"--{key.replace('_', '-')} {{resources.{key}}}" for key in self.execution),
            "--threads {threads}",
            "--allow-empty",
            "--on-failure keep",
            "--sha256={output.digests:q}",
            *self.options,
            "--",
            "{input.fasta:q}",
            f"{{output.{next(iter(self.output))}:q}}",
            "2>&1 | tee -- {log:q}",
        ]
        return " ".join(words)


SHARD_RULES = {
    "embed": ShardRule(
        task="embed",
        output=shard_outputs("embed", h5="h5"),
        result="embeddings.h5",
        content="embeddings",
    ),
    "classify": ShardRule(
        task="classify",
        output=shard_outputs("classify", h5="h5"),
        result="residue_classes.h5" if CLASSIFIED == "residues" else "classes.h5",
        content="classes",
    ),
    "fold": ShardRule(
        task="fold",
        output=shard_outputs("fold", h5="h5"),
        result="structures.h5",
        content="structures",
        mem_mb=32000,
        runtime=1440,
        execution={
            "chunk_size": str(settings.fold.chunk_size),
            "memory": str(settings.fold.memory),
        },
    ),
    "score": ShardRule(
        task="score",
        needed=settings.score.saturation,
        what="every substitution of shard {wildcards.shard} of sample {wildcards.sample}",
        output=shard_outputs("score", h5="h5"),
        result="saturation.h5",
        content="every substitution",
        ensemble=True,
        options=("--saturation",),
        runtime=1440,
    ),
    "score_variants": ShardRule(
        task="score",
        needed=bool(TABLES),
        what="shard {wildcards.shard} of the variants of sample {wildcards.sample}",
        source="split",
        input={
            **shard_files("split", fasta="fasta", variants="tsv"),
            "table": f"{OUT}/{{sample}}/variants.sha256",
        },
        output=shard_outputs("variants", scores="tsv", provenance="json"),
        ensemble=True,
        options=(
            "--unchanged={input.table:q}",
            "--provenance={output.provenance:q}",
            "--variants={input.variants:q}",
        ),
        runtime=1440,
    ),
}


def model_flags(wildcards, input):
    """A parameter: the models of `score`, and the labels of an ensemble, as command-line flags."""
    labels = [f"--label={label}" for label in settings.score.models]
    return shlex.join([*labels, *(f"--model={file}" for file in input.model)])


# Rules are made in functions: Snakemake evaluates a shell command again when the job runs, and in a
# plain loop the variables would then be those of the last row.
def add_compute_rule(name, row):
    """Add the rule `name`, which computes a shard."""
    section = getattr(settings, row.task)

    rule:
        name:
            name
        input:
            **row.input,
            listed=f"{OUT}/{{sample}}/{row.source}/digests.sha256",
            inputs=f"{OUT}/{{sample}}/inputs.sha256",
            model=models_of(row.task),
            checked=f"{OUT}/logs/checked/{row.task}",
        output:
            **{key: temp(file) for key, file in row.output.items()},
        log:
            f"{OUT}/logs/{name}/{{sample}}/{{shard}}.log",
        benchmark:
            f"{OUT}/benchmarks/{name}/{{sample}}/{{shard}}.tsv"
        retries: 2
        conda:
            "../../envs/esm.yaml"
        threads: job_threads(section)
        resources:
            **row.execution,
            mem_mb=lambda wildcards, attempt: row.mem_mb * attempt,
            runtime=lambda wildcards, attempt: row.runtime * attempt,
            device=section.device,
            gpu=int(section.device.startswith("cuda")),
            token_budget=lambda wildcards, attempt: max(1, section.token_budget // attempt),
        params:
            **({"models": model_flags} if row.ensemble else {}),
            esm=esm,
            flags=flags(section.computing()),
            validated=validated_flags,
        message:
            f"{name}: {row.what}"
        shell:
            row.command


def add_gather_rule(name, row):
    """Add the rule that gathers the shards computed by the rule `name`."""

    rule:
        name:
            f"gather_{name}"
        input:
            records=f"{OUT}/{{sample}}/shards/records.tsv",
            listed=f"{OUT}/{{sample}}/shards/digests.sha256",
            h5=shards_of(row.output["h5"], SHARDS),
            statuses=shards_of(row.output["records"], SHARDS),
            digests=shards_of(row.output["digests"], SHARDS),
        output:
            h5=f"{OUT}/{{sample}}/{row.result}",
            status=f"{OUT}/{{sample}}/{name}/status.tsv",
            digests=f"{OUT}/{{sample}}/{name}/digests.sha256",
        log:
            f"{OUT}/logs/gather_{name}/{{sample}}.log",
        benchmark:
            f"{OUT}/benchmarks/gather_{name}/{{sample}}.tsv"
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=4000,
            runtime=240,
        params:
            esm=esm,
            shards=lambda wildcards: SHARDS[wildcards.sample],
            folder=lambda wildcards, output: Path(output.status).parent,
        message:
            f"gather_{name}: {row.content} of sample {{wildcards.sample}} into one file"
        shell:
            f"{{params.esm}} aggregate {name} --records={{input.records:q}}"
            " --shards-dir={params.folder:q} --shards {params.shards} --out={output.h5:q}"
            " --status={output.status:q} 2>&1 | tee -- {log:q}"


for name, row in SHARD_RULES.items():
    if row.task in settings.tasks and row.needed:
        add_compute_rule(name, row)
        if row.result:
            add_gather_rule(name, row)
