# Settings, samples, and what all rules share. Only the settings of the package are imported here:
# this file is read again for every job.
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

HOME = Path(str(workflow.current_basedir)).resolve().parents[1]
if unusable := {":", "{", "}"} & {*str(HOME)}:
    raise WorkflowError(
        f"{HOME}: PYTHONPATH and Snakemake cannot take {' '.join(sorted(unusable))} in the path of "
        "this workflow; move its folder to a path without"
    )
sys.path.insert(0, str(HOME))

from esm_pipeline.errors import IN_WORKFLOW, InputError
from esm_pipeline.settings.sections import AS_VALIDATED, CleaningSettings, VariantSettings, flags
from esm_pipeline.settings import file_state, load_settings, shard_names


def esm(wildcards, resources):
    """A parameter: the shell text that starts the package's command line.

    Snakemake takes PYTHONPATH away from a job in a conda environment, so it is set here. Without
    such an environment the interpreter is the one that runs Snakemake, whatever the PATH says. -P
    keeps the working directory, which may hold anything, off the module path.

    A parameter that follows from resources reruns nothing when it changes: a clone may move.
    Messages name keys of the config file, not flags: the variable says so.
    """
    isolated = {DeploymentMethod.CONDA, DeploymentMethod.APPTAINER}
    own = isolated & set(workflow.deployment_settings.deployment_method)
    python = "python" if own else shlex.quote(sys.executable)
    variables = f"PYTHONPATH={shlex.quote(str(HOME))} {IN_WORKFLOW}=1"
    return f"{variables} {python} -P -m esm_pipeline"


def all_settings(wildcards, resources):
    """A parameter that reruns nothing: the settings as JSON."""
    return settings.model_dump_json()


def chosen_config():
    """The configuration; an input on the command line takes the place of the file's."""
    given = set(workflow.config_settings.overwrite_config)
    replaced = {"fasta", "samples", "variants"} - given if given & {"fasta", "samples"} else set()
    return {key: value for key, value in config.items() if key not in replaced}


def read_config():
    """The checked settings; each sample's FASTA files, and its table of variants if it has one.

    And how many shards there are of each, the models, what `classify` classifies, and the names of
    each sample's results.
    """
    try:
        settings = load_settings(chosen_config(), "config")
        samples, tables = settings.inputs(), settings.tables()
        counts = {sample: settings.shard_count(files) for sample, files in samples.items()}
        parts = {sample: settings.table_shard_count(table) for sample, table in tables.items()}
        models = settings.models()
        classified = settings.classified() if "classify" in settings.tasks else ""
        results = settings.results()
    except InputError as error:
        raise WorkflowError(str(error)) from None
    return settings, samples, counts, tables, parts, models, classified, results


def shards_of(pattern):
    """An input function: `pattern` for every shard of the sample."""
    return lambda wildcards: for_shards(pattern, wildcards.sample, SHARDS)


def table_shards_of(pattern):
    """An input function: `pattern` for every shard of the sample's table of variants."""
    return lambda wildcards: for_shards(pattern, wildcards.sample, TABLE_SHARDS)


def for_shards(pattern, sample, counts):
    """`pattern` for every shard of the sample, of which there are so many."""
    return expand(pattern, sample=sample, shard=shard_names(counts[sample]))


def models_of(task):
    """The files that tell which models a task runs."""
    return [f"{OUT}/{name}" for name, model in MODELS.items() if task in model.tasks]


def job_threads(section):
    """Threads of one job: as set, or up to 8, beyond which jobs side by side gain more."""
    return section.threads or min(workflow.resource_settings.cores or 8, 8)


def result_names(wildcards):
    """A parameter: what there is of a sample, all taken together; with others, all is told anew."""
    return sorted({name for names in NAMES.values() for name in names})


def status_flags(wildcards, input):
    """A parameter: the statuses of all tasks, as command-line flags."""
    pairs = zip(settings.tasks, input.statuses, strict=True)
    return shlex.join(f"--status={task}={file}" for task, file in pairs)


settings, SAMPLES, SHARDS, TABLES, TABLE_SHARDS, MODELS, CLASSIFIED, NAMES = read_config()
OUT = settings.outdir
RESULTS = [f"{OUT}/{sample}/{name}" for sample, names in NAMES.items() for name in names]
cleaning_flags = flags(settings.shard.part(CleaningSettings))
validated_flags = flags(CleaningSettings(**AS_VALIDATED))  # for jobs that read what `shard` wrote
