"""Every command and every snippet of the pages works as it stands, after `make demo`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.image import imread, imsave

from esm_pipeline.errors import InputError
from esm_pipeline.settings import load_settings
from tests.docs.blocks import (
    MOST_LEFT_OUT,
    PAGES,
    READ,
    ROOT,
    RUN,
    Block,
    blocks_of,
    read_blocks,
)
from tests.docs.clone import copy_tree, environment, make_repository, write_hub

BLOCKS = [block for page in PAGES for block in read_blocks(page)]
PAGES_WITH_CODE = [
    page for page in PAGES if any(block.is_run for block in BLOCKS if block.page == page)
]

DRY = ("config/README.md", "workflow/docs/running.md")
"""Pages whose workflows are only planned: README.md runs one, and tests/workflow many like them."""

PLAN = 'snakemake() { command snakemake --dry-run --quiet all "$@"; }; export -f snakemake'

PICTURES = ROOT / "workflow/docs/pictures"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Terminal:
    """Where blocks are run, and with which variables."""

    folder: Path
    variables: dict[str, str]

    def run(self, blocks: list[Block], before: str = "") -> list[str]:
        """Run blocks; return what each printed, or fail as one does."""
        task = {
            "before": before,
            "blocks": [vars(block) | {"place": block.place} for block in blocks],
        }
        work, outputs = (self.folder.with_suffix(end) for end in (".json", ".outputs.json"))
        work.write_text(json.dumps(task))
        python = Path(self.variables["ENVIRONMENT"], "bin/python")
        result = subprocess.run(
            [python, ROOT / "tests/docs/run_page.py", work, outputs],
            cwd=self.folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, result.stdout
        said: list[str] = json.loads(outputs.read_text())
        return said

    def copy(self, folder: Path) -> Terminal:
        """Return a terminal in a copy of the folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Terminal(folder, self.variables)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """The clone that the commands of README.md make, `make demo` among them."""
    folder = tmp_path_factory.mktemp("docs")
    repository = make_repository(folder / "repository", write_hub(folder / "hub"))
    (folder / "empty").mkdir()
    with environment(folder, repository) as variables:
        Terminal(folder / "empty", variables).run(runnable("README.md"))
        yield Terminal(folder / "empty/esm_pipeline", variables)


def runnable(page: str) -> list[Block]:
    """The blocks of a page that are run."""
    return [block for block in BLOCKS if block.page == page and block.is_run]


# Every block.


def test_every_block_of_the_readme(terminal: Terminal) -> None:
    """They were run to make the clone for the other pages."""
    for place in ("results/demo/embeddings.h5", "results/my/embeddings.h5", "my.h5", "scores.csv"):
        assert (terminal.folder / place).exists(), place
    assert len(runnable("README.md")) > 5


@pytest.mark.parametrize("page", [page for page in PAGES_WITH_CODE if page != "README.md"])
def test_every_block_of_a_page(page: str, terminal: Terminal, tmp_path: Path) -> None:
    wanted = runnable(page)
    own = terminal.copy(tmp_path / "clone")
    said = own.run(wanted, PLAN if page in DRY else "")
    printed = dict(zip(wanted, said, strict=True))
    for block, shown in pairwise(block for block in BLOCKS if block.page == page):
        if shown.language == "text":
            assert same_text(printed[block], shown.text), f"{shown.place}\n{printed[block]}"
    for picture in sorted((own.folder / "workflow/docs/pictures").glob("*.png")):
        assert same_picture(picture, PICTURES / picture.name), picture.name


@pytest.mark.parametrize(
    "text",
    [
        "```bash\nesm-pipeline embed --model demo my.fasta out.h5\n```",  # no environment
        "```bash\nsource .venv/bin/activate\nesm-pipeline embed --modle demo my.fasta out.h5\n```",
        "```bash\nfalse\ntrue\n```",
        "```python\nfrom esm_pipeline import no_such_name\n```",
        "```python\nx = 1\n```\n\n```python\nassert x == 2\n```",
        "```bash\nsource .venv/bin/activate\nsnakemake --cores 1 --config modle=demo\n```",
    ],
)
def test_a_block_that_fails_is_seen(text: str, terminal: Terminal, tmp_path: Path) -> None:
    blocks = blocks_of(text, "page")
    with pytest.raises(AssertionError, match=f"page:{blocks[-1].line}: this block fails"):
        terminal.copy(tmp_path / "clone").run(blocks)


def test_blocks_of_a_page_share_folder_variables_and_session(
    terminal: Terminal, tmp_path: Path
) -> None:
    text = """
```bash
mkdir inner && cd inner && export WORD=found
```

```python
from pathlib import Path
word = Path.cwd().name
```

```bash
echo "$WORD in $(basename "$PWD")"
```

```python
print(word)
```
"""
    said = terminal.copy(tmp_path / "clone").run(blocks_of(text, "page"))
    assert said == ["", "", "found in inner\n", "inner\n"]


# Blocks that are not run.


def test_few_blocks_are_left_out_and_each_has_a_reason() -> None:
    left = [block for block in BLOCKS if block.reason]
    print("\n".join(f"not run: {block.place}: {block.reason}" for block in left))
    assert len(left) <= MOST_LEFT_OUT, [block.place for block in left]
    assert all(len(block.reason) > 10 for block in left)
    assert len([block for block in BLOCKS if block.is_run]) > 40


def test_every_block_has_a_language_that_says_what_it_is() -> None:
    assert [block.place for block in BLOCKS if block.language not in (*RUN, *READ)] == []


def test_no_command_hides_in_a_block_that_is_not_run() -> None:
    read = [block for block in BLOCKS if block.language in ("text", "")]
    assert [block.place for block in read if block.looks_like_commands] == []
    for hidden in ("esm-pipeline embed", "$ make demo", "from esm_pipeline import fold"):
        assert blocks_of(f"```\n{hidden}\n```")[0].looks_like_commands


def test_a_mark_leaves_out_the_next_block_alone() -> None:
    text = "<!-- not run: needs a cluster -->\n\n```bash\na\n```\n\n```bash\nb\n```\n"
    assert [block.reason for block in blocks_of(text)] == ["needs a cluster", ""]
    text = "<!-- not run: needs a cluster -->\n\nSome words.\n\n```bash\na\n```\n"
    assert [block.reason for block in blocks_of(text)] == [""]


def accepts(text: str) -> bool:
    """Whether a part of a config file is valid."""
    try:
        load_settings({"fasta": str(ROOT / "esm_pipeline/data/demo.fasta"), **yaml.safe_load(text)})
    except InputError:
        return False
    return True


def test_every_part_of_a_config_file_is_valid() -> None:
    parts = [block for block in BLOCKS if block.language == "yaml"]
    assert parts
    assert [block.place for block in parts if not accepts(block.text)] == []
    assert not accepts("embed: {leyers: [-1]}")


# What the pages show.


def same_text(printed: str, shown: str) -> bool:
    """Whether what a page shows was printed; numbers may differ by 2 %, or by 0.01."""
    if NUMBER.sub("", printed).split() != NUMBER.sub("", shown).split():
        return False
    found, wanted = NUMBER.findall(printed), NUMBER.findall(shown)
    pairs = zip(found, wanted, strict=False)
    return len(found) == len(wanted) and all(
        abs(float(a) - float(b)) <= max(0.02 * abs(float(b)), 0.011) for a, b in pairs
    )


def test_another_text_is_seen() -> None:
    assert same_text("right: 57 of 80\n", "right:   57 of 80")
    assert not same_text("right: 57 of 80", "right: 61 of 80")
    assert not same_text("right: 57 of 80", "wrong: 57 of 80")
    assert not same_text("right: 57 of 80 80", "right: 57 of 80")


def same_picture(one: Path, other: Path) -> bool:
    """Whether two pictures have the same size, and at most 0.5 % of the points differ visibly."""
    a, b = (np.asarray(imread(path), dtype=float)[..., :3] for path in (one, other))
    return a.shape == b.shape and float((np.abs(a - b).max(-1) > 0.2).mean()) < 0.005


def test_pictures_are_small_and_another_one_is_seen() -> None:
    pictures = sorted(PICTURES.glob("*.png"))
    assert len(pictures) >= 3
    assert [path.name for path in pictures if path.stat().st_size > 100_000] == []
    for one, other in pairwise(pictures):
        assert same_picture(one, one)
        assert not same_picture(one, other)


def test_a_bar_of_another_colour_is_seen(tmp_path: Path) -> None:
    picture = imread(PICTURES / "nearest.png").copy()
    picture[340:361, 360:590, :3] = (0.73, 0.73, 0.73)  # the last bar, grey
    imsave(tmp_path / "grey.png", picture)
    assert not same_picture(tmp_path / "grey.png", PICTURES / "nearest.png")


def test_every_picture_is_made_by_a_block_and_shown() -> None:
    for path in sorted(PICTURES.iterdir()):
        pages = [page for page in PAGES if f"](pictures/{path.name})" in (ROOT / page).read_text()]
        assert len(pages) == 1, path.name
        made = [b for b in BLOCKS if b.page == pages[0] and f"pictures/{path.name}" in b.text]
        assert len(made) == 1, path.name


def test_the_site_is_built_and_a_wrong_link_is_an_error(tmp_path: Path) -> None:
    clone = copy_tree(tmp_path / "clone")
    page = clone / "workflow/docs/index.md"
    text = page.read_text()
    for wrong in ("", "[a](no_such_page.md)", "[a](reference.md#no-such-heading)"):
        page.write_text(f"{text}\n{wrong}\n")
        build = ["-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
        result = subprocess.run(
            [sys.executable, *build, "--config-file", clone / "workflow/docs/mkdocs.yml"],
            capture_output=True,
            text=True,
        )
        assert (result.returncode == 0) == (not wrong), result.stderr
        assert ("WARNING" in result.stderr) == bool(wrong)
    assert (tmp_path / "site/index.html").exists()
