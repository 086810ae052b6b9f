"""Tasks: what the command line and the workflow run.

Each module listed here has `add_arguments(parser)` and `run(args) -> int` (an exit code). A module
is imported only when its task runs, so that light tasks load no torch.
"""

TASKS = {
    "embed": "representations of every sequence of a FASTA file, into HDF5",
    "fold": "a structure of every sequence of a FASTA file, with its confidences",
    "structures": "write what `fold` computed as PDB or mmCIF files, with their table",
    "download": "fetch a model once, say where it lies and which it is, and check it",
    "shard": "validate FASTA files, remove duplicates, cut them into shards",
    "aggregate": "gather the shards of a task into one result, with every record in it",
    "provenance": "write down versions, model, settings and inputs of the results",
    "report": "a page with counts, reasons, a map of the embeddings, confidence of structures",
    "verdict": "count what became of every record; fail if any failed",
}
"""Name of each task, which is also its module and its command, and its help text."""
