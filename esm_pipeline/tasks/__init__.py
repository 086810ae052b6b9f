"""Tasks: what the command line and the workflow run.

Each module listed here has `add_arguments(parser)`, `outputs(args) -> Outputs` (what it writes,
claimed before anything is read) and `run(args) -> int` (an exit code); one that runs on shards also
`SUFFIX` and `aggregate`, one that runs a model `MODEL_SETTINGS` and `check_model(args)`. None
imports torch before it needs it, so that light tasks load none.
"""

import importlib
from types import ModuleType
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command's module lies below this package, and the command's help text."""

    module: str
    help: str


COMMANDS = {
    "embed": Command(
        "embed.command", "representations of every sequence of a FASTA file, into HDF5"
    ),
    "fold": Command(
        "fold.command", "a structure of every sequence of a FASTA file, with its confidences"
    ),
    "structures": Command(
        "fold.structures", "write what `fold` computed as PDB or mmCIF files, with their table"
    ),
    "score": Command(
        "score.command", "how likely variants are: tables of mutations, or every substitution"
    ),
    "classify": Command(
        "classify.command",
        "labels and probabilities by a fine-tuned model, of sequences or residues",
    ),
    "classes": Command(
        "classify.classes", "the table of classes, from the arrays that classify made"
    ),
    "heatmaps": Command(
        "score.heatmaps", "pictures of all substitutions of proteins, from a saturation.h5"
    ),
    "download": Command(
        "run.download", "fetch a model once, say where it lies and which it is, and check it"
    ),
    "shard": Command("run.shard", "validate FASTA files, remove duplicates, cut them into shards"),
    "split": Command("score.split", "validate a table of variants, cut it into shards"),
    "join": Command("score.join", "put the scores of the shards behind the table of variants"),
    "aggregate": Command(
        "run.aggregate", "gather the shards of a task into one result, with every record in it"
    ),
    "provenance": Command(
        "run.provenance", "write down versions, model, settings and inputs of the results"
    ),
    "report": Command(
        "run.report",
        "a page with counts, reasons, a map of the embeddings, confidence of structures",
    ),
    "verify": Command(
        "run.verify", "check that results are as they were written, by their digests"
    ),
    "verdict": Command("run.verdict", "count what became of every record; fail if any failed"),
}
"""Every command of the command line, by its name."""


def module_of(command: str) -> ModuleType:
    """The module of a command, imported now."""
    return importlib.import_module(f"{__name__}.{COMMANDS[command].module}")


def commands_with(name: str) -> dict[str, ModuleType]:
    """The modules of the commands that define `name`."""
    modules = {command: module_of(command) for command in COMMANDS}
    return {command: module for command, module in modules.items() if hasattr(module, name)}
