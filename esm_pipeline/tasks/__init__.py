"""Tasks: what the command line and the workflow run.

Each module listed here has `add_arguments(parser)`, `outputs(args) -> Outputs` (what it writes,
claimed before anything is read) and `run(args) -> int` (an exit code); one that runs on shards also
`SUFFIX` and `aggregate`, one that runs a model `MODEL_SETTINGS` and `check_model(args)`. None
imports torch before it needs it, so that light tasks load none.
"""

import importlib
from types import ModuleType

TASKS = {
    "embed": "representations of every sequence of a FASTA file, into HDF5",
    "fold": "a structure of every sequence of a FASTA file, with its confidences",
    "structures": "write what `fold` computed as PDB or mmCIF files, with their table",
    "score": "how likely variants are: tables of mutations, or every substitution",
    "classify": "labels and probabilities by a fine-tuned model, of sequences or residues",
    "classes": "the table of classes, from the arrays that classify made",
    "heatmaps": "pictures of all substitutions of proteins, from a saturation.h5",
    "download": "fetch a model once, say where it lies and which it is, and check it",
    "shard": "validate FASTA files, remove duplicates, cut them into shards",
    "split": "validate a table of variants, cut it into shards",
    "join": "put the scores of the shards behind the table of variants",
    "aggregate": "gather the shards of a task into one result, with every record in it",
    "provenance": "write down versions, model, settings and inputs of the results",
    "report": "a page with counts, reasons, a map of the embeddings, confidence of structures",
    "verify": "check that results are as they were written, by their digests",
    "verdict": "count what became of every record; fail if any failed",
}
"""Name of each task, which is also its module and its command, and its help text."""


def tasks_with(name: str) -> dict[str, ModuleType]:
    """The modules of the tasks that have something of that name."""
    modules = {task: importlib.import_module(f"{__name__}.{task}") for task in TASKS}
    return {task: module for task, module in modules.items() if hasattr(module, name)}
