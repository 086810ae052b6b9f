"""The reference pages say what the program does, no more and no less; links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from esm_pipeline.structure.quality import FLAGS
from tests.example_results import READERS, datasets_of, files_named, files_written, make, sizes_of
from tests.reference_page import (
    DOCS,
    KEYS_PAGE,
    ROOT,
    Row,
    commands,
    config_rows,
    read_tables,
    shared_by,
)

Existing = dict[tuple[str, str], dict[str, None]]
"""Kind and file → the names that there are, in their order."""

PAGES = sorted(DOCS.glob("*.md"))
PAGE = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
"""The reference pages as one text."""

EVERY_HDF5 = "Every HDF5 file"
"""The heading above what all HDF5 files have."""

PLACEHOLDERS = {
    "folder": "[0-9]{5}",
    "index": "[0-9]+",
    "kind": "mean|bos",
    "label": "[a-z]+",
    "layer": "[0-9]+",
    "place": "[0-9]+",
    "shard": "[0-9]{5}",
    "strategy": "masked_marginal|masked_marginal_joint|wt_marginal|pseudo_log_likelihood",
    "task": "embed|score|classify|fold",
}
"""What the placeholders in names stand for; others for anything within a folder."""


def pattern_of(name: str) -> re.Pattern[str]:
    """A pattern for a documented name with placeholders, such as `mean/{layer}`."""
    parts = re.split(r"\{([a-z]+)\}", name)
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = (f"(?:{PLACEHOLDERS.get(part, '[^/]+')})" for part in parts[1::2])
    return re.compile("".join(parts))


def differences(documented: Iterable[str], existing: Iterable[str]) -> list[str]:
    """What exists without a row, what has a row and does not exist, and what has two rows."""
    documented, existing = list(documented), list(existing)
    patterns = {one: pattern_of(one) for one in documented}
    return [
        *(f"no row: {one}" for one in existing if not fits(one, patterns.values())),
        *(
            f"does not exist: {one}"
            for one, by in patterns.items()
            if not any(map(by.fullmatch, existing))
        ),
        *(f"two rows: {one}" for one in patterns if documented.count(one) > 1),
    ]


def fits(name: str, patterns: Iterable[re.Pattern[str]]) -> bool:
    """Whether one of the patterns matches the whole name."""
    return any(pattern.fullmatch(name) for pattern in patterns)


def rows_of(page: str, kind: str, name: str = "") -> list[Row]:
    """The rows of all tables of a kind, or only those about the file `name`."""
    headings = [one for one in read_tables(page) if one.kind == kind]
    if name:
        shared = EVERY_HDF5 if name.endswith(".h5") else None
        headings = [one for one in headings if name in one.names or one.heading == shared]
    return [row for one in headings for row in one.rows]


def names_of(page: str, kind: str, name: str = "") -> list[str]:
    """The first cells of these rows, without backticks."""
    return [row[0].strip("`") for row in rows_of(page, kind, name)]


def without_row(page: str, start: str) -> str:
    """The page without the first line that starts with `start`."""
    line = next(line for line in page.splitlines(keepends=True) if line.startswith(start))
    return page.replace(line, "", 1)


def with_row(page: str, start: str, new: str) -> str:
    """The page with the line `new` after the first line that starts with `start`."""
    line = next(line for line in page.splitlines(keepends=True) if line.startswith(start))
    return page.replace(line, f"{line}{new}\n", 1)


# Commands and keys.


def argument_texts(page: str) -> Iterator[str]:
    """Command, argument, default and meaning of each row, shared flags with each command."""
    tables = read_tables(page)
    for table in tables:
        if table.kind == "argument":
            rows = [row for one in (table, *shared_by(table, tables)) for row in one.rows]
            yield from (" ".join([name, *row]) for name in table.names for row in rows)


def command_differences(page: str) -> list[str]:
    """Differences between the page and the parsers of all commands."""
    found = {name: rows for name, rows in commands().items() if not name.startswith("download ")}
    arguments = [" ".join([name, *row]) for name, rows in found.items() for row in rows]
    listed = [name.split("`")[1] for name in names_of(page, "command")]
    names = dict.fromkeys(name.split()[0] for name in found)
    return [*differences(listed, names), *differences(argument_texts(page), arguments)]


def test_every_command_and_flag():
    assert command_differences(PAGE) == []
    assert len(list(argument_texts(PAGE))) > 150


def test_download_checks_a_task_by_flags_of_that_task():
    found = commands()
    tasks = [name.split()[1] for name in found if name.startswith("download ")]
    assert tasks == ["embed", "fold", "score", "classify"]
    for task in tasks:
        rows = found[f"download {task}"]
        assert len(rows) > 5
        assert [row for row in rows if row not in found[task]] == []


FLAG = "| `--layers LAYERS[,...]`"
ROWS = [FLAG, "| `--gaps {skip,remove}`", "| [`join`](#join)", "| `RESULTS`"]


@pytest.mark.parametrize(
    "start", [FLAG, "| `--gaps {skip,remove}`", "| [`join`](#join)", "| `RESULTS`"]
)
def test_a_missing_flag_is_seen(start):
    assert command_differences(without_row(PAGE, start)) != []


@pytest.mark.parametrize(
    "new", ["| `--colour COLOUR` | `red` | colour |", "| `--layers LAYERS[,...]` | `-2` | layers |"]
)
def test_an_invented_flag_is_seen(new):
    assert command_differences(with_row(PAGE, FLAG, new)) != []


def test_another_default_is_seen():
    changed = PAGE.replace("RECYCLES` | `3` |", "RECYCLES` | `4` |")
    assert len(command_differences(changed)) == 2


def test_the_reference_leads_to_the_keys():
    assert "(../../config/README.md#keys)" in PAGE


@pytest.mark.parametrize("start", ["| `embed.layers`", "| `outdir`"])
def test_a_missing_and_an_invented_key_are_seen(start):
    page = KEYS_PAGE.read_text()
    for changed in (without_row(page, start), with_row(page, start, "| `new` | `0` | new |")):
        (keys,) = [table for table in read_tables(changed) if table.heading == "Keys"]
        assert keys.rows != list(config_rows())


# Results.


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    make(folder)
    return folder


def described(page: str) -> list[tuple[str, str]]:
    """Kind and file of each table of what is in a file."""
    return [
        (one.kind, name) for one in read_tables(page) if one.kind in READERS for name in one.names
    ]


@pytest.fixture(scope="module")
def existing(examples: Path) -> Existing:
    found = {("file", ""): dict.fromkeys(files_written(examples))}
    for kind, name in described(PAGE):
        files = files_named(examples, name)
        found[kind, name] = dict.fromkeys(one for file in files for one in READERS[kind](file))
    return found


def content_differences(page: str, existing: Existing) -> list[str]:
    """Differences between the page and the files."""
    return [
        f"{name} {kind}: {one}"
        for kind, name in {*existing, *described(page)}
        for one in differences(names_of(page, kind, name), existing.get((kind, name), ()))
    ]


def test_every_file_and_what_is_in_it(existing):
    assert content_differences(PAGE, existing) == []
    assert len(existing) > 25
    assert all(existing.values())


def test_flags_have_their_own_sentences():
    """Those that the report and `flags.tsv` have: what one means is written once."""
    meanings, rows = [
        table.rows for table in read_tables(PAGE) if table.kind in ("flag", "in `flag`")
    ]
    assert [(row[0].strip("`"), row[1]) for row in meanings] == [
        (name, flag.meaning) for name, flag in FLAGS.items()
    ]
    assert [(row[0].strip("`"), row[1], row[2]) for row in rows] == [
        (name, flag.residues or "none: it concerns the whole structure", flag.value or "none")
        for name, flag in FLAGS.items()
    ]


def test_every_file_with_names_in_it_leads_to_them():
    files = [row for row in rows_of(PAGE, "file") if re.search("(tsv|h5|json|npz)`", row[0])]
    assert len(files) > 15
    assert [row for row in files if "](results.md#" not in row[-1]] == []


@pytest.mark.parametrize(
    "start",
    [
        "| `{sample}/embeddings.h5`",
        "| `OUT.ids.tsv`",
        "| `plddt`",
        "| `{task}_reason`",
        "| `value.{label}`",
        "| `contacts_offset`",
        "| `log_odds.{label}`",
        "| `row`",
        "| `alphabet`",
        "| `not_of_this_run`",
        "| `step`",
        "| `very_low_plddt`",
    ],
)
def test_a_missing_and_an_invented_name_are_seen(existing, start):
    assert content_differences(without_row(PAGE, start), existing) != []
    invented = start.replace("`", "`new_", 1) + " | | |"
    assert content_differences(with_row(PAGE, start, invented), existing) != []


def wrong_arrays(page: str, examples: Path) -> list[str]:
    """Datasets whose shape or type is not that of their row."""
    wrong = []
    for name in {name for kind, name in described(page) if kind == "dataset"}:
        rows = [
            (pattern_of(row[0].strip("`")), *row[1:3]) for row in rows_of(page, "dataset", name)
        ]
        for file in files_named(examples, name):
            sizes = sizes_of(file)
            for dataset, (shape, kind) in datasets_of(file).items():
                (row,) = [row for row in rows if row[0].fullmatch(dataset)]
                if not same_shape(row[1], shape, sizes) or kind not in row[2].split(" or "):
                    wrong.append(f"{name}: {dataset} {shape} {kind}")
    return wrong


def same_shape(text: str, shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Whether an array has the shape `text`, such as (U + 1,); D and K may be any number."""
    wanted = [part for part in text.strip("()").replace(" ", "").split(",") if part]
    return len(wanted) == len(shape) and all(
        part in ("D", "K")
        or size == sum(sizes[one] if one in sizes else int(one) for one in part.split("+"))
        for part, size in zip(wanted, shape, strict=True)
    )


def test_every_array_has_its_shape_and_type(examples):
    assert wrong_arrays(PAGE, examples) == []
    for old, new in (
        ("(R, 14, 3)", "(R, 3, 14)"),
        ("(U + 1,) | int64", "(U,) | int64"),
        ("| uint8", "| int8"),
    ):
        assert old in PAGE
        assert wrong_arrays(PAGE.replace(old, new), examples) != []


# Pages and their links.


def named_pages(entries: list[object]) -> list[str]:
    """The paths in the navigation of the site, in order."""
    found: list[str] = []
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            found += named_pages(value) if isinstance(value, list) else [str(value)]
    return found


def test_the_navigation_names_every_page():
    settings = yaml.safe_load((DOCS / "mkdocs.yml").read_text())
    named = named_pages(settings["nav"])
    assert all((ROOT / path).is_file() for path in named)
    assert sorted(ROOT / path for path in named if path.startswith("workflow/")) == PAGES
    assert len(named) == len(set(named))


LINKED = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", KEYS_PAGE),
    *(ROOT / "tests/benchmarks/README.md", ROOT / "esm_pipeline/model/README.md"),
    *PAGES,
]


def anchors_of(page: str) -> set[str]:
    """What a link to a heading of a page may end in, as GitHub makes it."""
    headings = re.findall("^#+ (.*)$", re.sub("^```.*?^```", "", page, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, page: str) -> list[str]:
    """Relative links in a page that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text())):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    page = path.read_text(encoding="utf-8")
    assert broken_links(path, page) == []
    lost = ["no/such/file.md", "#no-such-heading"]
    assert broken_links(path, page + "".join(f"[a]({link})" for link in lost)) == lost
