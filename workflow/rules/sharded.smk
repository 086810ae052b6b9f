# The rules that compute a shard, and the rules that gather the shards of a sample into one file.
# Each row of SHARD_RULES names what one rule has of its own; a new task is a new row.
from typing import NamedTuple


def shard_files(folder, **suffixes):
    """Patterns of the files of a shard in `folder` of its sample, by name."""
    return {name: f"{OUT}/{{sample}}/{folder}/{{shard}}.{end}" for name, end in suffixes.items()}


def shard_outputs(folder, **suffixes):
    """The same for a computed shard, which has its records and digests besides."""
    return shard_files(folder, **suffixes, records="records.tsv", digests="sha256")


class ShardRule(NamedTuple):
    """How a rule that computes shards differs from the others."""

    task: str  # the command, and the section of the settings
    output: dict  # patterns by name, the result first
    input: dict = shard_files("shards", fasta="fasta")
    source: str = "shards"  # the folder that `input` comes from
    result: str = ""  # the file of a sample that its shards are gathered into, if any
    content: str = ""  # what that file holds, for the message
    what: str = "shard {wildcards.shard} of sample {wildcards.sample}"  # the message
    ensemble: bool = False  # whether the task may run several models
    options: str = ""  # more of the command line
    mem_mb: int = 8000  # of the first attempt
    runtime: int = 480  # minutes of the first attempt
    limits: dict = {}  # settings that do not change results, by name
    needed: bool = True  # whether the task, if it runs, needs this rule

    @property
    def command(self):
        """The shell command of one job."""
        models = "{params.models}" if self.ensemble else "--model={input.model:q}"
        limits = "".join(f" --{key.replace('_', '-')} {{resources.{key}}}" for key in self.limits)
        return (
            f"{{params.esm}} {self.task} --unchanged={{input.inputs:q}} {models} {{params.flags}}"
            " {params.validated} --device {resources.device}"
            f" --token-budget {{resources.token_budget}}{limits} --threads {{threads}}"
            " --allow-empty --on-failure keep --sha256={output.digests:q}"
            f"{self.options} -- {{input.fasta:q}} {{output.{next(iter(self.output))}:q}}"
            " 2>&1 | tee -- {log:q}"
        )


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
        limits={
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
        options=" --saturation",
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
        options=" --unchanged={input.table:q} --provenance={output.provenance:q}"
        " --variants={input.variants:q}",
        runtime=1440,
    ),
}


def model_flags(wildcards, input):
    """A parameter: the models of `score`, with their labels if it is an ensemble, as flags."""
    labels = [f"--label={label}" for label in settings.score.models]
    return shlex.join([*labels, *(f"--model={file}" for file in input.model)])


def times_attempt(first):
    """A resource that grows with each attempt."""
    return lambda wildcards, attempt: first * attempt


def smaller_budget(section):
    """A resource: the token budget, which shrinks with each attempt."""
    return lambda wildcards, attempt: max(1, section.token_budget // attempt)


for name, row in SHARD_RULES.items():
    if not (row.task in settings.tasks and row.needed):
        continue
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
            **row.limits,
            mem_mb=times_attempt(row.mem_mb),
            runtime=times_attempt(row.runtime),
            device=section.device,
            gpu=int(section.device.startswith("cuda")),
            token_budget=smaller_budget(section),
        params:
            **({"models": model_flags} if row.ensemble else {}),
            esm=esm,
            flags=flags(section.computing()),
            validated=validated_flags,
        message:
            f"{name}: {row.what}"
        shell:
            row.command

    if row.result:

        rule:
            name:
                f"gather_{name}"
            input:
                records=f"{OUT}/{{sample}}/shards/records.tsv",
                listed=f"{OUT}/{{sample}}/shards/digests.sha256",
                h5=shards_of(row.output["h5"]),
                statuses=shards_of(row.output["records"]),
                digests=shards_of(row.output["digests"]),
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
