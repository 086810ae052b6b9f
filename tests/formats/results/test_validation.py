"""HDF5 that no task wrote: an error of one line from the headers, whatever the file claims."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from esm_pipeline import open_results
from esm_pipeline.errors import DamagedError, InputError
from esm_pipeline.formats.results.layout import FORMAT_VERSION
from esm_pipeline.formats.results.open import RESULT_CLASSES
from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.formats.results.validation import open_hdf5
from tests.results import NAMES, commands, read_all, write_outcomes, write_result

Change = Callable[[h5py.File], object]
LARGE = 10**12


def instead(name: str, **options: object) -> Change:
    """Another dataset in the place of one."""

    def change(file: h5py.File) -> None:
        per = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, **options)
        file[name].attrs.update(per)

    return change


def sparse(name: str, *shape: int, dtype: str = "<i4") -> Change:
    """A dataset that is large by its header, and takes no space."""
    chunks = tuple(min(size, 64) for size in shape)
    return instead(name, shape=shape, dtype=dtype, chunks=chunks)


def attribute(name: str, value: object) -> Change:
    return lambda file: file.attrs.__setitem__(name, value)


def missing(name: str) -> Change:
    return lambda file: file.attrs.__delitem__(name)


def value(name: str, place: int, number: float) -> Change:
    return lambda file: file[name].__setitem__(place, number)


def link(name: str, to: object) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = to

    return change


EVERY = {
    "length large": sparse("length", LARGE),
    "index large": sparse("index", LARGE, dtype="<i8"),
    "row large": sparse("row", LARGE, dtype="<i8"),
    "offset large": sparse("offset", LARGE, dtype="<i8"),
    "ids large": instead("id", shape=(LARGE,), dtype=h5py.string_dtype(), chunks=(64,)),
    "all large": lambda file: [
        sparse(name, LARGE, dtype=kind)(file)
        for name, kind in (("length", "<i4"), ("index", "<i8"), ("row", "<i8"))
    ],
    "packed": instead("row", data=np.zeros(4, np.int64), chunks=(4,), compression="gzip"),
    "two axes": instead("length", data=np.ones((3, 1), np.int32)),
    "halves": instead("length", data=np.ones(3)),
    "numbers for ids": instead("id", data=np.arange(4)),
    "references": instead("row", shape=(4,), dtype=h5py.ref_dtype),
    "a group": lambda file: [file.__delitem__("length"), file.create_group("length")],
    "nothing": lambda file: file.__delitem__("offset"),
    "soft link": link("length", h5py.SoftLink("/row")),
    "external link": link("length", h5py.ExternalLink("/etc/hostname", "x")),
    "offset beyond": value("offset", -1, LARGE),
    "offset below": value("offset", 0, -1),
    "more rows than records": instead("length", data=np.ones(9, np.int32)),
    "version as text": attribute("format_version", "one"),
    "version of many numbers": attribute("format_version", [1, 1]),
    "no version": missing("format_version"),
    "format of bytes": attribute("format", np.bytes_(b"esm")),
    "format of a number": attribute("format", 5),
    "keys large": sparse("lookup/id_hash", LARGE, dtype="<u8"),
    "keys in chunks": instead("lookup/id_hash", data=np.zeros(4, "<u8"), chunks=(4,)),
    "keys few": instead("lookup/id_hash", data=np.zeros(3, "<u8")),
    "keys with signs": instead("lookup/id_hash", data=np.zeros(4, "<i8")),
    "keys alone": lambda file: file.__delitem__("lookup/id_position"),
    "positions alone": lambda file: file.__delitem__("lookup/id_hash"),
    "positions of 64 bits": instead("lookup/id_position", data=np.zeros(4, "<i8")),
    "keys of sequences alone": lambda file: file.create_dataset(
        "lookup/sequence_digest", data=np.zeros(4, "<u8")
    ),
}
"""Changes that are noticed when a result of any kind is opened."""

LATER = {
    "lengths below": value("length", 0, -3),
    "offset not ascending": value("offset", 1, 7),
    "row beyond": value("row", 1, 3),
    "row below": value("row", 1, -1),
    "row of none": value("row", 1, 0),
    "index below": value("index", 0, -1),
    "index twice": value("index", 1, 0),
}
"""Changes of values, which are seen when they are read."""

OF_ONE = {
    ("embeddings", "layer of no number"): lambda file: file.move("mean/0", "mean/x"),
    ("embeddings", "layers that differ"): lambda file: file.__delitem__("mean/0"),
    ("embeddings", "widths that differ"): instead("mean/0", data=np.zeros((3, 5), "<f4")),
    ("embeddings", "a width of 1e12"): sparse("mean/0", 3, LARGE, dtype="<f4"),
    ("embeddings", "dataset for a group"): instead("mean", data=np.zeros((3, 4), "<f4")),
    ("embeddings", "no pairs"): lambda file: file.__delitem__("contacts_offset"),
    ("embeddings", "pairs begin nowhere"): sparse("contacts_offset", LARGE, dtype="<i8"),
    ("embeddings", "few pairs"): instead("contacts", data=np.zeros(7, "<f2")),
    ("embeddings", "many pairs"): sparse("contacts", LARGE, dtype="<f2"),
    ("saturation", "large"): sparse("log_odds", LARGE, 20, dtype="<f4"),
    ("saturation", "19 columns"): instead("log_odds", data=np.zeros((10, 19), "<f4")),
    ("saturation", "no wild type"): lambda file: file.__delitem__("wild_type"),
    ("saturation", "a letter twice"): attribute("alphabet", "AACDEFGHIKLMNPQRSTVW"),
    ("saturation", "no alphabet"): missing("alphabet"),
    ("saturation", "alphabet of a number"): attribute("alphabet", 20),
    ("saturation", "no strategy"): missing("strategy"),
    ("saturation", "no letters"): lambda file: file["wild_type"].__setitem__(0, b"?"),
    ("saturation", "small letters"): lambda file: file["wild_type"].__setitem__(1, b"m"),
    ("saturation", "letters missing"): lambda file: file["wild_type"].__setitem__(2, b""),
    ("saturation", "letters of no ASCII"): lambda file: file["wild_type"].__setitem__(0, b"\xff"),
    ("classes", "labels not JSON"): attribute("labels", "in, out"),
    ("classes", "labels nested deep"): attribute("labels", "[" * 9_000),
    ("classes", "labels of numbers"): attribute("labels", "[1, 2]"),
    ("classes", "labels too few"): attribute("labels", '["in"]'),
    ("classes", "labels as a list"): attribute("labels", ["in", "out"]),
    ("classes", "no labels"): missing("labels"),
    ("classes", "no problem"): missing("problem_type"),
    ("classes", "another problem"): attribute("problem_type", "tea"),
    ("classes", "values missing"): lambda file: file.__delitem__("p"),
    ("classes", "many columns"): sparse("p", 3, LARGE, dtype="<f4"),
    ("residue_classes", "no sequence"): lambda file: file.__delitem__("sequence"),
    ("residue_classes", "no letters"): lambda file: file["sequence"].__setitem__(0, b"1"),
    ("residue_classes", "no ASCII"): lambda file: file["sequence"].__setitem__(0, b"\xff"),
    ("structures", "large"): sparse("positions", LARGE, 14, 3, dtype="<f4"),
    ("structures", "no aligned errors"): lambda file: file.__delitem__("pae"),
    ("structures", "few pairs"): instead("pae", data=np.zeros(7, "|u1")),
    ("structures", "another type"): instead("ptm", data=np.zeros(3)),
    ("structures", "an unknown residue"): value("aatype", 0, 200),
    ("structures", "chains descending"): value("chain", 0, 5),
    ("structures", "pairs begin nowhere"): sparse("pae_offset", LARGE, dtype="<i8"),
    ("structures", "pairs begin in few places"): instead("pae_offset", data=np.zeros(2, "<i8")),
    ("structures", "pairs begin in text"): instead("pae_offset", data=[b"a", b"b", b"c", b"d"]),
    ("structures", "pairs begin elsewhere"): value("pae_offset", 1, 2),
    **{
        ("structures", f"{name} {number}"): value(name, -1, number)
        for name, numbers in {
            "positions": (np.nan, -np.inf),
            "plddt": (np.nan, np.inf, -1, 101),
            "mean_plddt": (np.nan, np.inf, -1, 101),
            "ptm": (np.nan, np.inf, -1, 2),
            "iptm": (np.inf, -1, 2),
            "chunk_size": (-1,),
            "flags": (-1, 4),
            "chain": (-1,),
        }.items()
        for number in numbers
    },
    ("structures", "flags of a number"): attribute("flags", 3),
    ("structures", "no flags"): missing("flags"),
}
ORIGIN = {
    ("structures", "software not JSON"): attribute("software", "{"),
    ("structures", "software of a list"): attribute("software", "[]"),
    ("structures", "software of no version"): attribute("software", '{"esm_pipeline": 1}'),
    ("structures", "no model"): missing("model"),
    ("structures", "recycles of a number"): attribute("num_recycles", 3),
    ("structures", "no word on its weights"): missing("random_weights"),
}
"""What only the command `structures` reads."""

UNREAD = ("lengths below", "offset beyond", "offset not ascending")
"""What of one value a sequence nothing is read of."""

CASES = [
    *(
        (kind, case, change)
        for kind in NAMES
        for case, change in {**EVERY, **LATER}.items()
        if (kind, case in UNREAD) != ("classes", True)
    ),
    *((*names, change) for names, change in OF_ONE.items()),
]


@contextmanager
def in_little() -> Iterator[None]:
    """Little time, and no more than 100 MB."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def changed(path: Path, kind: str, change: Change) -> Path:
    write_result(path, kind)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def named(part: object) -> str:
    return part if isinstance(part, str) else ""


@pytest.mark.parametrize(("kind", "case", "change"), CASES, ids=named)
def test_what_no_task_wrote_is_one_line(
    kind: str, case: str, change: Change, tmp_path: Path
) -> None:
    path = changed(tmp_path / "a.h5", kind, change)
    read = read_all if (kind, case) in OF_ONE or case in LATER else open_results
    with in_little(), pytest.raises(InputError, match=r"a\.h5: .+; give") as error:
        read(path)
    assert "\n" not in str(error.value)


COMMAND_CASES = [
    *(one for one in CASES if one[0] in NAMES[1:]),
    *((*names, change) for names, change in ORIGIN.items()),
]


@pytest.mark.parametrize(("kind", "case", "change"), COMMAND_CASES, ids=named)
def test_commands_refuse_it_in_one_line(
    kind: str, case: str, change: Change, tmp_path: Path
) -> None:
    path = changed(tmp_path / "a.h5", kind, change)
    task = "fold" if kind == "structures" else "classify"
    records = write_outcomes(tmp_path / "records.tsv", task)
    with in_little():
        code, said = commands(path, records, tmp_path / "out")[kind]()
    assert (code, said.count("\n")) == (2, 1), said
    assert f"{path}: " in said
    assert {one.name for one in tmp_path.iterdir()} == {"a.h5", "records.tsv"}


@pytest.mark.parametrize("kind", NAMES)
def test_what_a_task_wrote_is_read(kind: str, tmp_path: Path) -> None:
    """The twin of the tests above."""
    path = write_result(tmp_path / "a.h5", kind)
    read_all(path)
    records = write_outcomes(tmp_path / "r.tsv", "fold" if kind == "structures" else "classify")
    if kind != "embeddings":
        assert commands(path, records, tmp_path / "out")[kind]()[0] == 0


@pytest.mark.parametrize("kind", NAMES)
def test_damaged_bytes_end_in_one_line(kind: str, tmp_path: Path) -> None:
    """In a process of its own, with little memory: HDF5 itself may crash."""
    place = "tests.formats.results.test_validation"
    program = f"from {place} import damage; damage({kind!r}, {str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    count, refused = map(int, done.stdout.split())
    assert 0 < refused < count


def damage(kind: str, folder: str, count: int = 150) -> None:
    """Read a result `count` times, with other bytes changed each time; see the test."""
    path = write_result(Path(folder) / "a.h5", kind)
    whole, draw, refused = path.read_bytes(), random.Random(1), 0
    used = [place for place, byte in enumerate(whole) if byte]
    read_all(path)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    for _ in range(count):
        data = bytearray(whole)
        for place in draw.sample(used, draw.choice([1, 1, 2, 8])):
            data[place] = draw.choice([data[place] ^ 1 << draw.randrange(8), 0, 255])
        path.write_bytes(data)
        try:
            with in_little():
                read_all(path)
        except InputError as error:
            refused += "\n" not in str(error)
    print(count, refused)


def test_text_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = write_result(tmp_path / "a.h5", "embeddings")
    with h5py.File(path) as file:
        place = file["id"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[place : place + 4] = (2**32 - 1).to_bytes(4, "little")
    path.write_bytes(data)
    with in_little(), pytest.raises(DamagedError, match="'id' is not as a task writes it"):
        read_all(path)


@pytest.mark.parametrize("kind", NAMES)
def test_a_finished_file_is_read_whoever_has_locked_it(kind: str, tmp_path: Path) -> None:
    """No flock is requested: on file systems without it, it would fail as it does here."""
    path = write_result(tmp_path / "a.h5", kind)
    with locked(path), pytest.raises(BlockingIOError), h5py.File(path):
        pass
    with locked(path):
        read_all(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have another process hold a lock on a file."""
    program = (
        "import fcntl, sys; file = open(sys.argv[1], 'rb+'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, path]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout
    assert holder.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        holder.communicate()


NOT_DAMAGE = (
    *("EACCES", "EPERM", "EIO", "ENOLCK", "EOPNOTSUPP", "ENOSYS", "ENOMEM", "EMFILE", "ENFILE"),
    *("ESTALE", "ETIMEDOUT", "EAGAIN"),
)


@pytest.mark.parametrize("name", NOT_DAMAGE)
def test_what_the_machine_cannot_is_no_damage(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(errno, name)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, f"Unable to open file (errno = {number})")

    path = write_result(tmp_path / "a.h5", "embeddings")
    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(InputError) as error:
        open_hdf5(path)
    assert not isinstance(error.value, DamagedError)
    told = f"{path}: cannot be read ({os.strerror(number)}); its contents may be whole: check the"
    assert str(error.value).startswith(told)


@pytest.mark.parametrize("kind", NAMES)
def test_a_newer_version_is_no_damage(kind: str, tmp_path: Path) -> None:
    path = changed(tmp_path / "a.h5", kind, attribute("format_version", FORMAT_VERSION + 1))
    told = f"format version {FORMAT_VERSION + 1}, newer than this esm-pipeline; update it"
    with pytest.raises(InputError, match=told) as error:
        open_results(path)
    assert not isinstance(error.value, DamagedError)


@pytest.mark.parametrize("kind", NAMES)
def test_every_earlier_version_is_read(kind: str, tmp_path: Path) -> None:
    """All from the first version on; there is no version 0."""
    for version in range(1, FORMAT_VERSION + 1):
        read_all(changed(tmp_path / f"{version}.h5", kind, attribute("format_version", version)))
    path = changed(tmp_path / "0.h5", kind, attribute("format_version", 0))
    with pytest.raises(DamagedError, match="'format_version' is not a version"):
        open_results(path)


def test_every_kind_of_result_is_tested() -> None:
    assert [f"{name}.h5" for name in NAMES] == [kind.file_name for kind in RESULT_CLASSES]
    assert [f"esm-pipeline/{name}" for name in NAMES] == [kind.format for kind in RESULT_CLASSES]


def test_a_damaged_file_says_why() -> None:
    error = DamagedError("a.h5", "cut short")
    assert str(error) == "a.h5: cut short; give the file as it was written, or make it again"
    assert json.dumps([error.path, error.why]) == '["a.h5", "cut short"]'
    copy = error.__reduce__()
    assert copy[0](*copy[1]).why == error.why


def test_only_complete_origins_are_read(tmp_path: Path) -> None:
    with Structures.open(write_result(tmp_path / "a.h5", "structures")) as results:
        assert results.origin["software"] == "0.1"
