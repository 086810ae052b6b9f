"""Disks that are full or cannot be written: one line that says where and what to do, nothing left
behind, and the same command completes once there is room.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from esm_pipeline.formats.checksums import line, sha256, write_digests
from tests.commands import (
    COMMANDS,
    Command,
    Files,
    Sample,
    assert_whole,
    contents,
    embed,
    gather,
    h5ad,
    job,
    make_sample,
    shard,
    table,
    uniprot,
)
from tests.disks import PAGE, WITHIN, Disk, can_mount, needs_a_disk
from tests.forked import Ended, Forked

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[1]

NO_ROOM = re.compile(r"this job needs [0-9.]+ MB of disk space and the .*; free some or .*")
FULL = "no space left on the disk; free some and run the same command again"


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    with Forked(*WITHIN) if can_mount() else Forked() as forked:
        yield forked


@pytest.fixture(scope="module")
def powerless(forked: Forked) -> Iterator[Forked]:
    """A process that can become one for which permissions count, or is one."""
    if os.geteuid() == 0:
        if not all(place.stat().st_mode & 0o001 for place in (ROOT, *ROOT.parents)):
            pytest.skip("no other user may read this clone")
        yield forked
    else:
        with Forked() as powerless:
            yield powerless


def fasta(seed: int, records: int) -> str:
    """Records of which some are bad and some the same."""
    letters = random.Random(seed)
    sequences = ["".join(letters.choices("ACDEFGHIKLMNPQRSTVWY", k=60)) for _ in range(records)]
    sequences[3:6] = ["MK*V", sequences[0], "M-K"]
    return "".join(f">protein_{place} of none\n{one}\n" for place, one in enumerate(sequences))


@pytest.fixture(scope="module")
def samples(forked: Forked, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    folder = tmp_path_factory.mktemp("samples")
    return {
        name: make_sample(forked, folder / name, fasta(seed, records), bundles)
        for seed, (name, records, bundles) in enumerate((("new", 120, 3), ("old", 100, 5)))
    }


@pytest.fixture
def disk(forked: Forked, tmp_path: Path) -> Disk:
    return Disk(forked, tmp_path / "disk")


def undisturbed(forked: Forked, command: Command, out: Path) -> Files:
    """What a command writes into `out` when nothing happens."""
    assert forked.main(*command) == Ended(0, "")
    return contents(out)


def told(ended: Ended, remedy: str, folder: Path) -> str:
    """The place in `folder` that is named by the one line of a command that asks for `remedy`."""
    assert ended.code == 2, ended.said
    (line,) = ended.lines
    found = re.fullmatch(rf"esm-pipeline [a-z]+: (/\S+): {re.escape(remedy)}", line)
    assert found, line
    return str(Path(found[1]).relative_to(folder))


NAMED = {
    shard: {
        *(".", "digests.sha256"),
        *(f"0000{n}.{end}" for n in range(3) for end in ("fasta", "index.npz", "records.tsv")),
    },
    embed: {".", "out.h5", "out.records.tsv", "out.sha256"},
    job: {".", "1-of-2.h5"},
    gather: {"00000.h5", "00000.status.tsv", "00000.sha256"},
    table: {"records.tsv", "records.json", "digests.sha256"},
    uniprot: {"per-protein.h5", "per-protein.names.tsv"},
    h5ad: {"out.h5ad"},
}
"""Where a disk fills up that was empty, by name; `.` stands for the spool."""


@needs_a_disk
@pytest.mark.parametrize("make", COMMANDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("over", "step"),
    [
        pytest.param(True, 5 * PAGE, id="over old results"),
        pytest.param(True, PAGE, id="over old results, every size", marks=pytest.mark.long),
        pytest.param(False, PAGE, id="fresh, every size", marks=pytest.mark.long),
    ],
)
def test_a_disk_that_fills_up_anywhere(forked, samples, disk, tmp_path, make, over, step):
    runs = []
    for name, sample in samples.items():
        out = tmp_path / name
        out.mkdir()
        runs.append(undisturbed(forked, make(sample, out), out))
    new, old = runs
    for name, data in old.items() if over else ():
        (disk.seen / name).write_bytes(data)
    size, named = max(PAGE, disk.used), set()
    command = make(samples["new"], disk.path)
    while True:
        disk.set(f"size={size}k")
        ended = forked.main(*command)
        if ended.code == 0:
            break
        if make is job and NO_ROOM.search(ended.said):
            ended = Ended(ended.code, NO_ROOM.sub(FULL, ended.said))
        named.add(told(ended, FULL, disk.path))
        found = contents(disk.seen)
        assert not [name for name in found if name.startswith(".")]
        assert_whole(found, [new, old] if over else [new], COMMANDS[make])
        if over:
            assert found == old
        size += step
    assert ended == Ended(0, "")
    assert contents(disk.seen) == new
    assert named <= NAMED[make] | {*COMMANDS[make]}
    first = {"."} if make is job else NAMED[make]  # a job looks at the room before it writes
    assert over or named == first


@pytest.mark.parametrize("make", COMMANDS, ids=lambda make: make.__name__)
def test_files_that_may_not_grow(forked, samples, tmp_path, make):
    """As a disk that fills up, but on any machine."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    whole.mkdir()
    out.mkdir()
    new = undisturbed(forked, make(samples["new"], whole), whole)
    remedy = "larger than a file may be; raise the limit (ulimit -f) or choose another place"
    named = set()
    for size in (1000, 3000, max(map(len, new.values())) - 1):
        ended = forked.main(*make(samples["new"], out), size=size)
        named.add(told(ended, remedy, out))
        assert_whole(contents(out), [new], COMMANDS[make])
    assert named <= NAMED[make] | {*COMMANDS[make]}
    assert undisturbed(forked, make(samples["new"], out), out) == new


def test_too_few_open_files(forked, samples, tmp_path):
    remedy = "too many open files; raise the limit (ulimit -n)"
    for files in range(5, 9):
        ended = forked.main(*shard(samples["new"], tmp_path), files=files)
        assert (ended.code, len(ended.lines)) == (2, 1)
        assert ended.said.endswith(f": {remedy}\n")
        assert contents(tmp_path) == {}
    assert told(ended, remedy, tmp_path) == "."


def verdict(sample: Sample, out: Path) -> Command:
    return ("verdict", "--out", out / "verdict.txt", sample.folder / "records.tsv")


def report(sample: Sample, out: Path) -> Command:
    return ("report", "--out", out / "report.html", sample.folder)


def provenance(sample: Sample, out: Path) -> Command:
    settings = json.dumps({"fasta": str(sample.fasta)})
    return ("provenance", "--settings", settings, "--out", out / "provenance.json")


FIRST = {
    shard: {"."},
    embed: {"out.h5"},
    gather: {"00000.h5", "00000.status.tsv", "00000.sha256"},
    table: {"records.tsv", "records.json", "digests.sha256"},
    verdict: {"verdict.txt"},
    report: {"report.html"},
    provenance: {"provenance.json", "provenance.sha256"},
}
"""What each command cannot write first, by name; `.` is the folder."""

every_command = pytest.mark.parametrize("make", FIRST, ids=lambda make: make.__name__)


def put_results(sample: Sample, folder: Path) -> None:
    """The results of a sample, as the workflow has them, for `provenance`."""
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "counts").mkdir()
    shutil.copy(sample.folder / "records.tsv", folder / "in" / "records.tsv")
    shutil.copy(sample.folder / "records.json", folder / "in" / "counts" / "records.json")
    shutil.copy(sample.folder / "embed" / "00000.h5", folder / "in" / "embeddings.h5")
    counted = {name: folder / "in" / "counts" / name for name in ("../records.tsv", "records.json")}
    write_digests(folder / "in" / "counts" / "digests.sha256", counted)
    listing = line(sha256(sample.fasta), str(sample.fasta))
    (folder / "in" / "inputs.sha256").write_text(listing)
    facts = {"format": "esm-pipeline/model", "name": "demo", "revision": None}
    (folder / "model.json").write_text(json.dumps({**facts, "weights_sha256": "0" * 64}))
    for name in ("report.html", "verdict.txt"):
        (folder / name).touch()


LEFT = ["in", "model.json", "report.html", "verdict.txt"]


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def written(folder: Path) -> str:
    """All files in a folder, without the time that `provenance` writes down, and its digest."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    return re.sub(r"\d\d:\d\d:\d\d|[0-9a-f]{64}  provenance", "", repr(files))


@needs_a_disk
@every_command
@pytest.mark.parametrize(
    ("bad", "good", "remedy"),
    [
        ("size={used}k", "size=8m", FULL),
        ("nr_inodes={inodes}", "nr_inodes=1000", FULL),
        ("ro", "rw", "the file system is read-only; choose another place for the output"),
    ],
    ids=["full", "no inode left", "read only"],
)
def test_a_disk_that_takes_nothing(forked, samples, disk, tmp_path, make, bad, good, remedy):
    sample = samples["new"]
    for folder in (disk.seen, tmp_path / "whole"):
        put_results(sample, folder)
    command = make(sample, disk.path)
    used = sum(-(-path.stat().st_size // 4096) * 4 for path in files_in(disk.seen))
    disk.set(bad.format(used=used, inodes=1 + len([*disk.seen.rglob("*")])))
    assert told(forked.main(*command), remedy, disk.path) in FIRST[make]
    assert sorted(path.name for path in disk.seen.iterdir()) == LEFT
    disk.set(good)
    assert forked.main(*command).code == 0
    assert forked.main(*make(sample, tmp_path / "whole")).code == 0
    assert written(disk.seen) == written(tmp_path / "whole")


@pytest.fixture
def public(samples: dict[str, Sample]) -> Iterator[Sample]:
    """A copy of the new sample that everyone may read; root's other folders may be closed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(samples["new"].folder, folder / "sample")
        shutil.copytree(samples["new"].model, folder / "model")
        sample = Sample(folder / "sample", samples["new"].bundles, folder / "model")
        put_results(sample, folder / "out")
        for path in folder.rglob("*"):
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
        yield sample


@every_command
def test_a_folder_of_someone_else(powerless, public, make):
    """As an unprivileged user; it may read all, and write nothing."""
    out = public.folder.parent / "out"
    out.chmod(0o555)
    accident = {"user": NOBODY} if os.geteuid() == 0 else {}
    command = make(public, out)
    remedy = "permission denied; choose another place or change its permissions"
    assert told(powerless.main(*command, **accident), remedy, out) in FIRST[make]
    assert sorted(path.name for path in out.iterdir()) == LEFT
    out.chmod(0o777)
    assert powerless.main(*command, **accident).code == 0
