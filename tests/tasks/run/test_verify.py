"""Results are checked against their digests: whatever differs is named, with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from esm_pipeline.cli import main
from esm_pipeline.formats.checksums import line, sha256, write_digests

TEXTS = {
    "report.html": "page",
    "verdict.txt": "nothing failed",
    "a/records.tsv": "index\n",
    "a/embeddings.h5": "numbers",
    "a/structures.tsv": "table",
}
PARTS = ["a/structures/00000/0_x.pdb", "a/structures/00000/1_y.pdb", "a/pae/00000.zip"]
AGAIN = "and run the workflow again"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of one sample, with structures in a folder and errors in an archive."""
    folder = tmp_path / "results"
    for name, text in {**TEXTS, **dict.fromkeys(PARTS, "atoms")}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    listing = folder / "a" / "structures.sha256"
    listing.write_text("".join(line(sha256(folder / name), name[2:]) for name in PARTS))
    (folder / "a" / "structures" / ".snakemake_timestamp").touch()
    digest = {name: {"sha256": sha256(folder / name)} for name in [*TEXTS, "a/structures.sha256"]}
    own = {name.removeprefix("a/"): facts for name, facts in digest.items() if name[:2] == "a/"}
    facts = {
        "format": "esm-pipeline/provenance",
        "settings": {"tasks": ["fold"]},
        "samples": {"a": {"results": own}},
        "results": {name: facts for name, facts in digest.items() if name[:2] != "a/"},
    }
    (folder / "provenance.json").write_text(json.dumps(facts))
    sign(folder)
    return folder


def sign(folder: Path) -> None:
    write_digests(folder / "provenance.sha256", {"provenance.json": folder / "provenance.json"})


def verify(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, list[str]]:
    """The exit code, and the lines without the folder's name."""
    code = main(["verify", *flags, str(folder)])
    return code, capsys.readouterr().out.replace(f"{folder}/", "").splitlines()


@pytest.mark.parametrize("threads", ["1", "3"])
def test_results_as_they_were_written(folder, capsys, threads):
    assert verify(folder, capsys, "--threads", threads) == (
        0,
        ["verify: 10 files checked, none differs"],
    )


def flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str = "x") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


def say_nothing(folder: Path) -> None:
    (folder / "provenance.json").write_text("{}")
    sign(folder)


def other_tasks(folder: Path) -> None:
    text = (folder / "provenance.json").read_text()
    (folder / "provenance.json").write_text(text.replace('"fold"', '"fole"'))


FROM_LIST = f"remove a/structures.sha256 {AGAIN}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip("a/embeddings.h5"), f"a/embeddings.h5: differs; remove a/embeddings.h5 {AGAIN}"),
        (write("a/records.tsv"), f"a/records.tsv: differs; remove a/records.tsv {AGAIN}"),
        (flip("report.html"), f"report.html: differs; remove report.html {AGAIN}"),
        (remove("verdict.txt"), "verdict.txt: missing; run the workflow again"),
        (remove(PARTS[0]), f"{PARTS[0]}: missing; {FROM_LIST}"),
        (flip(PARTS[2]), f"{PARTS[2]}: differs; {FROM_LIST}"),
        (
            write("a/structures/00000/2_z.pdb"),
            f"a/structures/00000/2_z.pdb: not in structures.sha256; {FROM_LIST}",
        ),
        (
            write("a/structures/00000/.hidden"),
            f"a/structures/00000/.hidden: not in structures.sha256; {FROM_LIST}",
        ),
        (write("a/pae/more"), f"a/pae/more: not in structures.sha256; {FROM_LIST}"),
        (flip("a/structures.sha256"), f"a/structures.sha256: differs; {FROM_LIST}"),
        (remove("a/structures.sha256"), "a/structures.sha256: missing; run the workflow again"),
        (other_tasks, f"provenance.json: differs; remove provenance.json {AGAIN}"),
        (remove("provenance.json"), "provenance.json: missing; run the workflow again"),
        (
            say_nothing,
            "provenance.json: does not have the digests of results; remove provenance.json "
            f"{AGAIN}",
        ),
        (
            remove("provenance.sha256"),
            f"provenance.sha256: missing, next to provenance.json; remove provenance.json {AGAIN}",
        ),
        (
            write("provenance.sha256"),
            "provenance.sha256: does not have the digest of provenance.json; remove "
            f"provenance.json {AGAIN}",
        ),
    ],
)
def test_what_differs_is_one_line(folder, capsys, change, message):
    change(folder)
    assert verify(folder, capsys, "--quiet") == (1, [message])


@pytest.mark.parametrize("name", [".lock", ".0_x.pdb.lock", ".0_x.pdb.node1-42.abcd_123"])
def test_what_a_running_command_has_there_passes(folder, capsys, name):
    write(f"a/structures/00000/{name}")(folder)
    assert verify(folder, capsys, "--quiet") == (0, [])


def test_files_that_differ_are_counted(folder, capsys):
    flip("report.html")(folder)
    assert verify(folder, capsys)[1][-1] == "verify: 10 files checked, 1 differs"
    flip("a/structures.tsv")(folder)
    assert verify(folder, capsys)[1][-1] == "verify: 10 files checked, 2 differ"


def test_a_file_that_took_the_place_of_another(folder, capsys):
    (folder / PARTS[0]).rename(folder / PARTS[0].replace("0_x", "3_x"))
    assert verify(folder, capsys, "--quiet") == (
        1,
        [
            f"{PARTS[0]}: missing; {FROM_LIST}",
            f"a/structures/00000/3_x.pdb: not in structures.sha256; {FROM_LIST}",
        ],
    )


def test_what_is_not_of_the_run_is_named_and_no_difference(folder, capsys):
    for name in ("logs", "a/fold", "a/bundles", "b", "models"):
        (folder / name).mkdir()
    for name in ("notes.txt", "a/classes.tsv", "models/old.json", ".hidden"):
        (folder / name).touch()
    code, lines = verify(folder, capsys)
    assert code == 0
    others = ["a/classes.tsv", "b", "models", "notes.txt"]
    assert lines[:-1] == [f"{name}: not of this run, and not checked" for name in others]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd"])
def test_files_elsewhere_are_not_opened(folder, capsys, name):
    (folder.parent / "secret").write_text("x")
    facts = json.loads((folder / "provenance.json").read_text())
    facts["results"][name] = {"sha256": "0" * 64}
    (folder / "provenance.json").write_text(json.dumps(facts))
    sign(folder)
    code, (message,) = verify(folder, capsys, "--quiet")
    assert (code, "does not have the digests of results" in message) == (1, True)


def test_what_is_no_folder_of_results(tmp_path, capsys):
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file", tmp_path / "none"):
        assert main(["verify", str(place)]) == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert f"{place}: not a folder of results; give one with a provenance.json" in message


def test_the_folder_may_have_moved(folder, capsys):
    moved = shutil.move(folder, folder.parent / "moved")
    assert verify(Path(moved), capsys, "--quiet") == (0, [])
