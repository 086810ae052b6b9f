"""Fetch a model once, into the hub's cache, and say where it lies and which it is.

Prints three lines, name and value with a tab between: path, revision (the commit; empty for what is
not of the hub) and weights_sha256. Every other command then needs no network. Followed by a task
and its settings, it also checks what that task would ask of the model, without loading it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from esm_pipeline.flags import add_flags
from esm_pipeline.locks import Outputs
from esm_pipeline.tasks import commands_with, module_of
from esm_pipeline.tasks.common.endings import ending_of
from esm_pipeline.tasks.common.model_file import SUFFIX, describe, find_checkpoint, write_model_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `download`."""
    parser.add_argument(
        "--model", required=True, help="hub id, folder with a checkpoint, fair-esm file, or demo"
    )
    parser.add_argument("--revision", help="commit, tag or branch of a hub model")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="write which it is, for --model of the tasks"
    )
    tasks = parser.add_subparsers(dest="task", metavar="TASK", title="then check it for a task")
    for name, module in commands_with("MODEL_SETTINGS").items():
        task = tasks.add_parser(name, help=f"with the settings of {name}")
        add_flags(task, module.MODEL_SETTINGS)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `download` writes, beside the hub's cache."""
    return Outputs([args.out])


def run(args: argparse.Namespace) -> int:
    """Fetch, check and tell; returns 0."""
    from esm_pipeline.model import EsmConfig

    if args.out:
        ending_of(args.out, (SUFFIX,))
    checkpoint = find_checkpoint(args.model, args.revision)
    facts = describe(checkpoint, EsmConfig.from_pretrained(checkpoint.source, **checkpoint.where))
    if args.task:
        module_of(args.task).check_model(args)
    if args.out:
        write_model_file(args.out, facts)
    told = {"path": checkpoint.source, "revision": checkpoint.revision or ""}
    for name, value in {**told, "weights_sha256": facts["weights_sha256"]}.items():
        print(name, value, sep="\t")
    return 0
