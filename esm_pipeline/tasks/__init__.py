"""Tasks: what the command line and the workflow run.

The module of each command has `add_arguments(parser)`, `outputs(args) -> Outputs` (what it writes,
claimed before anything is read) and `run(args) -> int` (an exit code). A task that runs on ranges
also has `SUFFIX` and `aggregate`, one that runs a model `MODEL_SETTINGS` and `check_model(args)`.
No module imports torch before it needs it, so that light commands load none.

To add a task: a folder here, a line in `COMMANDS`, a section of the settings, a row in the
workflow's table of tasks, and tests.
"""

import importlib
from types import ModuleType
from typing import NamedTuple


class Command(NamedTuple):
    """A command's module, relative to this package, and its help text."""

    module: str
    help: str


COMMANDS = {
    "embed": Command("embed.command", "write representations of all sequences in a FASTA file"),
    "fold": Command("fold.command", "predict the structures of all sequences in a FASTA file"),
    "structures": Command(
        "fold.structures", "write predicted structures as PDB or mmCIF files, with their table"
    ),
    "score": Command(
        "score.command", "score the variants in a table, or every substitution of each protein"
    ),
    "classify": Command(
        "classify.command", "label sequences or their residues with a fine-tuned model"
    ),
    "classes": Command("classify.classes", "write the results of `classify` as a table"),
    "heatmaps": Command("score.heatmaps", "draw the substitutions in a saturation.h5 as heatmaps"),
    "download": Command(
        "run.download", "fetch and check a model, and print its path, revision and digest"
    ),
    "shard": Command(
        "run.shard", "validate FASTA files, remove duplicates and deal sequences into bundles"
    ),
    "split": Command(
        "score.split", "validate a variant table and put its rows in an order for jobs"
    ),
    "join": Command("score.join", "append the scores to the variant table"),
    "aggregate": Command(
        "run.aggregate", "gather the results of a task for a bundle; merge tables of bundles"
    ),
    "provenance": Command(
        "run.provenance", "record the versions, models, settings and inputs of the results"
    ),
    "report": Command(
        "run.report", "write a page of record counts, reasons and pictures of the results"
    ),
    "export": Command(
        "run.export", "write results as Parquet, NumPy array, AnnData or UniProt's HDF5"
    ),
    "verify": Command("run.verify", "compare results with the digests recorded for them"),
    "verdict": Command("run.verdict", "count the outcomes of all records; fail if any failed"),
}
"""All commands of the command line, by name."""


def module_of(command: str) -> ModuleType:
    """Import the module of a command."""
    return importlib.import_module(f"{__name__}.{COMMANDS[command].module}")


def commands_with(name: str) -> dict[str, ModuleType]:
    """The modules of the commands that define `name`."""
    modules = {command: module_of(command) for command in COMMANDS}
    return {command: module for command, module in modules.items() if hasattr(module, name)}
