"""Settings as command-line flags, flags that several commands share, and exit codes."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from pathlib import Path
from typing import Any, TypeVar

from esm_pipeline.errors import InputError
from esm_pipeline.settings import MOST_SHARDS
from esm_pipeline.settings.messages import flag
from esm_pipeline.settings.section import COMMAND_LINE, Section, check, texts
from esm_pipeline.settings.sections import BundleSettings

S = TypeVar("S", bound=Section)


def add_flags(parser: argparse.ArgumentParser, section: type[Section]) -> None:
    """Add a flag for each field of `section`, with its default and description."""
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        text = ",".join(map(str, default)) if isinstance(default, list) else default
        description = (field.description or "").replace("%", "%%")
        parser.add_argument(
            flag(name),
            dest=name,
            metavar=name.split("_")[-1].upper(),
            help=f"{description} (default: {text})",
        )


def section_from(section: type[S], args: argparse.Namespace) -> S:
    """The `section` with the values of the flags of `add_flags`. Raises InputError."""
    values: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        text = getattr(args, name)
        if text is not None:
            is_list = isinstance(field.get_default(call_default_factory=True), list)
            parts = [part.strip() for part in text.split(",")] if text else []
            values[name] = parts if is_list else text
    return check(section, values, COMMAND_LINE)


def flags(section: Section, *, execution: bool = False) -> str:
    """The fields that are set and change results (or, with `execution`, do not) as shell text."""
    found = texts(section, execution=execution)
    return " ".join(shlex.quote(f"{flag(name)}={text}") for name, text in found.items())


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every command that processes records."""
    parser.add_argument(
        "--on-failure",
        choices=("error", "keep"),
        default="error",
        help="when a record failed: exit with 1, or with 0 (default: error)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    add_unchanged(parser)


def add_unchanged(parser: argparse.ArgumentParser) -> None:
    """Add the flag of commands that read inputs which another command has read before."""
    parser.add_argument(
        "--unchanged",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="digests of inputs, as `shard` or `split` wrote them: stop if one has changed since",
    )


def add_least(parser: argparse.ArgumentParser) -> None:
    """Add the flag of commands that write bundles: the size of the smallest job."""
    least = BundleSettings.model_fields["least"]
    parser.add_argument(
        "--least",
        type=least_residues,
        default=least.default,
        metavar="RESIDUES",
        help=f"{least.description} (default: {least.default})",
    )


def least_residues(text: str) -> int:
    """The residues of the smallest job in an argument."""
    if not re.fullmatch("[0-9]{1,12}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def number_of_parts(text: str) -> int:
    """The number of bundles or ranges in an argument."""
    if not re.fullmatch("[0-9]{1,6}", text) or not 0 < int(text) <= MOST_SHARDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {MOST_SHARDS:,}")
    return int(text)


def require_file(path: str) -> str:
    """`path`. Raises InputError if there is no such file."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file; check the path")
    return path


def exit_code(failed: int, on_failure: str) -> int:
    """The exit code of a completed task with `failed` failed records."""
    return 1 if failed and on_failure == "error" else 0
