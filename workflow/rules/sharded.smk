# The rules that compute a range of a bundle, and those that gather the ranges of a bundle into one
# file. A row of SHARD_RULES holds what is particular to one rule; a new task needs one row.
from collections.abc import Callable
from functools import cache

from esm_pipeline.formats.bundles import Bundle, Range, Work
from esm_pipeline.formats.variant_bundles import VariantBundle
from esm_pipeline.tasks.classify.work import CLASSIFY_WORK, classify_need
from esm_pipeline.tasks.embed.work import EMBED_WORK, embed_need
from esm_pipeline.tasks.fold.work import FOLD_WORK, fold_need, folded_lengths
from esm_pipeline.tasks.score.work import (
    SATURATION_WORK,
    VARIANTS_WORK,
    saturation_need,
    variants_need,
)


class ShardRule(NamedTuple):
    """What is particular to a rule that computes ranges."""

    task: str  # the command, and the section of the settings
    need: Callable  # what a job needs: see `esm_pipeline/tasks/common/requests.py`
    work: Work  # how its cost grows with length
    size: Callable = lambda bundle, span: {"lengths": bundle.length[span]}  # of what a job computes
    of_table: bool = False  # whether it computes rows of a variant table, and not sequences
    result: str = ""  # the file that the ranges of a bundle are gathered into, if any
    content: str = ""  # of that file, for the message
    folder: str = ""  # of the results of the jobs, if not that of the task
    ensemble: bool = False  # whether the task may run several models
    options: tuple = ()  # further words of the command line
    execution: dict = {}  # further settings that leave results as they are: resources and flags
    needed: bool = True  # whether the task needs this rule when it runs
    priority: int = 0  # higher before lower: first what takes least

    @property
    def input(self):
        """Patterns of the files that a job takes its range from, by name."""
        if not self.of_table:
            names = {"index": "{bundle}.index.npz", "fasta": "{bundle}.fasta"}
            folder, more = "bundles", {}
        else:
            names = {"index": "variants.index.npz", "rows": "variants.tsv"}
            names |= {"fasta": "wild_types.fasta"}
            folder, more = "split", {"table": f"{OUT}/{{sample}}/variants.sha256"}
        return {name: f"{OUT}/{{sample}}/{folder}/{file}" for name, file in names.items()} | more

    @property
    def place(self):
        """Of a job: its folder in that of the sample, and its name, as a pattern."""
        return "{range}" if self.of_table else "{bundle}/{range}"

    @property
    def output(self):
        """The pattern of the file of a job."""
        return f"{OUT}/{{sample}}/{self.folder or self.task}/{self.place}.h5"

    @property
    def command(self):
        """The shell command of a job."""
        words = [
            "{params.esm}",
            self.task,
            "--unchanged={params.inputs:q}",
            "{params.models}" if self.ensemble else "--model={input.model:q}",
            "{params.flags}",
            "--device {resources.device}",
            "--token-budget {resources.token_budget}",
            *(f"--{key.replace('_', '-')} {{resources.{key}}}" for key in self.execution),
            "--threads {threads}",
            "--on-failure keep",
            "--range={wildcards.range}",
            *self.options,
            "--",
            "{input.fasta:q}",
            "{output:q}",
            "2>&1 | tee -- {log:q}",
        ]
        return " ".join(words)


SHARD_RULES = {
    "embed": ShardRule(
        task="embed",
        work=EMBED_WORK,
        need=embed_need,
        result="embeddings.h5",
        content="embeddings",
        priority=3,
    ),
    "classify": ShardRule(
        task="classify",
        work=CLASSIFY_WORK,
        need=classify_need,
        result="residue_classes.h5" if CLASSIFIED == "residues" else "classes.h5",
        content="classes",
        priority=2,
    ),
    "fold": ShardRule(
        task="fold",
        work=FOLD_WORK,
        size=lambda bundle, span: {"lengths": folded_lengths(bundle, span)},
        need=fold_need,
        result="structures.h5",
        content="structures",
        execution={
            "chunk_size": str(settings.fold.chunk_size),
            "memory": str(settings.fold.memory),
        },
    ),
    "score": ShardRule(
        task="score",
        work=SATURATION_WORK,
        need=saturation_need,
        needed=settings.score.saturation,
        result="saturation.h5",
        content="every substitution",
        priority=1,
        ensemble=True,
        options=("--saturation",),
    ),
    "score_variants": ShardRule(
        task="score",
        work=VARIANTS_WORK,
        of_table=True,
        size=lambda bundle, span: {
            "lengths": bundle.length[span],
            "passes": bundle.passes[span],
            "rows": int(bundle.rows[span].sum()),
        },
        need=variants_need,
        needed=bool(TABLES),
        folder="variants",
        priority=1,
        ensemble=True,
        options=("--unchanged={input.table:q}", "--variants={input.rows:q}"),
    ),
}


@cache
def opened(changed, *files):
    """The bundle of sequences (its FASTA), or of rows (their table, and the FASTA of proteins).

    changed: when its index was written, since `shard` may write it anew during a run.
    """
    kind = Bundle if len(files) == 1 else VariantBundle
    return kind.open(*map(Path, files))


@cache
def bounds_of(name, changed, files, count):
    """Where each range of a bundle begins, for the jobs of a rule."""
    return opened(changed, *files).bounds(SHARD_RULES[name].work, count)


@cache
def request_of(name, changed, files, part, models, attempt):
    """What a job asks for: it computes the range `part` of the bundle in some files."""
    row = SHARD_RULES[name]
    section, threads = getattr(settings, row.task), job_threads(getattr(settings, row.task))
    try:
        bundle = opened(changed, *files)
        number, count = Range.parse(part)
        span = slice(*bounds_of(name, changed, files, count)[number - 1 : number + 1].tolist())
        need = row.need([*map(Path, models)], section, threads=threads, **row.size(bundle, span))
        return need.request(
            section,
            threads=threads,
            attempt=attempt,
            limits=settings.limits,
            where=f"{name}, range {part} of {files[0]}",
        )
    except InputError as error:
        raise WorkflowError(str(error)) from None


def requested(name, what):
    """A resource function: `what` the job of a rule asks for, from its range and its models."""

    def amount(wildcards, input, attempt):
        files = (input.rows, input.fasta) if SHARD_RULES[name].of_table else (input.fasta,)
        for file in input.model:
            os.stat(file)  # what a missing file decides is not known yet
        changed = os.stat(input.index).st_mtime_ns
        wanted = request_of(name, changed, files, wildcards.range, tuple(input.model), attempt)
        return getattr(wanted, what)

    return amount


def model_flags(wildcards, input):
    """A parameter: the models of `score`, and the labels of an ensemble, as command-line flags."""
    labels = [f"--label={label}" for label in settings.score.models]
    return shlex.join([*labels, *(f"--model={file}" for file in input.model)])


# Rules are made in functions: Snakemake evaluates a shell command again when the job runs, and in a
# plain loop the variables would then be those of the last row.
def add_compute_rule(name, row):
    """Add the rule `name`, which computes a range of a bundle."""
    section = getattr(settings, row.task)

    rule:
        name:
            name
        input:
            **row.input,
            model=models_of(row.task),
            checked=f"{OUT}/logs/checked/{row.task}",
        output:
            temp(row.output),
        log:
            f"{OUT}/logs/{name}/{{sample}}/{row.place}.log",
        benchmark:
            f"{OUT}/benchmarks/{name}/{{sample}}/{row.place}.tsv"
        priority: row.priority
        retries: RETRIES
        conda:
            "../../envs/esm.yaml"
        threads: job_threads(section)
        resources:
            **row.execution,
            mem_mb=requested(name, "mem_mb"),
            runtime=requested(name, "runtime"),
            device=section.device,
            gpu=int(section.device.startswith("cuda")),
            token_budget=lambda wildcards, attempt: max(1, section.token_budget // attempt),
        params:
            **({"models": model_flags} if row.ensemble else {}),
            esm=esm,
            # made with the bundle or the table, and one input less in a graph of many jobs
            inputs=f"{OUT}/{{sample}}/inputs.sha256",
            flags=flags(section.computing()),
        message:
            f"{name}: range {{wildcards.range}}"
            + (
                " of the variants"
                if row.of_table
                else " of bundle {wildcards.bundle}" if MANY else ""
            )
            + " of sample {wildcards.sample}"
        shell:
            row.command


def add_gather_rule(name, row, layout):
    """Add the rule that gathers the ranges computed by the rule `name` in samples of a layout."""

    rule:
        name:
            f"gather_{name}{layout.suffix}"
        input:
            records=layout.work("bundles/{bundle}.records.tsv"),
            index=layout.work("bundles/{bundle}.index.npz"),
            listed=f"{OUT}/{{sample}}/bundles/digests.sha256",
            h5=ranges_of(row.task, row.output),
        output:
            h5=layout.result(row.result),
            status=layout.work(f"{row.task}/{{bundle}}.status.tsv"),
            digests=layout.work(f"{row.task}/{{bundle}}.sha256"),
        log:
            layout.of_job(f"logs/gather_{name}", "log"),
        benchmark:
            layout.of_job(f"benchmarks/gather_{name}", "tsv")
        wildcard_constraints:
            sample=one_of(layout.samples),
        priority: row.priority
        conda:
            "../../envs/esm.yaml"
        resources:
            mem_mb=by_size("mem_mb", 1000, 1, of=("records", "index")),
            runtime=by_size("runtime", 30, 0.01),
        params:
            esm=esm,
            number=lambda wildcards: range_count(row.task, wildcards),
            bundle=lambda wildcards, input: input.index.replace(".index.npz", ".fasta"),
            ranges=lambda wildcards, output: output.status.removesuffix(".status.tsv"),
        message:
            f"gather_{name}: {row.content} of sample {{wildcards.sample}}"
            + (", bundle {wildcards.bundle}" if layout.suffix else "")
            + ", into one file"
        shell:
            f"{{params.esm}} aggregate {name} --bundle={{params.bundle:q}}"
            " --ranges={params.ranges:q} --count {params.number} --out={output.h5:q}"
            " --status={output.status:q} 2>&1 | tee -- {log:q}"


for name, row in SHARD_RULES.items():
    if row.task in settings.tasks and row.needed:
        add_compute_rule(name, row)
        if row.result:
            for layout in LAYOUTS:
                add_gather_rule(name, row, layout)
