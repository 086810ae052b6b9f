# The settings, the samples, and what the rules share. Snakemake reads this file again for every
# job, so it imports only the settings of the package, and no torch.
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

HOME = Path(str(workflow.current_basedir)).resolve().parents[1]
if unusable := {":", "{", "}"} & {*str(HOME)}:
    raise WorkflowError(
        f"{HOME}: the path of this workflow contains {' '.join(sorted(unusable))}, which "
        "PYTHONPATH or Snakemake would misread; move the folder to a path without such characters"
    )
sys.path.insert(0, str(HOME))

from esm_pipeline.errors import IN_WORKFLOW, InputError
from esm_pipeline.flags import flags
from esm_pipeline.settings import AS_VALIDATED, CleaningSettings, load_settings, shard_names


def chosen_config():
    """The configuration; an input given on the command line replaces that of the config file."""
    given = set(workflow.config_settings.overwrite_config)
    replaced = {"fasta", "samples", "variants"} - given if given & {"fasta", "samples"} else set()
    return {key: value for key, value in config.items() if key not in replaced}


try:
    settings = load_settings(chosen_config(), "config")
    SAMPLES = settings.inputs()  # the FASTA files of each sample
    SHARDS = {sample: settings.shard_count(files) for sample, files in SAMPLES.items()}
    TABLES = settings.tables()  # the variant table of each sample that has one
    TABLE_SHARDS = {sample: settings.table_shard_count(table) for sample, table in TABLES.items()}
    MODELS = settings.models()  # by the file that identifies each
    CLASSIFIED = settings.classified() if "classify" in settings.tasks else ""
    NAMES = settings.results()  # the names of each sample's results
except InputError as error:
    raise WorkflowError(str(error)) from None

OUT = settings.outdir
RESULTS = [f"{OUT}/{sample}/{name}" for sample, names in NAMES.items() for name in names]
cleaning_flags = flags(settings.shard.part(CleaningSettings))
validated_flags = flags(CleaningSettings(**AS_VALIDATED))  # for jobs that read what `shard` wrote


wildcard_constraints:
    sample="|".join(map(re.escape, SAMPLES)),
    shard=r"\d{5}",


def esm(wildcards, resources):
    """A parameter: the shell text that starts the package's command line.

    Snakemake removes PYTHONPATH from the environment of a conda job, so it is set here. Other jobs
    use the interpreter that runs Snakemake, whatever is on the PATH. -P keeps the working
    directory, which may contain anything, off the module path. The second variable makes messages
    name the keys of the config file, not flags.

    A parameter that depends on resources reruns nothing when it changes: a clone may move.
    """
    isolated = {DeploymentMethod.CONDA, DeploymentMethod.APPTAINER}
    has_own_python = isolated & set(workflow.deployment_settings.deployment_method)
    python = "python" if has_own_python else shlex.quote(sys.executable)
    variables = f"PYTHONPATH={shlex.quote(str(HOME))} {IN_WORKFLOW}=1"
    return f"{variables} {python} -P -m esm_pipeline"


def status_flags(wildcards, input):
    """A parameter: the statuses of all tasks, as command-line flags."""
    pairs = zip(settings.tasks, input.statuses, strict=True)
    return shlex.join(f"--status={task}={file}" for task, file in pairs)


def all_settings(wildcards, resources):
    """A parameter that reruns nothing when it changes: the settings as JSON."""
    return settings.model_dump_json()


def result_names(wildcards):
    """A parameter: the names of all results; when they change, the counts are made again."""
    return sorted({name for names in NAMES.values() for name in names})


def shards_of(pattern, counts):
    """An input function: `pattern` for every shard of the sample, which has `counts[sample]`."""

    def files(wildcards):
        names = shard_names(counts[wildcards.sample])
        return expand(pattern, sample=wildcards.sample, shard=names)

    return files


def models_of(task):
    """The files that identify the models of a task."""
    return [f"{OUT}/{name}" for name, model in MODELS.items() if task in model.tasks]


def job_threads(section):
    """Threads of one job: as set, else at most 8, beyond which parallel jobs gain more."""
    return section.threads or min(workflow.resource_settings.cores or 8, 8)
