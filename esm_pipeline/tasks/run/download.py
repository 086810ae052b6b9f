"""Download a model once into the hub's cache, and print its path, revision and digest.

Prints three lines, each a name, a tab and a value: path, revision (the commit; empty for a local
model) and weights_sha256. All other commands then need no network. With a task and its settings,
it also checks that the model is suitable for the task, without loading it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from esm_pipeline.errors import IN_WORKFLOW
from esm_pipeline.files import shared_path
from esm_pipeline.flags import add_flags
from esm_pipeline.locks import Outputs
from esm_pipeline.tasks import commands_with, module_of
from esm_pipeline.tasks.common.model_file import (
    MODEL_HELP,
    SUFFIX,
    describe_model,
    find_checkpoint,
    write_model_file,
)
from esm_pipeline.tasks.common.outputs import ending_of
from esm_pipeline.tasks.common.progress import Speaker, waiting

EXAMPLES = (
    (
        "esm-pipeline download --model esm2_t33_650M_UR50D",
        "fetch a model, after which all commands run without network",
    ),
    (
        "esm-pipeline download --model esm2_t33_650M_UR50D --out model.json",
        "also write its commit and digest; `--model model.json` then means exactly these",
    ),
    (
        "esm-pipeline download --model esmfold_v1 fold --dtype bfloat16",
        "also check that `fold` can run it so",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `download`."""
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--revision", help="commit, tag or branch of a hub model")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="write the model file, for --model of the tasks",
    )
    tasks = parser.add_subparsers(dest="task", metavar="TASK", title="then check it for a task")
    for name, module in commands_with("MODEL_SETTINGS").items():
        task = tasks.add_parser(name, help=f"with the settings of {name}")
        add_flags(task, module.MODEL_SETTINGS)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `download` writes, apart from the hub's cache."""
    return Outputs([args.out])


def run(args: argparse.Namespace) -> int:
    """Download, check and print; returns 0."""
    from esm_pipeline.model import EsmConfig

    if args.out:
        ending_of(args.out, (SUFFIX,))
    checkpoint = find_checkpoint(args.model, args.revision, Speaker("download"))
    config = EsmConfig.from_pretrained(checkpoint.source, **checkpoint.where)
    with waiting(f"download: reading the weights of {checkpoint.name}"):
        facts = describe_model(checkpoint, config)
    if args.task:
        module_of(args.task).check_model(args)
    if args.out:
        write_model_file(args.out, facts)
    place = os.fspath(checkpoint.source)
    in_log = os.environ.get(IN_WORKFLOW)  # the workflow keeps what is printed, in `logs`
    print("path", shared_path(place) if in_log else place, sep="\t")
    print("revision", checkpoint.revision or "", sep="\t")
    print("weights_sha256", facts["weights_sha256"], sep="\t")
    return 0
