"""The parser of a command: help in groups, with examples; errors in one line, with a suggestion."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NoReturn

INPUT_OUTPUT = "input and output"
MODEL_GROUP = "model"
COMPUTED_GROUP = "what to compute"
VARIANT_GROUP = "table of variants"
STRUCTURE_GROUP = "files of each structure"
SPEED_GROUP = "speed and memory"
UNUSABLE_GROUP = "records that cannot be used as they are"
JOB_GROUP = "for jobs of the workflow"
FLAG_GROUPS = (
    *(INPUT_OUTPUT, MODEL_GROUP, COMPUTED_GROUP, VARIANT_GROUP, STRUCTURE_GROUP),
    *(SPEED_GROUP, UNUSABLE_GROUP, JOB_GROUP),
)
"""Titles of the groups of flags, in the order of the help."""

USAGE = "usage: "
LINE_WIDTH = 78
SIMILARITY = 0.7
"""How similar, from 0 to 1, a mistyped word is to what was meant."""

NO_BREAK = "\u00a0"
INVALID_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)


def group_of(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """Return the group of `parser` with this title, which is added if there is none."""
    for group in parser._action_groups:
        if group.title == title:
            return group
    return parser.add_argument_group(title)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` with the most similar of `known`, or nothing."""
    names = {one.lstrip("-"): one for one in known}
    near = difflib.get_close_matches(given.lstrip("-"), names, n=1, cutoff=SIMILARITY)
    return f"; did you mean {names[near[0]]}?" if near else ""


def escaped(text: str) -> str:
    """`text` with control and invisible characters written as escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def help_width() -> int:
    """Columns that a help takes: those of the terminal, but at most 100."""
    return max(40, min(100, shutil.get_terminal_size().columns) - 2)


class ParagraphFormatter(argparse.HelpFormatter):
    """Wraps each paragraph of a description, but for one with indented lines, such as examples."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"width": help_width(), **options})

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines = textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)
        return lines or [""]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(
            one if "\n " in one else "\n".join(self._split_lines(one, width)) for one in paragraphs
        )


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports errors in one line, and shows its flags in groups."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options = {"allow_abbrev": False, "formatter_class": ParagraphFormatter, **options}
        super().__init__(*args, **options)
        self._positionals.title, self._optionals.title = "arguments", "other flags"

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse; a flag that is similar to a known one is an error that names that one."""
        given = list(sys.argv[1:] if args is None else args)
        self._refuse_mistyped(given)
        return super().parse_known_args(given, namespace)

    def _refuse_mistyped(self, args: Sequence[str]) -> None:
        inner = {name for one in self._actions for name in choices_of(one)} if self.inner else set()
        for one in takewhile(lambda arg: arg != "--" and arg not in inner, args):
            name = one.partition("=")[0]
            if name.startswith("--") and " " not in one and name not in self._option_string_actions:
                flags = [*self._option_string_actions]
                if near := did_you_mean(name.lower().replace("_", "-"), flags):
                    self.error(f"unrecognized arguments: {name}{near}")

    @property
    def inner(self) -> bool:
        """Whether it has commands of its own."""
        return self._subparsers is not None

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and one line that points to the help."""
        if message.endswith("expected one argument"):
            message += "; where a value begins with '-', write --flag=VALUE"
        if found := INVALID_CHOICE.search(message):
            message += did_you_mean(found[1], re.findall(r"[\w.-]+", found[2]))
        self.exit(2, f"{self.prog}: {escaped(message)} (see {self.prog} --help)\n")

    def format_help(self) -> str:
        """Return the help: a short usage line, then the flags by group."""
        places = {title: place for place, title in enumerate(FLAG_GROUPS)}
        last, inner = self._optionals, self._subparsers
        is_optional = any(not one.required for one in self._actions if choices_of(one))
        after = [last, *([inner] if inner and is_optional else [])]
        self._action_groups.sort(
            key=lambda one: (one in after, places.get(str(one.title), -1), one is not last)
        )
        if not places.keys() & {group.title for group in self._action_groups}:
            last.title = "flags"
        self.usage = self.usage or short_usage(self)
        return super().format_help()


def choices_of(action: argparse.Action) -> Iterable[str]:
    """Return the names of the commands that an action of a parser chooses from."""
    return action.choices or () if isinstance(action, argparse._SubParsersAction) else ()


def short_usage(parser: Parser) -> str:
    """Return the usage with the required flags only; `[flags]` stands for all others."""
    formatter = parser._get_formatter()
    one_of = [group for group in parser._mutually_exclusive_groups if group.required]
    alternatives = {id(action) for group in one_of for action in group._group_actions}
    words = ["[flags]"]
    places = []
    for action in parser._actions:
        name = action.metavar if isinstance(action.metavar, str) else action.dest
        shown = formatter._format_args(action, name.upper() if action.option_strings else name)
        shown = name if " " in name else shown
        shown = f"[{shown}]" if choices_of(action) and not action.required else shown
        if not action.option_strings:
            places.append(shown)
        elif action.required and id(action) not in alternatives:
            words.append(f"{action.option_strings[0]}{NO_BREAK}{shown}")
    for group in one_of:
        each = [formatter._format_action_invocation(one) for one in group._group_actions]
        words.append(f"({' | '.join(each)})".replace(" ", NO_BREAK))
    text = " ".join([parser.prog, *words, *places]).replace("%", "%%")
    prefix = " " * len(USAGE)  # which stands before the text
    return "\n         ".join(wrapped(prefix + text)).removeprefix(prefix)


def wrapped(text: str) -> list[str]:
    """Return the lines of a text, broken only at spaces; a no-break space becomes a space."""
    lines = textwrap.wrap(text, LINE_WIDTH - 4, break_long_words=False, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in lines]


def glued(line: str) -> str:
    """Return a command line with no-break spaces between flags and their values."""
    return re.sub(r"(?<= )(--[\w-]+) (?=[^-])", rf"\1{NO_BREAK}", line)


def examples_text(examples: Iterable[tuple[str, str]]) -> str:
    """Return the end of a help: command lines, and below each what it does."""
    lines = []
    for line, purpose in examples:
        parts = wrapped(glued(line))
        lines.append("  " + " \\\n      ".join(parts))
        lines += textwrap.wrap(
            purpose, LINE_WIDTH, initial_indent="      # ", subsequent_indent="      # "
        )
    return "\n".join(["examples:", *lines]).replace("%", "%%")
