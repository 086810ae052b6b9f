"""The life of a record: every kind of record, file and exit, through every way in.

One table says what becomes of each; `shard`, `embed` alone, `embed` of a packed pipe, `classify`
and the whole workflow must agree with it to the letter.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline import EsmConfig, EsmForSequenceClassification, EsmTokenizer
from esm_pipeline.cli import main
from esm_pipeline.formats.records import Outcome, Record, read_records
from tests.tasks.conftest import TABLE, save_model
from tests.workflow import tools
from tests.workflow.tools import config, snakemake

SAMPLE = "in"
KEY = re.compile(r"(?:shard|TASK)\.(\w+)")
GAP = "; set shard.gaps to 'remove' to drop gaps"
STOP = " inside the sequence; set shard.internal_stops to 'replace' to read it as X"
FOREIGN = " is no amino acid; correct the sequence"
COMPLEX = Outcome("skipped", "a complex of several chains; split it at ':'")
TOO_LONG = Outcome(
    "skipped",
    f"{TABLE + 1} residues, but the model has positions for {TABLE}; set TASK.long to truncate, "
    "or use a rotary model such as ESM-2",
)
J = "J at residue 2 replaced by X"


class Life(NamedTuple):
    """A record as written in the file, and its expected outcome."""

    header: bytes
    lines: bytes
    sequence: str
    """As cleaned; empty if the record is skipped."""
    reason: str = ""
    notes: str = ""
    embed: Outcome | None = None
    """Of a record that is valid; None stands for ok."""
    text: str | None = None
    """The header in the results, if it differs."""
    id: str | None = None
    """The id, if it is not the first word."""
    duplicate_of: int | None = None


LIVES = {
    "residues": Life(b"a the 20", b"ACDEFGHIKLMNPQRSTVWY", "ACDEFGHIKLMNPQRSTVWY"),
    "B U Z O X": Life(b"b", b"MBUZOX", "MBUZOX"),
    "lower case and white space": Life(b"c", b"mk v\t\n l\x0b\r\n  a \n\n", "MKVLA"),
    "J": Life(b"d", b"MJV", "MXV", notes=J),
    "stop at the end": Life(b"e", b"MKE*", "MKE", notes="'*' at the end removed"),
    "stop inside": Life(b"f", b"MK*F*", "", f"stop '*' at residue 3{STOP}"),
    "gap -": Life(b"g", b"MK-G", "", f"gap '-' at residue 3{GAP}"),
    "gap .": Life(b"h", b"MKG.", "", f"gap '.' at residue 4{GAP}"),
    "digit": Life(b"i", b"MK1", "", f"character '1' at residue 3{FOREIGN}"),
    "question mark": Life(b"j", b"?MK", "", f"character '?' at residue 1{FOREIGN}"),
    "joined without a line end": Life(
        b"ja",
        b"MKV>jb",
        "",
        "character '>' at residue 4 begins a record inside a line, which is lost in this one; "
        "were files joined without a line end between them? put one there",
    ),
    "NUL": Life(b"k", b"M\0K", "", f"character '\\x00' at residue 2{FOREIGN}"),
    "not UTF-8": Life(b"l", b"MK\xe9", "", f"character '\\ufffd' at residue 3{FOREIGN}"),
    "accent": Life(b"m", "MKÉ".encode(), "", f"character '\\xc9' at residue 3{FOREIGN}"),
    "nothing": Life(b"n", b"", "", "no residues"),
    "only a stop": Life(b"o", b"*", "", "no residues"),
    "complex": Life(b"p", b"MK:VL", "MK:VL", embed=COMPLEX),
    "chain without residues": Life(
        b"q", b"MK:", "", "no residues in chain 2; put ':' between chains only"
    ),
    "same sequence": Life(b"r", b"mkvla*", "MKVLA", "", "'*' at the end removed", duplicate_of=2),
    "same complex": Life(b"s", b"MK:VL", "MK:VL", embed=COMPLEX, duplicate_of=16),
    "same id": Life(b"a of another", b"MKVV", "MKVV"),
    "no id": Life(b"", b"MKI", "MKI", "", "no id: named record_21", id="record_21"),
    "only white space": Life(
        b" \t", b"MKII", "MKII", "", "no id: named record_22", id="record_22", text=" \t"
    ),
    "Latin-1 in the header": Life(
        b"v caf\xe9",
        b"MKL",
        "MKL",
        notes="header is not UTF-8: bad bytes replaced",
        text="v caf\ufffd",
    ),
    "control character in the header": Life(
        b"w\x1b[31m red",
        b"MKLL",
        "MKLL",
        notes="control characters in the header replaced",
        text="w\ufffd[31m red",
        id="w\ufffd[31m",
    ),
    "tab and quotes in the header": Life(b'x\t"y"', b"MKM", "MKM"),
    "not ASCII": Life("ä ж".encode(), b"MKN", "MKN"),
    "like a path": Life(b"../../etc/passwd", b"MKP", "MKP"),
    "like a missing value": Life(b"NA", b"MKQ", "MKQ"),
    "as long as the table": Life(b"y", b"M" * TABLE, "M" * TABLE),
    "longer than the table": Life(b"z", b"K" * (TABLE + 1), "K" * (TABLE + 1), embed=TOO_LONG),
    "many things": Life(
        b"",
        b"J-*1:",
        "",
        f"gap '-' at residue 2 of chain 1{GAP}",
        "no id: named record_31",
        id="record_31",
    ),
}

CHANGED = {
    "J": {
        "sequence": "",
        "notes": "",
        "reason": "J at residue 2 is unknown to the models; set "
        "shard.unknown_residues to 'replace' to read it as X",
    },
    "stop inside": {
        "sequence": "MKXF",
        "reason": "",
        "notes": "stop '*' at residue 3 replaced by X; '*' at the end removed",
    },
    "gap -": {"sequence": "MKG", "reason": "", "notes": "gap '-' at residue 3 removed"},
    "gap .": {
        "sequence": "MKG",
        "reason": "",
        "notes": "gap '.' at residue 4 removed",
        "duplicate_of": 6,
    },
    "longer than the table": {"embed": Outcome("ok", f"truncated to the first {TABLE} residues")},
    "many things": {
        "reason": "J at residue 1 of chain 1 is unknown to the models; set "
        "shard.unknown_residues to 'replace' to read it as X"
    },
}
"""What other settings make of some: J skipped, stops replaced, gaps removed, too long truncated."""

SETTINGS = {
    "default": {},
    "changed": {"unknown_residues": "skip", "internal_stops": "replace", "gaps": "remove"},
}
WAYS = ("shard", "embed", "pipe", "classify", "workflow")


def expected(name: str, settings: str, way: str) -> Record:
    """The row of one record."""
    life = LIVES[name]
    if settings == "changed":
        life = life._replace(**CHANGED.get(name, {}))
    text = life.header.decode() if life.text is None else life.text
    task = "classify" if way == "classify" else "embed"
    status = "ok" if life.sequence else "skipped"
    reason = spelled(life.reason, task, way)
    length = len(life.sequence.replace(":", "")) or None
    digest = hashlib.sha256(life.sequence.encode()).hexdigest() if life.sequence else ""
    record = Record(
        index=list(LIVES).index(name),
        id=text.split()[0] if life.id is None else life.id,
        header=text,
        length=length,
        sha256=digest,
        status=status,
        reason=reason,
        notes=life.notes,
        duplicate_of=life.duplicate_of,
    )
    if way == "shard":
        return record
    outcome = Outcome("skipped", reason) if status == "skipped" else life.embed or Outcome("ok")
    return record.with_outcome(task, outcome.status, spelled(outcome.reason, task, way))


def spelled(reason: str, task: str, way: str) -> str:
    """The keys in a reason as they are called on that way: flags, or keys in the workflow."""
    if way == "workflow":
        return reason.replace("TASK.", f"{task}.")
    return KEY.sub(lambda key: "--" + key[1].replace("_", "-"), reason)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as ESM-1b: a table with positions for `TABLE` residues."""
    folder = tmp_path_factory.mktemp("absolute")
    return save_model(folder, position_embedding_type="absolute", max_position_embeddings=TABLE + 4)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The same with a classifier."""
    folder = tmp_path_factory.mktemp("classifier")
    config = EsmConfig.from_pretrained(model, num_labels=3)
    EsmForSequenceClassification(config).save_pretrained(folder)
    EsmTokenizer.standard().save_pretrained(folder)
    return folder


def run(*arguments: object) -> int:
    """The command line in this process; a wrong flag ends as argparse ends it."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return int(str(ended.code))


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def live(folder: Path, model: Path, settings: str, way: str) -> Path:
    """Send all records one way; where their table then is."""
    content = b"".join(b">%b\n%b\n" % (life.header, life.lines) for life in LIVES.values())
    fasta = folder / f"{SAMPLE}.fasta"
    fasta.write_bytes(content)
    chosen = SETTINGS[settings]
    long = "truncate" if chosen else "auto"
    if way == "workflow":
        cleaning = ", ".join(f"{name}: {value}" for name, value in chosen.items())
        sections = [f"embed={{include: [residue], long: {long}}}", f"shard={{{cleaning}}}"]
        done = snakemake(folder, *config(model, *sections, fasta=fasta.name))
        assert done.code == 0, done.said
        return done.results / SAMPLE / "records.tsv"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
    if way == "shard":
        assert run("shard", "--quiet", "--bundles=1", *flags, "--out", folder, fasta) == 0
        return folder / "00000.records.tsv"
    flags += [f"--model={model}", f"--long={long}"]
    if way == "classify":
        assert run("classify", "--quiet", *flags, fasta, folder / "out.tsv") == 0
        return folder / "out.records.tsv"
    source = fasta if way == "embed" else "-"
    flags += ["--include=residue"]
    with pytest.MonkeyPatch.context() as patch:
        pipe(patch, gzip.compress(content))
        assert run("embed", "--quiet", *flags, source, folder / "out.h5") == 0
    return folder / "out.records.tsv"


@pytest.fixture(scope="module", params=SETTINGS)
def settings(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def table(
    tmp_path_factory: pytest.TempPathFactory,
    model: Path,
    classifier: Path,
    settings: str,
    way: str,
) -> Path:
    chosen = classifier if way == "classify" else model
    return live(tmp_path_factory.mktemp(way), chosen, settings, way)


def test_what_becomes_of_every_record(table: Path, settings: str, way: str) -> None:
    found = dict(zip(LIVES, read_records(table), strict=True))
    assert found == {name: expected(name, settings, way) for name in LIVES}


def test_what_is_ok_has_its_values(table: Path, settings: str, way: str) -> None:
    if way == "shard":
        content = b"".join(path.read_bytes() for path in sorted(table.parent.glob("0*.fasta")))
        shards = dict(block.split() for block in content.decode().split(">")[1:])
        wanted = [expected(name, settings, way) for name in LIVES]
        valid = [record for record in wanted if record.status == "ok"]
        assert {int(index) for index in shards} == {
            record.index for record in valid if record.duplicate_of is None
        }
        for record in valid:
            if record.duplicate_of is None:
                digest = hashlib.sha256(shards[str(record.index)].encode()).hexdigest()
                assert digest == record.sha256
        return
    wanted = [expected(name, settings, way) for name in LIVES]
    if way == "classify":
        with table.with_name("out.tsv").open(newline="", encoding="utf-8") as handle:
            rows = list(csv.reader(handle, delimiter="\t"))[1:]
        for row, record in zip(rows, wanted, strict=True):
            outcome = record.outcomes["classify"]
            assert row[:4] == [str(record.index), record.id, *outcome]
            assert [bool(cell) for cell in row[4:]] == [outcome.status == "ok"] * 4
        return
    name = "embeddings.h5" if way == "workflow" else "out.h5"
    ok = [record for record in wanted if record.outcomes["embed"].status == "ok"]
    with h5py.File(table.with_name(name)) as file:
        assert file["id"].asstr()[...].tolist() == [record.id for record in ok]
        assert file["index"][...].tolist() == [record.index for record in ok]
        lengths = file["length"][...][file["row"][...]].tolist()
        assert lengths == [min(record.length or 0, TABLE) for record in ok]
        assert len(file["residue/2"]) == file["offset"][-1] == file["length"][...].sum()


ONE = b">a\nMK\n"
NO_FASTA = {
    "empty": (b"", ":1: the file is empty; a record begins with a line '>id'"),
    "blank": (b"\n \n", ":3: no record in the file; a record begins with a line '>id'"),
    "comments": (b";a\n", ":2: no record in the file; a record begins with a line '>id'"),
    "text": (
        b"\nMKV\n>a\nMK\n",
        ":2: text before the first '>': 'MKV'; begin each record with a line '>id'",
    ),
    "fastq": (b"@r\nMK\n+\nII\n", ":1: not FASTA, looks like FASTQ; convert it to FASTA"),
    "html": (
        b"<html>",
        ":1: not FASTA, looks like HTML or XML, perhaps the error page of a download; fetch the "
        "file again",
    ),
    "binary": (
        b"\x89HDF\r\n\x1a\n\0\0",
        ":1: not FASTA, looks like binary data; give a FASTA file",
    ),
    "utf16": (
        ONE.decode().encode("utf-16"),
        ":1: not FASTA, looks like UTF-16 text; save it as UTF-8",
    ),
    "zip": (
        b"PK\3\4",
        ":1: not FASTA, looks like a zip archive, such as a Word or Excel file; unpack it, or save "
        "its text as FASTA",
    ),
    "cut": (
        gzip.compress(ONE)[:-3],
        ":3: the gzip file is cut short; fetch or copy it again",
    ),
    "damaged": (
        gzip.compress(ONE) + b"\0MK",
        ":3: the gzip file is damaged (Error -3 while decompressing data: incorrect header check); "
        "fetch or copy it again",
    ),
    "folder": (None, ": a folder, not a file; name the FASTA file in it"),
}
"""Files that are no FASTA, by name, and what is said of each after its path."""


def write_bad(folder: Path) -> None:
    for name, (content, _) in NO_FASTA.items():
        path = folder / f"{name}.fasta"
        path.mkdir() if content is None else path.write_bytes(content)


@pytest.mark.parametrize(
    ("way", "name"),
    [
        *itertools.product(("shard", "embed"), [*NO_FASTA, "missing"]),
        *(("pipe", name) for name, (content, _) in NO_FASTA.items() if content is not None),
    ],
)
def test_a_file_that_is_no_fasta(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    name: str,
) -> None:
    write_bad(tmp_path)
    path, out = tmp_path / f"{name}.fasta", tmp_path / "out"
    content, told = NO_FASTA.get(name, (None, ": no such file; check the path"))
    if way == "shard":
        code = run("shard", "--bundles=2", "--out", out, path)
    elif way == "embed":
        code = run("embed", "--model=demo", path, out / "out.h5")
    else:
        assert content is not None
        pipe(monkeypatch, content)
        path = Path("standard input")
        code = run("embed", "--model=demo", "-", out / "out.h5")
    task = "embed" if way == "pipe" else way
    assert (code, capsys.readouterr().err) == (2, f"esm-pipeline {task}: {path}{told}\n")
    assert not out.exists() or list(out.iterdir()) == []


def test_files_that_are_no_fasta_in_the_workflow(tmp_path: Path, model: Path) -> None:
    """A sample for a few of them, and a good one, which is finished all the same."""
    write_bad(tmp_path)
    (tmp_path / "good.fasta").write_bytes(ONE)
    bad = ("empty", "cut", "folder")
    rows = ["sample\tfasta", *(f"{name}\t{name}.fasta" for name in (*bad, "good"))]
    (tmp_path / "table.tsv").write_text("\n".join(rows) + "\n")
    chosen = config(model, "samples=table.tsv", "shards=1", fasta=None)
    done = snakemake(tmp_path, "--keep-going", *chosen)
    assert done.code == 1
    for name in bad:
        told = NO_FASTA[name][1]
        log = (done.results / "logs" / "shard" / f"{name}.log").read_text()
        assert log == f"esm-pipeline shard: {name}.fasta{told}\n"
    assert "esm-pipeline shard: " in done.said
    finished = {path.parent.name for path in done.results.glob("*/records.tsv")}
    assert finished == {"good"}
    assert "Traceback" not in done.said


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose states are too large for float16: records fail."""
    return tools.save_model(tmp_path_factory.mktemp("overflowing"), scale=1e6)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--model=demo", "good.fasta"], 0),
        (["--model=demo", "skipped.fasta"], 0),
        (["--model=overflowing", "--include=residue", "good.fasta"], 1),
        (["--model=overflowing", "--include=residue", "--on-failure=keep", "good.fasta"], 0),
        (["--model=overflowing", "--include=mean", "good.fasta"], 0),
        (["--model=demo", "empty.fasta"], 2),
        (["--model=demo", "--allow-empty", "empty.fasta"], 0),
        (["--model=demo", "--layers=99", "good.fasta"], 2),
        (["--model=demo", "--gaps=7", "good.fasta"], 2),
        (["--model=demo", "--no-such-flag", "good.fasta"], 2),
        (["--model=no_such_folder/", "good.fasta"], 2),
        (["good.fasta"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_exit_codes(
    tmp_path: Path,
    overflowing: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "overflowing").symlink_to(overflowing)
    for name, data in (("good", ONE), ("skipped", b">a\nM-K\n"), ("empty", b"")):
        (tmp_path / f"{name}.fasta").write_bytes(data)
    assert run("embed", *arguments, "out.h5") == code
    *progress, last = capsys.readouterr().err.splitlines()
    assert re.match("esm-pipeline" if code == 2 else r"embed: \d records?\b", last)
    assert not (progress and code == 2)
    assert (tmp_path / "out.h5").exists() == (tmp_path / "out.records.tsv").exists() == (code < 2)


MARKS = [b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b", b"@", b"<", b"\0", b"\xe9", "é".encode()]
PIECES = st.sampled_from(
    [*MARKS, b">", b"\n", b"\r", b">a\n", b"MKV", *(bytes([one]) for one in b'*-:J \t;"7')]
)
ANYTHING = st.binary(max_size=60) | st.lists(PIECES | st.binary(max_size=4)).map(b"".join)


@given(
    content=ANYTHING,
    packed=st.booleans(),
    cut=st.sampled_from([0, 0, 0, 1, 9]),
    bundles=st.integers(1, 3),
)
def test_any_bytes_end_in_rows_or_in_one_line(
    content: bytes, packed: bool, cut: int, bundles: int
) -> None:
    text = gzip.compress(content) if packed else content
    text = text[: len(text) - cut]
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()) as said:
        fasta, out = Path(name, "in.fasta"), Path(name, "out")
        fasta.write_bytes(text)
        code = run("shard", "--quiet", "--bundles", bundles, "--out", out, fasta)
        records = sorted(itertools.chain(*map(read_records, out.glob("*.records.tsv"))))
        whole = b"".join(path.read_bytes() for path in sorted(out.glob("*.fasta")))
    lines = said.getvalue().splitlines()
    if code:
        assert (code, len(lines)) == (2, 1)
        assert lines[0].startswith(f"esm-pipeline shard: {fasta}:")
        return
    assert not lines
    assert [record.index for record in records] == list(range(len(records)))
    for record in records:
        assert record.status == ("skipped" if record.reason else "ok")
        assert record.id
    found = {int(block.split()[0]): block.split()[1] for block in whole.decode().split(">")[1:]}
    assert sorted(found) == [
        record.index for record in records if record.status == "ok" and record.duplicate_of is None
    ]
    for record in records:
        if record.status == "ok":
            first = record.index if record.duplicate_of is None else record.duplicate_of
            assert hashlib.sha256(found[first].encode()).hexdigest() == record.sha256
