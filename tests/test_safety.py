"""Hostile input: ids and headers stay data, archives reach nothing but themselves."""

from __future__ import annotations

import contextlib
import csv
import gzip
import html.parser
import io
import itertools
import os
import re
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_pipeline import open_results
from esm_pipeline.cli import main
from esm_pipeline.errors import InputError
from esm_pipeline.formats.bundles import range_names
from esm_pipeline.formats.fasta import read_batches
from esm_pipeline.formats.records import read_records
from esm_pipeline.formats.results.job_files import seal
from tests.tasks.conftest import save_model

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = [
    *(b"-rf", b"--help", b"-", b"=cmd()", b"=HYPERLINK(1)", b"+1", b"@SUM(A1)", b"#comment", b">"),
    *(b"<script>alert(1)</script>", b"&amp;", b"</table>", b"]]>", b"<!--", b'" onload="x'),
    *(b"../../etc/passwd", b"/etc/passwd", b"..", b".", b"~root", b"C:\\con", b"a/b", b"00000.h5"),
    *(b"$(touch pwned)", b"`touch pwned`", b";touch pwned;", b"|touch pwned", b"&", b"*", b"?[a]"),
    *(b"{sample}", b"{0}", b"%s%n", b"\\n", b"\\", b"'", b'"', b'""', b'a"b', b"a,b", b"a;b"),
    *(b"NA", b"nan", b"NULL", b"None", b"True", b"", b"007", b"1e5", b"-0", b"inf", b"2024-01-02"),
    *(b"a\tb", b"\tb", b" c", b"x" * 300, b"\xc3\xa9" * 400, b"\xe2\x80\xae" + b"gnp.exe"),
    *("😀 smile".encode(), "\u2028".encode(), "a\u00a0b".encode(), "\ufeff".encode()),
    *(
        b"\x00nul",
        b"a\x1b[2Jb",
        b"\x85",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\x7f",
    ),
]
"""Headers: options, formulas, markup, paths, shell, formats, missing values, numbers, no UTF-8."""

HEADERS = (
    st.sampled_from(HOSTILE)
    | st.binary(max_size=30)
    | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
SEQUENCES = st.text("ACDEFGHIKLMNPQRSTVWY", min_size=1, max_size=9) | st.sampled_from(
    ["M<V", "M&K", "M'\"K", "../x", "$(id)", "", "M*K", "MK:V"]
)
SAMPLE = "<script>alert(1)<&\"'"
MODEL = "<img src=x onerror=alert(1)>&amp; $(touch pwned)"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / MODEL
    return save_model(folder, position_embedding_type="rotary", token_dropout=True)


def run(*arguments: object) -> tuple[int, str]:
    """Exit code of the command line, and what it says."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main([str(argument) for argument in arguments])
    return code, said.getvalue()


def shard_and_embed(folder: Path, model: Path, fasta: bytes, ranges: int = 2) -> None:
    (folder / "in.fasta").write_bytes(fasta)
    command = ("shard", "--quiet", "--bundles", 1, "--least", 1, "--out", folder / "bundles")
    assert run(*command, folder / "in.fasta") == (0, "")
    for name in range_names(ranges):
        command = ("embed", "--quiet", "--model", model, "--range", name)
        target = folder / "embed" / "00000" / f"{name}.h5"
        assert run(*command, folder / "bundles" / "00000.fasta", target) == (0, "")


def gather(folder: Path, ranges: int = 2) -> tuple[int, str]:
    return run(
        *("aggregate", "embed", "--quiet", "--bundle", folder / "bundles" / "00000.fasta"),
        *("--ranges", folder / "embed" / "00000", "--count", ranges),
        *("--out", folder / SAMPLE / "embeddings.h5"),
        *("--status", folder / "embed" / "00000.status.tsv"),
    )


def to_the_end(folder: Path, model: Path, fasta: bytes) -> None:
    """What the workflow does with one sample, in a working directory of its own."""
    (folder / "here").mkdir()
    with contextlib.chdir(folder / "here"):
        shard_and_embed(folder, model, fasta)
        assert gather(folder) == (0, "")
        table = folder / SAMPLE / "records.tsv"
        command = ("aggregate", "records", "--bundles", folder / "bundles", "--count", 1)
        command += ("--status", f"embed={folder / 'embed'}", "--out", table)
        assert run(*command, "--counts", folder / SAMPLE / "counts" / "records.json") == (0, "")
        assert run("report", "--out", folder / "report.html", folder / SAMPLE) == (0, "")
        assert run("verdict", "--out", folder / "verdict.txt", table)[0] == 0


FILES = {
    *("in.fasta", "report.html", "verdict.txt", f"{SAMPLE}/records.tsv", f"{SAMPLE}/embeddings.h5"),
    *(f"bundles/00000.{end}" for end in ("fasta", "index.npz", "records.tsv")),
    *("bundles/digests.sha256", "embed/00000.status.tsv", "embed/00000.sha256"),
    *(f"embed/00000/{name}.h5" for name in range_names(2)),
    *(f"{SAMPLE}/counts/{name}" for name in ("records.json", "digests.sha256")),
}
CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def told(header: bytes, index: int) -> tuple[str, str]:
    """Id and header as they should come back."""
    text = CONTROL.sub("\ufffd", header.decode("utf-8", "replace"))
    words = [word for word in re.split("[ \t]", text) if word]
    return (words[0] if words else f"record_{index}"), text


def fasta_of(records: list[tuple[bytes, str]]) -> bytes:
    return b"".join(b">%b\n%b\n" % (header, sequence.encode()) for header, sequence in records)


def check_results(folder: Path, headers: list[bytes]) -> None:
    """The files are those expected, and every id in them is the one of the input."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == FILES
    expected = [told(header, index) for index, header in enumerate(headers)]
    table = folder / SAMPLE / "records.tsv"
    records = list(read_records(table))
    assert [(record.id, record.header) for record in records] == expected
    with open(table, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [(row["id"], row["header"]) for row in rows] == expected
    (recipe,) = re.findall(r'pandas\.read_csv\("[^"]*", (.*?)\)\n', RESULTS_PAGE, re.DOTALL)
    read = eval(f"pandas.read_csv(table, {recipe})", {"pandas": pandas, "table": table})
    assert [*zip(read["id"], read["header"], strict=True)] == expected
    assert read["length"].tolist() == pytest.approx(
        [np.nan if record.length is None else record.length for record in records], nan_ok=True
    )
    ok = [record for record in records if record.outcomes["embed"].status == "ok"]
    with open_results(folder / SAMPLE / "embeddings.h5") as results:
        assert results.ids == results.to_pandas()["id"].tolist() == [record.id for record in ok]
        assert results.index.tolist() == [record.index for record in ok]
        raw = [text.encode() if isinstance(text, str) else text for text in results.file["id"][...]]
        assert raw == [record.id.encode() for record in ok]
    check_page(folder)


RESULTS_PAGE = (ROOT / "workflow/docs/results.md").read_text()


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: its tags, their attributes, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert not page.tags & {"script", "img", "iframe", "a", "link", "object"}
    assert not any(name.startswith("on") for name in page.attributes)
    assert SAMPLE in page.text
    with open_results(folder / SAMPLE / "embeddings.h5") as results:
        assert MODEL in results.attributes["model"]
    assert MODEL in page.text


@pytest.mark.parametrize("headers", [HOSTILE, [b"007", b"1e5", b"-0"]], ids=["all", "numbers"])
def test_hostile_headers_stay_data(tmp_path: Path, model: Path, headers: list[bytes]) -> None:
    bodies = itertools.cycle(["MKV", "MKVL", "M<script>V", "GAV&", "WYM"])
    records = list(zip(headers, bodies, strict=False))
    to_the_end(tmp_path, model, fasta_of(records))
    check_results(tmp_path, headers)
    page = Page((tmp_path / "report.html").read_text())
    assert re.search(r"character '<' at residue \d+ is no amino acid", page.text)


@settings(max_examples=10)
@given(st.lists(st.tuples(HEADERS, SEQUENCES), min_size=1, max_size=8))
def test_any_header_stays_data(model: Path, records: list[tuple[bytes, str]]) -> None:
    records = [(re.sub(rb"[\r\n]", b"", header), sequence) for header, sequence in records]
    with tempfile.TemporaryDirectory() as place:
        to_the_end(Path(place), model, fasta_of(records))
        check_results(Path(place), [header for header, _ in records])


def test_markup_would_be_seen() -> None:
    """The twin: a page that does not escape has tags, or does not close what it opens."""
    page = Page(f"<p>{SAMPLE}</script></p>{MODEL}</img>")
    assert page.tags == {"p", "script", "img"}
    assert "onerror" in page.attributes
    with pytest.raises(AssertionError):
        Page("<p></table>")


def test_file_names_that_are_no_utf_8_or_look_like_options(tmp_path: Path, model: Path) -> None:
    with contextlib.chdir(tmp_path):
        for name in ("-x", "a\udcffb", "$(touch pwned)", "a\x1b[2Jb", "é" * 100):
            folder = "model" if "\udcff" in name else name  # safetensors takes no such path
            shutil.copytree(model, folder)
            os.makedirs(name, exist_ok=True)
            Path(f"{name}.fasta").write_text(">a\nMKV\n")
            command = ("embed", "--quiet", f"--model={folder}", f"--sha256={name}.sha256")
            assert run(*command, "--", f"{name}.fasta", f"{name}.h5") == (0, ""), name
            assert run("report", f"--out={name}.html", "--", name)[0] == 2
            Path(f"{name}.records.tsv").rename(f"{name}/records.tsv")
            Path(f"{name}.h5").rename(f"{name}/embeddings.h5")
            assert run("report", f"--out={name}.html", "--", name) == (0, "")
            code, said = run("verdict", f"--out={name}.txt", "--", f"{name}/records.tsv")
            assert (code, said.splitlines()[-1], "\x1b" in said) == (0, "nothing failed", False)
            expected = {f"{name}{end}" for end in (".fasta", ".html", ".sha256", ".txt")}
            assert set(os.listdir()) == {*expected, name, folder}
            for left in expected:
                os.remove(left)
            shutil.rmtree(name)
            shutil.rmtree("model", ignore_errors=True)


JOB = "embed/00000/1-of-1.h5"
SECRET = b"root:x:0:0: not for everybody\n" * 200


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A bundle of one range, embedded but not gathered, next to a file it must not touch."""
    folder = tmp_path_factory.mktemp("embedded")
    shard_and_embed(folder, model, b">a\nMKV\n>b\nMKLL\n>c\nWW\n", ranges=1)
    (folder / "secret").write_bytes(SECRET)
    with h5py.File(folder / "secret.h5", "w") as file:
        file["values"] = np.frombuffer(SECRET, "<f4", 48).reshape(3, 16)
        file["length"] = np.array([4, 3, 2], "<i4")
    return folder


def replaced(name: str, make: Callable[[h5py.File, Path], object]) -> Callable[..., None]:
    """A change of the range's file: another object in the place of `name`."""

    def change(file: h5py.File, folder: Path) -> None:
        attributes = dict(file[name].attrs)
        del file[name]
        made = make(file, folder)
        if made is not None:
            file[name] = made
        if isinstance(file.get(name, getlink=True), h5py.HardLink):
            file[name].attrs.update(attributes)

    return change


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((3, 16), "<f4")
    layout[...] = h5py.VirtualSource(str(folder / "secret.h5"), "values", (3, 16))
    file.create_virtual_dataset("mean/2", layout)


def external(file: h5py.File, folder: Path) -> None:
    place = [(str(folder / "secret"), 0, 192)]
    file.create_dataset("mean/2", (3, 16), "<f4", external=place)


def to_secret(name: str) -> Callable[[h5py.File, Path], object]:
    return lambda file, folder: h5py.ExternalLink(str(folder / "secret.h5"), name)


def dataset(shape: tuple[int, ...], kind: object, **options: object) -> Callable[..., None]:
    return lambda file, folder: file.create_dataset("mean/2", shape, kind, **options) and None


def values(name: str, content: object, kind: object = None) -> Callable[..., None]:
    return replaced(name, lambda file, folder: np.array(content, kind))


def lengths(content: list[int], kind: str) -> Callable[..., None]:
    """Lengths, and offsets that follow from them."""

    def change(file: h5py.File, folder: Path) -> None:
        values("length", content, kind)(file, folder)
        values("offset", np.cumsum([0, *content]), "<i8")(file, folder)

    return change


def per(value: object) -> Callable[..., None]:
    return lambda file, folder: file["mean/2"].attrs.__setitem__("per", value)


def another(name: str | bytes) -> Callable[..., None]:
    return lambda file, folder: file.create_dataset(name, (3, 16), "<f4") and None


ELSEWHERE = {
    "external link": replaced("mean/2", to_secret("values")),
    "external link to lengths": replaced("length", to_secret("length")),
    "external data": replaced("mean/2", external),
    "virtual data": replaced("mean/2", virtual),
    "soft link": lambda file, folder: file.__setitem__("mean/9", h5py.SoftLink("/mean/2")),
    "link to itself": replaced("mean/2", lambda file, folder: h5py.SoftLink("/mean/2")),
}
ODD = {
    "objects": values("mean/2", [["x"] * 16] * 3, h5py.string_dtype()),
    "references": replaced("mean/2", dataset((3, 16), h5py.ref_dtype)),
    "bytes": values("mean/2", np.zeros((3, 16)), "V4"),
    "whole numbers": values("mean/2", np.zeros((3, 16)), "<i8"),
    "no values": replaced("mean/2", dataset((3, 10**12), "<f4", chunks=(1, 1024))),
    "few rows": values("mean/2", np.zeros((2, 16)), "<f4"),
    "many rows": values("mean/2", np.zeros((4, 16)), "<f4"),
    "no shape": values("mean/2", 1, "<f4"),
    "an unknown unit": per("galaxy"),
    "units": per([1, 2]),
    "few ids": values("id", ["0", "1"], h5py.string_dtype()),
    "negative length": values("length", [-4, 3, 2], "<i4"),
    "negative lengths that add up": lengths([-4, 3, 2], "<i4"),
    "lengths of another kind": lengths([4, 3, 2], "<f8"),
    "large length": values("length", [2**31 - 1, 3, 2], "<i4"),
    "halves for lengths": values("length", [0.5, 3, 2]),
    "rows twice": values("row", [0, 1, 1], "<i8"),
    "rows beyond": values("row", [0, 1, 9], "<i8"),
    "rows below": values("row", [0, 1, -1], "<i8"),
    "a group for values": lambda file, folder: file.create_group("mean/a"),
    "a name that leads up": another("../../x"),
    "a name that is no UTF-8": another(b"mean/\xff"),
}
OTHER_WORDS = {"a name that is no UTF-8": "not the result of a range"}


@contextlib.contextmanager
def changed(embedded: Path, change: Callable[[h5py.File, Path], object]) -> Iterator[Path]:
    """A copy of the sample, the file of its range changed, and sealed anew if that is possible."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(embedded, place, dirs_exist_ok=True))
        with h5py.File(folder / JOB, "r+") as file:
            change(file, embedded)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            seal(folder / JOB)
        yield folder


@pytest.mark.parametrize("case", [*ELSEWHERE, *ODD])
def test_a_range_that_no_task_wrote_is_refused(embedded: Path, case: str) -> None:
    with changed(embedded, {**ELSEWHERE, **ODD}[case]) as folder:
        code, said = gather(folder, ranges=1)
        assert (code, said.count("\n")) == (2, 1), said
        assert f"{folder}/{JOB}: " in said
        assert OTHER_WORDS.get(case, "is not as a task writes it") in said
        assert not (folder / SAMPLE / "embeddings.h5").exists()
        assert not (folder / "embed" / "00000.status.tsv").exists()


@pytest.mark.parametrize("case", ELSEWHERE)
def test_results_open_no_other_file(embedded: Path, case: str) -> None:
    told = r"1-of-1\.h5: '.*' is not as a task writes it; give"
    with changed(embedded, ELSEWHERE[case]) as folder, pytest.raises(InputError, match=told):
        open_results(folder / JOB)


def test_a_range_as_it_was_written_is_gathered(embedded: Path) -> None:
    """The twin of the tests above; the secret is what external data would have given."""
    with changed(embedded, lambda file, folder: None) as folder:
        assert gather(folder, ranges=1) == (0, "")
        assert SECRET[:48] not in (folder / SAMPLE / "embeddings.h5").read_bytes()
    case = ELSEWHERE["external data"]
    with changed(embedded, case) as folder, h5py.File(folder / JOB) as file:
        assert file["mean/2"][...].tobytes() == SECRET[:192]


@pytest.mark.parametrize(
    "content",
    [b">a\n" + b"M" * 997 + b"\n", b"\n", b" ", b";", b";\n"],
    ids=["records", "blank lines", "a blank line", "a comment", "comments"],
)
def test_memory_stays_flat_whatever_a_packed_file_holds(tmp_path: Path, content: bytes) -> None:
    """32 MiB in some KiB: data are passed on, or dropped, block by block."""
    size = 1 << 25
    packed = tmp_path / "bomb.gz"
    with gzip.open(packed, "wb", compresslevel=1) as file:
        block = content * (2**20 // len(content))
        for _ in range(size // len(block)):
            file.write(block)
        file.write(b"\n>last\nMKV\n")
    assert packed.stat().st_size < size // 100
    tracemalloc.start()
    try:
        records = sum(len(batch) for batch in read_batches(str(packed)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert records == (size // len(block)) * (len(block) // len(content)) * (b">" in content) + 1
    assert peak < 6 << 20


def test_settings_nested_too_deep_are_one_line(tmp_path: Path) -> None:
    out = tmp_path / "provenance.json"
    code, said = run("provenance", "--out", out, "--settings", "[" * 100_000)
    assert (code, said.count("\n")) == (2, 1)
    assert "--settings: not JSON" in said
    assert list(tmp_path.iterdir()) == []
