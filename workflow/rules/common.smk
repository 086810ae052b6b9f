# The settings, the samples, and what the rules share. Snakemake reads this file again for every
# job, so it imports only the settings of the package, and no torch.
import math
import os
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

HOME = Path(str(workflow.current_basedir)).resolve().parents[1]
if unusable := {":", "{", "}"} & {*str(HOME)}:
    raise WorkflowError(
        f"{HOME}: the path of this workflow contains {' '.join(sorted(unusable))}, which "
        "PYTHONPATH or Snakemake would misread; move the folder to a path without such characters"
    )
sys.path.insert(0, str(HOME))

from esm_pipeline.errors import IN_WORKFLOW, InputError, number_of
from esm_pipeline.flags import flags
from esm_pipeline.formats.bundles import range_names
from esm_pipeline.settings import CleaningSettings, load_settings
from esm_pipeline.settings.models import LOCAL_MODELS, local_models
from esm_pipeline.settings.result_names import BY_BUNDLE, bundle_names


def chosen_config():
    """The configuration; an input given on the command line replaces that of the config file."""
    given = set(workflow.config_settings.overwrite_config)
    replaced = {"fasta", "samples", "variants"} - given if given & {"fasta", "samples"} else set()
    return {key: value for key, value in config.items() if key not in replaced}


try:
    settings = load_settings(chosen_config(), "config")
    SAMPLES = settings.inputs()  # the FASTA files of each sample
    BUNDLES = {
        sample: bundle_names(settings.bundle_count(files)) for sample, files in SAMPLES.items()
    }
    RANGES = {  # of each bundle: task, sample -> numbers
        task: {sample: settings.range_counts(task, files) for sample, files in SAMPLES.items()}
        for task in settings.tasks
    }
    TABLES = settings.tables()  # the variant table of each sample that has one
    TABLE_RANGES = {sample: settings.table_range_count(table) for sample, table in TABLES.items()}
    MODELS = settings.models()  # by the file that identifies each
    CLASSIFIED = settings.classified() if "classify" in settings.tasks else ""
    NAMES = settings.results()  # the names of each sample's results
    os.environ[LOCAL_MODELS] = local_models(MODELS.values())  # for jobs: results have no such path
except InputError as error:
    raise WorkflowError(str(error)) from None

OUT = settings.outdir
MANY = [sample for sample, bundles in BUNDLES.items() if len(bundles) > 1]
ONE = [sample for sample in SAMPLES if sample not in MANY]  # samples of one bundle
RESULTS = [f"{OUT}/{sample}/{name}" for sample, names in NAMES.items() for name in names]
cleaning_flags = flags(settings.shard.part(CleaningSettings))
RETRIES = 2 if workflow.is_main_process else 0  # a job must not multiply those of the run


def one_of(samples):
    """A regular expression that matches the names of some samples."""
    return "|".join(map(re.escape, samples))


wildcard_constraints:
    sample=one_of(SAMPLES),
    bundle=r"\d{5}",
    range=r"\d{1,6}-of-\d{1,6}",


def jobs_have_own_python():
    """Whether jobs run in an environment of their own, not with the interpreter of Snakemake."""
    isolated = {DeploymentMethod.CONDA, DeploymentMethod.APPTAINER}
    return bool(isolated & set(workflow.deployment_settings.deployment_method))


def esm(wildcards, output):
    """A parameter: the shell text that starts the package's command line.

    Snakemake removes PYTHONPATH from the environment of a conda job, so it is set here. Other jobs
    use the interpreter that runs Snakemake, whatever is on the PATH. -P keeps the working
    directory, which may contain anything, off the module path. The second variable makes messages
    name the keys of the config file, not flags.

    A parameter that takes the output reruns nothing when it changes: a clone may move. One that took
    resources would do that too, but Snakemake would evaluate those of all jobs at the start.
    """
    python = "python" if jobs_have_own_python() else shlex.quote(sys.executable)
    variables = f"PYTHONPATH={shlex.quote(str(HOME))} {IN_WORKFLOW}=1"
    return f"{variables} {python} -P -m esm_pipeline"


def all_settings(wildcards, output):
    """A parameter that reruns nothing when it changes: the settings as JSON."""
    return settings.model_dump_json()


def result_names(wildcards):
    """A parameter: the names of all results; when they change, the counts are made again."""
    return sorted({name for names in NAMES.values() for name in names})


class Layout(NamedTuple):
    """Where the results of samples of one bundle, or of several, are.

    A rule that writes a result of a bundle is made for each layout that occurs.
    """

    suffix: str  # of the rule's name
    samples: list
    bundle: str  # its name, or the wildcard for it

    def result(self, name):
        """The path of a result."""
        if self.samples is MANY and name in BY_BUNDLE:
            name = BY_BUNDLE[name].format(self.bundle)
        return f"{OUT}/{{sample}}/{name}"

    def of_bundle(self, table, part):
        """The path of a table, or of that of a bundle, `part`, which is merged into it."""
        return f"{OUT}/{{sample}}/{part if self.samples is MANY else table}"

    def work(self, name):
        """The path of an intermediate file, whose `name` contains `{bundle}`."""
        return f"{OUT}/{{sample}}/{name.replace('{bundle}', self.bundle)}"

    def of_job(self, folder, ending):
        """The path of a log or benchmark."""
        name = "{sample}/{bundle}" if self.samples is MANY else "{sample}"
        return f"{OUT}/{folder}/{name}.{ending}"


SMALL = not MANY  # whether the last steps need no job of their own
LAYOUTS = [
    layout
    for layout in (Layout("", ONE, "00000"), Layout("_bundles", MANY, "{bundle}"))
    if layout.samples
]


def of_bundles(pattern):
    """An input function: `pattern` for every bundle of the sample."""
    return lambda wildcards: expand(
        pattern, sample=wildcards.sample, bundle=BUNDLES[wildcards.sample]
    )


def range_count(task, wildcards):
    """The number of ranges of a bundle."""
    return RANGES[task][wildcards.sample][int(getattr(wildcards, "bundle", 0))]


def ranges_of(task, pattern):
    """An input function: `pattern` for every range of a bundle."""
    return lambda wildcards: expand(
        pattern,
        sample=wildcards.sample,
        bundle=getattr(wildcards, "bundle", BUNDLES[wildcards.sample][0]),
        range=range_names(range_count(task, wildcards)),
    )


def by_size(key, base, per_mb=0.0, of=None, remedy="lower shard.bundle"):
    """A resource function: `base`, and `per_mb` for each MB of input; a retry asks for more.

    key: the one of `limits` that applies; `base` is ample and gives way to it, what the input needs
    does not. of: the names of the inputs that count, by default all. remedy: for a limit too low.
    """
    limit = getattr(settings.limits, key)

    def amount(wildcards, input, attempt):
        files = (
            input if of is None else [file for name in of for file in listed(getattr(input, name))]
        )
        megabytes = sum(map(os.path.getsize, files)) / 1e6  # a missing file: not known yet
        need = math.ceil(per_mb * megabytes)
        if limit is not None and need > limit:
            raise WorkflowError(
                f"{megabytes:,.0f} MB of input need {key} {need:,}, more than limits.{key} "
                f"({limit:,}); raise it, or {remedy}"
            )
        wanted = (base + need) * attempt
        return wanted if limit is None else min(wanted, limit)

    return amount


SMALLER_SAMPLE = "make several samples of the input"


def listed(files):
    """The files of an input, which may be one or several."""
    return [files] if isinstance(files, str) else files


def models_of(task):
    """The files that identify the models of a task."""
    return [f"{OUT}/{name}" for name, model in MODELS.items() if task in model.tasks]


def job_threads(section):
    """Threads of one job: as set, else at most 8, beyond which parallel jobs gain more."""
    return section.threads or min(workflow.resource_settings.cores or 8, 8)


def status_files(wildcards):
    """An input function: the outcomes of all records of a sample in each task."""
    sample = wildcards.sample
    return [
        file
        for task in settings.tasks
        for file in (
            expand(f"{OUT}/{sample}/{task}/{{bundle}}.status.tsv", bundle=BUNDLES[sample])
            if by_bundle(task)
            else [f"{OUT}/{sample}/{task}/status.tsv"]
        )
    ]


def by_bundle(task):
    """Whether a task has a table of outcomes for each bundle; `score` may have one in all."""
    return task != "score" or settings.score.saturation


def status_flags(wildcards):
    """A parameter: where the outcomes of all tasks are, as command-line flags."""
    folder = f"{OUT}/{wildcards.sample}"
    places = {
        task: f"{folder}/{task}" if by_bundle(task) else f"{folder}/{task}/status.tsv"
        for task in settings.tasks
    }
    return shlex.join(f"--status={task}={place}" for task, place in places.items())


def add_merge_rule(table, part, options=""):
    """Add the rule that merges the tables of all bundles, whose pattern is `part`, into `table`."""

    rule:
        name:
            f"merge_{Path(table).stem}"
        input:
            of_bundles(f"{OUT}/{{sample}}/{part}"),
        output:
            f"{OUT}/{{sample}}/{table}",
        log:
            f"{OUT}/logs/merge/{{sample}}/{table}.log",
        benchmark:
            f"{OUT}/benchmarks/merge/{{sample}}/{table}.tsv"
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
            f"merge: {table} of all bundles of sample {{wildcards.sample}}"
        shell:
            f"{{params.esm}} aggregate tables {options} --out={{output:q}} -- {{input:q}}"
            " 2>&1 | tee -- {log:q}"
