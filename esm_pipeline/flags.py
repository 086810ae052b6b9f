"""Settings as command-line flags, flags that several commands share, and exit codes."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from esm_pipeline.errors import InputError
from esm_pipeline.parsers import (
    COMPUTED_GROUP,
    JOB_GROUP,
    SPEED_GROUP,
    STRUCTURE_GROUP,
    UNUSABLE_GROUP,
    VARIANT_GROUP,
    group_of,
)
from esm_pipeline.settings import (
    MOST_SHARDS,
    CleaningSettings,
    StructureSettings,
    VariantSettings,
)
from esm_pipeline.settings.messages import flag
from esm_pipeline.settings.section import COMMAND_LINE, Section, check, is_execution, texts
from esm_pipeline.settings.sections import MOST_THREADS, BundleSettings, ComputeSettings

S = TypeVar("S", bound=Section)


GROUP_OF_SECTION: dict[type[Section], str] = {
    CleaningSettings: UNUSABLE_GROUP,
    ComputeSettings: SPEED_GROUP,
    StructureSettings: STRUCTURE_GROUP,
    VariantSettings: VARIANT_GROUP,
}
"""Group of the flags of a section in the help; of all other sections it is `COMPUTED_GROUP`."""

KEY = re.compile("`([a-z_]+)`")
"""A key of the configuration in a description."""

LONGEST_CHOICES = 50
"""Characters of the allowed values that stand next to a flag; more are named in its description."""


def add_flags(parser: argparse.ArgumentParser, section: type[Section]) -> None:
    """Add a flag for each field of `section`, with its allowed values, default and description."""
    for name in section.model_fields:
        group_of(parser, flag_group(section, name)).add_argument(
            flag(name), dest=name, metavar=placeholder(section, name), help=flag_help(section, name)
        )


def flag_group(section: type[Section], name: str) -> str:
    """The title of the group of a flag: that of the first section which has the field."""
    if is_execution(section, name):
        return SPEED_GROUP
    bases = [
        base for base in reversed(section.__mro__) if name in vars(base).get("__annotations__", {})
    ]
    return GROUP_OF_SECTION.get(bases[0], COMPUTED_GROUP) if bases else COMPUTED_GROUP


def flag_help(section: type[Section], name: str) -> str:
    """The description of a field, with flags in place of keys, and its default if it has one."""
    field = section.model_fields[name]
    text = KEY.sub(
        lambda found: flag(found[1]) if found[1] in section.model_fields else found[0],
        field.description or "",
    )
    default = field.get_default(call_default_factory=True)
    shown = ",".join(map(str, default)) if isinstance(default, list) else str(default)
    has_default = default is not None and default is not False and shown
    return (
        f"{text} (default: {shown})".replace("%", "%%") if has_default else text.replace("%", "%%")
    )


def placeholder(section: type[Section], name: str) -> str:
    """What stands for the value of a flag: the allowed values, or the last word of its name."""
    annotation = section.model_fields[name].annotation
    word = name.split("_")[-1].upper()
    is_list = get_origin(annotation) is list
    if annotation is bool:
        return "{true,false}"
    inner = get_args(annotation)[0] if is_list else annotation
    if get_origin(inner) is not Literal:
        return f"{word}[,...]" if is_list else word
    shown = f"{{{','.join(map(str, get_args(inner)))}}}"
    if len(shown) > LONGEST_CHOICES:
        return word
    return f"{shown}[,...]" if is_list else shown


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
    group_of(parser, UNUSABLE_GROUP).add_argument(
        "--on-failure",
        choices=("error", "keep"),
        default="error",
        help="when a record failed: exit with 1, or with 0 (default: error)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    add_unchanged(parser)


def add_unchanged(parser: argparse.ArgumentParser) -> None:
    """Add the flag of commands that read inputs which another command has read before."""
    group_of(parser, JOB_GROUP).add_argument(
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
    group_of(parser, JOB_GROUP).add_argument(
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


def number_of_threads(text: str) -> int:
    """The number of threads or processes in an argument."""
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {MOST_THREADS:,}")
    return int(text)


def require_file(path: str) -> str:
    """`path`. Raises InputError if there is no such file."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file; check the path")
    return path


def exit_code(failed: int, on_failure: str) -> int:
    """The exit code of a completed task with `failed` failed records."""
    return 1 if failed and on_failure == "error" else 0
