"""The blocks of code in the pages that users read, and what a page asks the test to leave out.

A block in a language of `RUN` is run; `text`, or no language, is output or a format to read. A
comment directly before a block, `<!-- not run: needs a cluster -->`, leaves it out. At most
`MOST_LEFT_OUT` blocks may be left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "config/README.md",
        *(ROOT / "workflow/docs").glob("*.md"),
        *(ROOT / "esm_pipeline").rglob("*.md"),
    )
)
"""The pages, relative to the clone."""

RUN = ("bash", "python")
READ = ("yaml", "text", "")
"""Languages of blocks that are run, and of those that are not; there are no others."""

MOST_LEFT_OUT = 5

FENCE = re.compile(r"^ *```(.*)$")
LEFT_OUT = re.compile(r"^<!-- not run: (.+) -->$")
COMMAND = re.compile(
    r"^(\$ )?(\.venv/bin/)?(esm-pipeline|snakemake|python3?|pip|make|git|source|import|from) ",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A block of code: its page, the line of its fence, its language and text.

    `reason`: why it is not run, if the page says so.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str = ""

    @property
    def place(self) -> str:
        """Page and line, as in an error of a compiler."""
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the test runs it."""
        return self.language in RUN and not self.reason

    @property
    def looks_like_commands(self) -> bool:
        """Whether a line begins as a command or as Python does."""
        return COMMAND.search(self.text) is not None


def blocks_of(text: str, page: str = "") -> list[Block]:
    """Return the blocks of a page's text, in order."""
    found: list[Block] = []
    inside: list[str] | None = None
    language, start, reason = "", 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if fence and inside is None:
            inside, language, start = [], fence[1].strip(), number
        elif fence and inside is not None:
            found.append(Block(page, start, language, "\n".join(inside) + "\n", reason))
            inside, reason = None, ""
        elif inside is not None:
            inside.append(line)
        elif line.strip():
            mark = LEFT_OUT.match(line)
            reason = mark[1] if mark else ""
    assert inside is None, f"{page}:{start}: this block has no end"
    return found


def read_blocks(page: str) -> list[Block]:
    """Return the blocks of a page, named relative to the clone."""
    return blocks_of((ROOT / page).read_text(encoding="utf-8"), page)
