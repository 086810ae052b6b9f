"""The command line: `esm-pipeline COMMAND …`.

Exit codes: 0 all records ok or skipped; 1 something failed; 2 bad input, settings, weights or
paths, reported in one line; 128 + n ended by signal n: 129 terminal closed (SIGHUP), 130
interrupted (SIGINT), 143 terminated (SIGTERM). A command ends within seconds of a signal and leaves
no temporary file and no process; see `interruption`. A bug keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import sys
import textwrap
from collections.abc import Sequence

from esm_pipeline.errors import EsmPipelineError
from esm_pipeline.interruption import INTERRUPTED, obeying_signals
from esm_pipeline.locks import claim
from esm_pipeline.parsers import Parser, did_you_mean, escaped, examples_text, help_width
from esm_pipeline.tasks import COMMANDS, GROUP_TITLES, USER_GROUP, module_of

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


MAIN_EXAMPLES = (
    ("esm-pipeline models", "the known models: names, sizes, memory, what for"),
    (
        "esm-pipeline embed --model esm2_t12_35M_UR50D proteins.fasta embeddings.h5",
        "one vector for each protein, by a model of ESM-2 that runs on a laptop",
    ),
    (
        "esm-pipeline score --model esm2_t33_650M_UR50D --saturation wt.fasta all.tsv",
        "the effect of every substitution in each protein",
    ),
)
"""Examples of the help without a command."""

ABOUT = "Embeddings, variant scores, classes and structures of proteins by ESM models."
MORE_HELP = "esm-pipeline COMMAND --help shows the flags of a command, with examples."


def build_parser() -> Parser:
    """The parser of what stands before a command: help and version, or the command's name."""
    from esm_pipeline.version import __version__

    parser = Parser(
        prog="esm-pipeline",
        usage="esm-pipeline COMMAND [flags] ...",
        description="\n\n".join([ABOUT, *map(overview, GROUP_TITLES), MORE_HELP]),
        epilog=examples_text(MAIN_EXAMPLES),
    )
    parser.add_argument("--version", action="version", version=f"esm-pipeline {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def overview(title: str) -> str:
    """The commands of a group, with what each does."""
    lines = [f"{title}:"]
    for name, command in COMMANDS.items():
        if command.group == title:
            lines += textwrap.wrap(
                command.help,
                help_width(),
                initial_indent=f"  {name:<12}",
                subsequent_indent=" " * 14,
            )
    return "\n".join(lines).replace("%", "%%")


def command_parser(name: str) -> Parser:
    """The parser of a command, with its flags and examples.

    The help of a command for users begins with the whole docstring of its module.
    """
    command = module_of(name)
    about = str(command.__doc__)
    parser = Parser(
        prog=f"esm-pipeline {name}",
        description=about if COMMANDS[name].group == USER_GROUP else about.splitlines()[0],
        epilog=examples_text(command.EXAMPLES),
    )
    command.add_arguments(parser)
    return parser


def chosen_command(argv: Sequence[str]) -> str:
    """The command that the first argument names; exits with 2 if there is none."""
    parser = build_parser()
    found, unknown = parser.parse_known_args(argv[:1])
    if found.command in COMMANDS:
        return str(found.command)
    if found.command is not None:
        near = did_you_mean(found.command, COMMANDS)
        parser.error(f"no command {found.command!r}{near}")
    if unknown:
        parser.error(f"{unknown[0]}: a command comes first, such as esm-pipeline embed")
    parser.print_help(sys.stderr)
    parser.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    is_program = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    name = chosen_command(argv)
    task = module_of(name)
    parser = command_parser(name)
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
