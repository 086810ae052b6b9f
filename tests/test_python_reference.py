"""The reference of the Python functions: every option with its default, and nothing that is not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest

import esm_pipeline
from esm_pipeline.formats.results.open import KINDS, RESULT_CLASSES
from esm_pipeline.settings.sections import CleaningSettings, ComputeSettings
from esm_pipeline.tasks.common.functions import CommonOptions
from esm_pipeline.tasks.embed.function import EmbedResult
from esm_pipeline.tasks.fold.function import FoldResult, PredictedStructure
from esm_pipeline.tasks.score.functions import ProteinScores, SaturationResult
from tests.reference_page import DOCS, Row, read_tables

PAGE = (DOCS / "reference.md").read_text(encoding="utf-8")
CLASSES = {
    one.__name__: one for one in (*RESULT_CLASSES, EmbedResult, FoldResult, PredictedStructure)
} | {one.__name__: one for one in (ProteinScores, SaturationResult)}
FUNCTIONS = ("embed", "score", "saturation", "fold", "classify")
RUN_DEFAULTS = {"quiet": "False", "on_failure": "error", "on_skipped": "warn", "revision": ""}
IN_WORDS = {"token_budget": "that of the command", "threads": "those of PyTorch"}


def rows_of(page: str, kind: str) -> list[Row]:
    """The rows of the tables of a kind in the section on Python."""
    section = page[page.index("\n## Python\n") :]
    return [row for table in read_tables(section) if table.kind == kind for row in table.rows]


def options_of(function: Callable[..., object]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]


def function_differences(page: str) -> list[str]:
    """Functions whose row is missing, or has other options."""
    rows = {
        row[0].strip("`"): re.findall("`([a-z_]+)`", row[1]) for row in rows_of(page, "function")
    }
    return [
        name
        for name in {*FUNCTIONS, *rows}
        if rows.get(name) != options_of(getattr(esm_pipeline, name, lambda: None))
    ]


def option_differences(page: str) -> list[str]:
    """Shared options whose row is missing, or has another default."""
    found = {row[0].strip("`"): row[1].strip("`") for row in rows_of(page, "option")}
    expected = {**RUN_DEFAULTS, **IN_WORDS}
    for name in CommonOptions.__annotations__.keys() - expected.keys():
        section = ComputeSettings if name in ComputeSettings.model_fields else CleaningSettings
        expected[name] = str(section.model_fields[name].default)
    return [name for name in {*found, *expected} if found.get(name) != expected.get(name)]


def lost_members(page: str) -> list[str]:
    """Members that do not exist."""
    names = [row[0].strip("`") for row in rows_of(page, "member")]
    return [name for name in names if not has_member(*name.split("."))]


def has_member(owner: str, name: str) -> bool:
    kind = CLASSES.get(owner)
    return hasattr(kind, name) or name in getattr(kind, "__dataclass_fields__", ())


def test_every_function_and_option():
    assert function_differences(PAGE) == []
    assert option_differences(PAGE) == []
    assert len(rows_of(PAGE, "member")) > 25
    assert lost_members(PAGE) == []
    assert all(f"`{kind}`" in PAGE for kind in KINDS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("| `layers`, ", "| "),
        ("| `fold` | `num_recycles`", "| `fold` | `recycles`"),
        ("| `saturation` | `strategy`", "| `saturate` | `strategy`"),
        ("| `gaps` | `skip` |", "| `gaps` | `remove` |"),
        ("| `genetic_code` | `11`", "| `code` | `11`"),
        ("`EmbedResult.mean`", "`EmbedResult.means`"),
        ("`Structures.to_pandas`", "`Structure.to_pandas`"),
    ],
)
def test_a_difference_is_seen(old, new):
    assert PAGE.count(old) >= 1
    changed = PAGE.replace(old, new)
    assert [*function_differences(changed), *option_differences(changed), *lost_members(changed)]
