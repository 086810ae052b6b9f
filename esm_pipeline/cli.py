"""The command line: `esm-pipeline TASK …`.

Exit codes: 0 all records ok or skipped; 1 something failed; 2 bad input, settings, weights or
paths, told in one line; 128 + n ended by signal n: 129 its terminal is gone (SIGHUP), 130
interrupted (SIGINT), 143 terminated (SIGTERM). A signal leaves no temporary file and no process,
and is obeyed within seconds; see `interruption`. A bug keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from typing import NoReturn

from esm_pipeline.errors import EsmPipelineError
from esm_pipeline.interruption import INTERRUPTED, obeying_signals
from esm_pipeline.locks import claim
from esm_pipeline.tasks import COMMANDS, module_of

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


def build_parser() -> Parser:
    """The parser with the names of all tasks; a task's own flags are added when it is chosen."""
    from esm_pipeline import __version__

    parser = Parser(
        prog="esm-pipeline",
        description="Embeddings, variant scores, classes and structures of proteins by ESM models.",
    )
    parser.add_argument("--version", action="version", version=f"esm-pipeline {__version__}")
    commands = parser.add_subparsers(dest="task", metavar="TASK", required=True, title="tasks")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one task and return the exit code."""
    is_program = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    name, _ = build_parser().parse_known_args(argv[:1])
    task = module_of(name.task)
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
    from esm_pipeline.model.inference.batching import is_out_of_memory

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
