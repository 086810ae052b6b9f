"""The tables of the reference pages, and the same tables made from the program.

`python -m tests.reference_page` brings the tables of commands, flags and config keys up to date, by
hand: then look at the difference. No test writes a page.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from esm_pipeline.cli import command_parser
from esm_pipeline.settings import Settings
from esm_pipeline.settings.section import Section
from esm_pipeline.tasks import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "workflow/docs"
KEYS_PAGE = ROOT / "config/README.md"
DEFAULT = re.compile(r" \(default: (.*)\)$")
FLAG_IN_TEXT = re.compile(r"(?<![^\s(])--[a-z][a-z-]*[a-z]")
SHARED_FLAGS = re.compile(r"\(#([a-z-]+-flags)\)")
"""A link to a table of flags that several commands share."""

Row = list[str]


class Table(NamedTuple):
    """A Markdown table: the heading above it, the text between them, its columns and rows."""

    heading: str
    text: str
    kind: str  # name of the first column
    rows: list[Row]
    lines: slice  # of the page, those of the rows

    @property
    def names(self) -> list[str]:
        """What the heading names as code: commands or files."""
        return re.findall("`([^`]+)`", self.heading)


def read_tables(page: str) -> list[Table]:
    """Return the tables of a page, in order."""
    found: list[Table] = []
    heading, text = "", ""
    lines = page.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("#"):
            heading, text = line.lstrip("# "), ""
        elif line.startswith("| ---"):
            first = number + 1
            last = next((n for n in range(first, len(lines)) if lines[n][:1] != "|"), len(lines))
            rows = [cells_of(row) for row in lines[first:last]]
            found.append(
                Table(heading, text, cells_of(lines[number - 1])[0], rows, slice(first, last))
            )
        elif not line.startswith("|"):
            text += line + "\n"
    return found


def cells_of(line: str) -> Row:
    """Return the cells of a line of a table."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def line_of(row: Iterable[str]) -> str:
    """Return the line of a table that has these cells."""
    return "|" + "|".join(f" {cell} ".replace("|", "\\|") for cell in row).replace("  ", " ") + "|"


def code(text: str) -> str:
    """Return text as Markdown code, and nothing as nothing."""
    return f"`{text}`" if text else ""


# What the program says.


def argument_rows(parser: argparse.ArgumentParser) -> list[Row]:
    """Return argument, default and meaning of each argument of a parser, as `--help` shows them."""
    formatter = parser.formatter_class(parser.prog)
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        meaning = (action.help or "").replace("%%", "%")
        default = found[1] if (found := DEFAULT.search(meaning)) else ""
        default = "required" if is_required(action) else code(default.replace("None", ""))
        name = formatter._format_action_invocation(action)
        rows.append([code(name), default, coded_flags(DEFAULT.sub("", meaning))])
    return rows


def coded_flags(text: str) -> str:
    """Return text with its flags as Markdown code, but for what is code already."""
    parts = text.split("`")
    parts[::2] = (FLAG_IN_TEXT.sub(r"`\g<0>`", part) for part in parts[::2])
    return "`".join(parts)


def is_required(action: argparse.Action) -> bool:
    """Whether a command fails without the argument."""
    return action.required and action.nargs != argparse.ZERO_OR_MORE


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a command's own commands, by name."""
    groups = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return {name: inner for group in groups for name, inner in group.choices.items()}


@cache
def commands() -> dict[str, list[Row]]:
    """Return the arguments of each command, and of `aggregate embed` and the like."""
    found: dict[str, list[Row]] = {}
    for command in COMMANDS:
        parser = command_parser(command)
        inner = subparsers_of(parser)
        own = argument_rows(parser)
        if own or not inner:
            found[command] = own
        found |= {f"{command} {name}": argument_rows(one) for name, one in inner.items()}
    return found


def config_rows(section: type[Section] = Settings, prefix: str = "") -> Iterator[Row]:
    """Yield key, default and meaning of each key of the config file."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from config_rows(inner, f"{prefix}{name}.")
        else:
            yield [
                code(prefix + name),
                code(json.dumps(field.get_default())),
                field.description or "",
            ]


# What the pages should say.


def shared_by(table: Table, tables: Sequence[Table]) -> list[Table]:
    """Return the tables of shared flags that the text above `table` links to."""
    linked = SHARED_FLAGS.findall(table.text)
    return [one for one in tables if one.heading.lower().replace(" ", "-") in linked]


def expected_rows(table: Table, tables: Sequence[Table]) -> list[Row]:
    """Return the rows that a table of commands, flags or keys should have; others as they are."""
    if table.kind == "command":
        return [[f"[`{name}`](#{name})", command.help] for name, command in COMMANDS.items()]
    if table.kind == "key" and table.heading == "Keys":
        return [*config_rows()]
    if table.kind != "argument":
        return table.rows
    if table.names:
        shared = {argument_of(row) for one in shared_by(table, tables) for row in one.rows}
        return [row for row in commands()[table.names[0]] if argument_of(row) not in shared]
    user = next(one for one in tables if table in shared_by(one, tables))
    arguments = {argument_of(row) for row in table.rows}
    return [row for row in commands()[user.names[0]] if argument_of(row) in arguments]


def argument_of(row: Row) -> str:
    """Return the flag of a row, or the name of its argument, without what it takes."""
    return row[0].strip("`").split(" ")[0]


def updated(page: str) -> str:
    """Return the page with the rows that its tables should have; right tables stay as they are."""
    lines, tables = page.splitlines(), read_tables(page)
    for table in reversed(tables):
        rows = expected_rows(table, tables)
        if rows != table.rows:
            lines[table.lines] = map(line_of, rows)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Bring the pages up to date."""
    for path in (*DOCS.glob("*.md"), KEYS_PAGE):
        path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
