"""The command line: `esm-pipeline TASK …`.

Exit codes: 0 all records ok or skipped; 1 something failed; 2 bad input, settings, weights or
paths, reported in one line; 128 + n ended by signal n: 129 terminal closed (SIGHUP), 130
interrupted (SIGINT), 143 terminated (SIGTERM). A command ends within seconds of a signal and leaves
no temporary file and no process; see `interruption`. A bug keeps its traceback.
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

OUT_OF_MEMORY_MESSAGE = "out of memory; use a machine with more, or request more for the job"

DISK_ERRORS = {
    errno.ENOSPC: "no space left on the disk; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "larger than a file may be; raise the limit (ulimit -f) or choose another place",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.EROFS: "the file system is read-only; choose another place for the output",
    errno.EIO: "the disk fails to read or write; check it and run the command again",
    errno.ENOLCK: "the file system has no locks available; check how it is mounted",
    errno.ESTALE: "the network file system lost the file; run the command again",
    errno.ENOMEM: OUT_OF_MEMORY_MESSAGE,
    errno.EACCES: "permission denied; choose another place or change its permissions",
}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and one line that points to the help."""
        if message.endswith("expected one argument"):
            message += "; where a value begins with '-', write --flag=VALUE"
        self.exit(2, f"{self.prog}: {escaped(message)} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The parser with all commands, without their own flags."""
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
        why = DISK_ERRORS.get(error.errno or 0, f"{error.strerror}; choose another place")
        return fail(parser.prog, f"{place}: {why}" if place else why)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        return fail(parser.prog, OUT_OF_MEMORY_MESSAGE)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED


def ran_out_of_memory(error: Exception) -> bool:
    """Whether `error` is an out-of-memory error of Python, NumPy or PyTorch."""
    if isinstance(error, MemoryError) or "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from esm_pipeline.model.inference.batching import is_out_of_memory

    return is_out_of_memory(error)


def fail(program: str, message: str) -> int:
    """Print each line of `message` to standard error; returns the exit code 2."""
    for line in message.split("\n"):
        print(f"{program}: {escaped(line)}", file=sys.stderr)
    return 2


def escaped(text: str) -> str:
    """`text` with control and invisible characters written as escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
