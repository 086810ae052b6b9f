"""The command line: `esm-pipeline TASK …`.

Exit codes: 0 all records ok or skipped; 1 something failed; 2 bad input, settings, weights or
paths, told in one line; 128 + n ended by signal n: 129 its terminal is gone (SIGHUP), 130
interrupted (SIGINT), 143 terminated (SIGTERM). A signal leaves no temporary file and no process,
and is obeyed within seconds; see `interruption`. A bug keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from esm_pipeline.errors import EsmPipelineError, InputError
from esm_pipeline.interruption import INTERRUPTED, obeying_signals
from esm_pipeline.locks import claim
from esm_pipeline.sections import COMMAND_LINE, Section, check
from esm_pipeline.settings import MOST_SHARDS
from esm_pipeline.tasks import TASKS

S = TypeVar("S", bound=Section)

OUT_OF_MEMORY = "memory ran out; use a machine with more, or allow the job more"

DISK_ERRORS = {
    errno.ENOSPC: "no space left on the disk; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "larger than a file may be; raise the limit (ulimit -f) or choose another place",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.EROFS: "the file system is read-only; choose another place for the output",
    errno.EIO: "the disk fails to read or write; check it and run the command again",
    errno.ENOLCK: "the file system has no locks to give; check how it is mounted",
    errno.ESTALE: "the network file system lost it; run the command again",
    errno.ENOMEM: OUT_OF_MEMORY,
    errno.EACCES: "permission denied; choose another place or change its permissions",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and one line that says where help is."""
        if message.endswith("expected one argument"):
            message += "; where a value begins with '-', write --flag=VALUE"
        self.exit(2, f"{self.prog}: {visible(message)} (see {self.prog} --help)\n")


def add_flags(parser: argparse.ArgumentParser, section: type[Section]) -> None:
    """Add a flag for each field of `section`, with its default and description."""
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        text = ",".join(map(str, default)) if isinstance(default, list) else default
        description = (field.description or "").replace("%", "%%")
        parser.add_argument(
            "--" + name.replace("_", "-"),
            dest=name,
            metavar=name.split("_")[-1].upper(),
            help=f"{description} (default: {text})",
        )


def section_from(section: type[S], args: argparse.Namespace) -> S:
    """The `section` that the flags of `add_flags` describe. Raises InputError."""
    values: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        text = getattr(args, name)
        if text is not None:
            is_list = isinstance(field.get_default(call_default_factory=True), list)
            parts = [part.strip() for part in text.split(",")] if text else []
            values[name] = parts if is_list else text
    return check(section, values, COMMAND_LINE)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every task with records has."""
    parser.add_argument(
        "--on-failure",
        choices=("error", "keep"),
        default="error",
        help="when a record failed: exit with 1, or with 0 (default: error)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    add_unchanged(parser)


def add_unchanged(parser: argparse.ArgumentParser) -> None:
    """Add the flag of what reads inputs that were read before."""
    parser.add_argument(
        "--unchanged",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="digests of inputs, as `shard` or `split` wrote them: stop if one has changed since",
    )


def build_parser() -> Parser:
    """The parser with the names of all tasks; a task's own flags are added when it is chosen."""
    from esm_pipeline import __version__

    parser = Parser(
        prog="esm-pipeline",
        description="Embeddings, variant scores, classes and structures of proteins, with ESM models.",
    )
    parser.add_argument("--version", action="version", version=f"esm-pipeline {__version__}")
    commands = parser.add_subparsers(dest="task", metavar="TASK", required=True, title="tasks")
    for name, description in TASKS.items():
        commands.add_parser(name, help=description, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one task and return the exit code."""
    is_program = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    name, _ = build_parser().parse_known_args(argv[:1])
    task = importlib.import_module(f"esm_pipeline.tasks.{name.task}")
    about = str(task.__doc__).splitlines()[0]
    parser = Parser(prog=f"esm-pipeline {name.task}", description=about, allow_abbrev=False)
    task.add_arguments(parser)
    args = parser.parse_args(argv[1:])
    try:
        with obeying_signals(ends=is_program), claim(task.outputs(args)):
            return int(task.run(args))
    except EsmPipelineError as error:
        return fail(parser.prog, str(error))
    except OSError as error:
        place = error.filename2 or error.filename
        if error.errno not in DISK_ERRORS and not place:
            raise
        told = DISK_ERRORS.get(error.errno or 0, f"{error.strerror}; choose another place")
        return fail(parser.prog, f"{place}: {told}" if place else told)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        return fail(parser.prog, OUT_OF_MEMORY)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED


def ran_out_of_memory(error: Exception) -> bool:
    """Whether `error` says that memory ran out: Python's, NumPy's or PyTorch's."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from esm_pipeline.tasks.batching import is_out_of_memory

    return is_out_of_memory(error)


def fail(program: str, message: str) -> int:
    """Say on standard error, a line for each problem, why nothing was done."""
    for line in message.split("\n"):
        print(f"{program}: {visible(line)}", file=sys.stderr)
    return 2


def visible(text: str) -> str:
    """`text` with what a terminal would obey, or a reader not see, written as escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def exit_code(failed: int, on_failure: str) -> int:
    """The exit code of a task that ran to its end with `failed` failed records."""
    return 1 if failed and on_failure == "error" else 0


def number_of_shards(text: str) -> int:
    """The number of shards that an argument gives."""
    if not re.fullmatch("[0-9]{1,6}", text) or not 0 < int(text) <= MOST_SHARDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MOST_SHARDS:,}")
    return int(text)


def require_file(path: str) -> str:
    """`path`, or InputError if there is no such file."""
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file; check the path")
    return path
