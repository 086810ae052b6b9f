"""Tasks: what the command line and the workflow run.

The module of each command has a docstring, with which its help begins; `EXAMPLES`, command lines
and what each does, with which it ends; `add_arguments(parser)`, `outputs(args) -> Outputs` (what it
writes, claimed before anything is read) and `run(args) -> int` (an exit code). A task that runs on
ranges also has `SUFFIX` and `aggregate`, one that runs a model `MODEL_SETTINGS` and
`check_model(args)`.
No module imports torch before it needs it, so that light commands load none.

To add a task: a folder here, a line in `COMMANDS`, a section of the settings, a row in the
workflow's table of tasks, and tests.
"""

import importlib
from types import ModuleType
from typing import Final, Literal, NamedTuple

USER_GROUP: Final = "commands"
WORKFLOW_GROUP: Final = "commands that the workflow runs in between"
GROUP_TITLES = (USER_GROUP, WORKFLOW_GROUP)
"""The groups of commands, in the order of the help."""


class Command(NamedTuple):
    """A command's module, relative to this package, its group in the help, and its help text."""

    module: str
    group: Literal["commands", "commands that the workflow runs in between"]
    help: str


COMMANDS = {
    "embed": Command(
        "embed.command", USER_GROUP, "write representations of all sequences in a FASTA file"
    ),
    "fold": Command(
        "fold.command", USER_GROUP, "predict the structures of all sequences in a FASTA file"
    ),
    "score": Command(
        "score.command",
        USER_GROUP,
        "score the variants in a table, or every substitution of each protein",
    ),
    "classify": Command(
        "classify.command", USER_GROUP, "label sequences or their residues with a fine-tuned model"
    ),
    "structures": Command(
        "fold.structures",
        USER_GROUP,
        "write predicted structures as PDB or mmCIF files, with their table",
    ),
    "classes": Command(
        "classify.classes", USER_GROUP, "write the results of `classify` as a table"
    ),
    "heatmaps": Command(
        "score.heatmaps", USER_GROUP, "draw the substitutions in a saturation.h5 as heatmaps"
    ),
    "models": Command(
        "run.models", USER_GROUP, "list the known models: names, sizes, memory, what for"
    ),
    "download": Command(
        "run.download",
        USER_GROUP,
        "fetch and check a model, and print its path, revision and digest",
    ),
    "export": Command(
        "run.export", USER_GROUP, "write results as Parquet, NumPy array, AnnData or UniProt's HDF5"
    ),
    "verify": Command(
        "run.verify", USER_GROUP, "compare results with the digests recorded for them"
    ),
    "shard": Command(
        "run.shard",
        WORKFLOW_GROUP,
        "validate FASTA files, remove duplicates and deal sequences into bundles",
    ),
    "split": Command(
        "score.split",
        WORKFLOW_GROUP,
        "validate a variant table and put its rows in an order for jobs",
    ),
    "join": Command("score.join", WORKFLOW_GROUP, "append the scores to the variant table"),
    "aggregate": Command(
        "run.aggregate",
        WORKFLOW_GROUP,
        "gather the results of a task for a bundle; merge tables of bundles",
    ),
    "report": Command(
        "run.report",
        WORKFLOW_GROUP,
        "write a page of record counts, reasons and pictures of the results",
    ),
    "verdict": Command(
        "run.verdict", WORKFLOW_GROUP, "count the outcomes of all records; fail if any failed"
    ),
    "provenance": Command(
        "run.provenance",
        WORKFLOW_GROUP,
        "record the versions, models, settings and inputs of the results",
    ),
}
"""All commands of the command line, by name."""


def module_of(command: str) -> ModuleType:
    """Import the module of a command."""
    return importlib.import_module(f"{__name__}.{COMMANDS[command].module}")


def commands_with(name: str) -> dict[str, ModuleType]:
    """The modules of the commands that define `name`."""
    modules = {command: module_of(command) for command in COMMANDS}
    return {command: module for command, module in modules.items() if hasattr(module, name)}
