"""Files of ranges, and of bundles, that are damaged or do not belong together are named."""

import hashlib
import shutil

import h5py
import numpy as np
import pytest

from esm_pipeline.formats.bundles import Range, Work
from esm_pipeline.formats.checksums import sha256
from esm_pipeline.formats.results.job_files import seal
from tests.jobs import make_job, make_jobs
from tests.tasks.run.test_aggregate import (
    FASTA,
    INCLUDE,
    TABLE,
    embed,
    gather_command,
    replace,
    run,
    shard,
)


@pytest.fixture
def embedded(rotary, tmp_path):
    """A bundle, embedded in three ranges and not yet gathered."""
    shard(tmp_path)
    embed(tmp_path, rotary, 3)
    return tmp_path


def job(folder, number):
    return folder / "embed" / "00000" / f"{number}-of-3.h5"


def flip(name):
    def change(folder):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return change


def cut(folder):
    path = job(folder, 2)
    path.write_bytes(path.read_bytes()[:-100])


def remove(name):
    return lambda folder: (folder / name).unlink()


def sealed(number, name, values):
    """A dataset of a range's file is replaced, as if it had been so from the start."""

    def change(folder):
        with h5py.File(job(folder, number), "r+") as file:
            file[name][...] = values(file[name][...])
        seal(job(folder, number))

    return change


def swap(folder):
    one, other = job(folder, 1), job(folder, 2)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def of_other_sequences(folder):
    """Ranges of a bundle alike in numbers and lengths."""
    other = folder / "other"
    other.mkdir()
    shard(other, FASTA.replace("WYVTSRQ", "WYVTSRE"))
    shutil.rmtree(folder / "bundles")
    shutil.copytree(other / "bundles", folder / "bundles")


def begin_elsewhere(folder):
    """The third range as another rule of costs would cut it."""
    flat = Work(lambda lengths: lengths**0)
    make_job(folder / "bundles" / "00000.fasta", Range(3, 3), job(folder, 3), flat)


def end_early(folder):
    """The one range has half of the bundle."""
    jobs = folder / "embed" / "00000"
    make_job(folder / "bundles" / "00000.fasta", Range(1, 2), jobs / "1-of-1.h5")
    with h5py.File(jobs / "1-of-1.h5", "r+") as file:
        file.attrs["range"] = "1-of-1"
    seal(jobs / "1-of-1.h5")


def sign(path):
    """Write the digest of a file anew in its folder's list, as if it had been so from the start."""
    listing = path.parent / "digests.sha256"
    text = listing.read_text()
    (old,) = (line for line in text.splitlines() if line.endswith(f"  {path.name}"))
    listing.write_text(text.replace(old, f"{sha256(path)}  {path.name}"))


def signed(change, name):
    """The same change, with the digest of the changed file."""

    def both(folder):
        change(folder)
        sign(folder / name)

    return both


DIGEST = hashlib.sha256(b"WYVTSRQPNMLKIHGFEDCA").hexdigest()
OF_A_RANGE = "2-of-3.h5: damaged, or not the result of a range ("


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            replace(TABLE, "\tmiddle\t", "\tmiddlE\t"),
            f"{TABLE}: damaged, its digest is not that in digests.sha256; remove it and run",
        ),
        (
            flip("bundles/00000.index.npz"),
            "00000.index.npz: damaged, its digest is not that in digests.sha256; remove it and",
        ),
        (
            replace("bundles/digests.sha256", "00000.records.tsv", "record.tsv"),
            "bundles/digests.sha256: does not list 00000.records.tsv; remove it and run the",
        ),
        (replace("bundles/digests.sha256", "  ", " "), "digests.sha256:1: not a digest and a file"),
        (remove("bundles/digests.sha256"), "digests.sha256: no such file; run the workflow again"),
        (remove("bundles/00000.index.npz"), "00000.index.npz: no such file; give a bundle of"),
        (remove(TABLE), f"{TABLE}: no such file; remove the folder and run the workflow again"),
        (
            signed(replace(TABLE, "\tok\t", "\t"), TABLE),
            f"{TABLE}: not a table of records (",
        ),
        (replace(TABLE, DIGEST, "x" + DIGEST[1:]), f"{TABLE}: not a table of records ("),
        (replace(TABLE, DIGEST, "é" + DIGEST[1:]), f"{TABLE}: not a table of records ("),
        (replace(TABLE, "\n4\t", "\n4.5\t"), f"{TABLE}: not a table of records ("),
        (replace(TABLE, "\n4\t", f"\n{10**30}\t"), f"{TABLE}: not a table of records ("),
        (replace(TABLE, "\tmiddle\t", '\t"middle\t'), f"{TABLE}: not a table of records ("),
        (
            signed(replace(TABLE, DIGEST, DIGEST[::-1]), TABLE),
            f"{TABLE}: record 7 ('last') is not in 00000.index.npz; remove the folder and run",
        ),
        (
            signed(replace(TABLE, "\n4\tmiddle", "\n3\tmiddle"), TABLE),
            f"{TABLE}: its records are not in order; remove the folder and run the workflow",
        ),
        (
            signed(replace(TABLE, f"\t{DIGEST}\tok\t", "\t\tskipped\t"), TABLE),
            f"{TABLE}: has 4 of the 5 sequences of the bundle; remove the folder and run",
        ),
        (flip("embed/00000/2-of-3.h5"), f"{OF_A_RANGE}"),
        (cut, f"{OF_A_RANGE}"),
        (remove("embed/00000/2-of-3.h5"), "2-of-3.h5: no such file; run the workflow again to"),
        (sealed(2, "outcome/status", lambda codes: codes * 0 + 3), f"{OF_A_RANGE}'index' is not"),
        (sealed(2, "outcome/status", lambda codes: codes * 0 + 9), f"{OF_A_RANGE}'outcome/status'"),
        (sealed(2, "index", lambda index: index + 1), f"{OF_A_RANGE}'index' is not as a task"),
        (swap, "1-of-3.h5: its range is '2-of-3', not '1-of-3'; remove it and run the workflow"),
        (of_other_sequences, "1-of-3.h5: its bundle is '"),
        (begin_elsewhere, "3-of-3.h5: its first is '3', not '2'; remove it and run the workflow"),
    ],
)
def test_what_does_not_fit_is_named(embedded, esm, damage, message):
    damage(embedded)
    code, lines = esm(*gather_command(embedded, 3))
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert "remove" in lines[0] or "no such file" in lines[0]
    assert not (embedded / "embeddings.h5").exists()
    assert not (embedded / "embed" / "00000.status.tsv").exists()


def test_undamaged_ranges_are_gathered(embedded, esm):
    """The twin of the test above."""
    assert esm(*gather_command(embedded, 3))[0] == 0
    assert (embedded / "embeddings.h5").exists()


def test_ranges_that_end_early(embedded, esm):
    end_early(embedded)
    code, lines = esm(*gather_command(embedded, 1))
    assert (code, len(lines)) == (2, 1)
    assert "1-of-1.h5: ends before the last sequence of the bundle; remove it and" in lines[0]


def test_results_of_another_task_are_refused(embedded, esm):
    command = ["classify" if part == "embed" else part for part in gather_command(embedded, 3)]
    code, lines = esm(*command)
    assert (code, len(lines)) == (2, 1)
    assert "1-of-3.h5: its task is 'embed', not 'classify'; remove it and run" in lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", "1"), "3-of-3.h5: layers is '1', but '0,-1' in 1-of-3.h5"),
        (
            ("--residue-dtype", "float32"),
            "3-of-3.h5: residue_dtype is 'float32', but 'float16' in 1-of-3.h5",
        ),
        (("--dtype", "bfloat16"), "3-of-3.h5: dtype is 'bfloat16', but 'float32' in 1-of-3.h5"),
    ],
)
def test_ranges_made_otherwise_are_refused(embedded, rotary, esm, options, message):
    command = ("embed", "--quiet", "--model", rotary, *INCLUDE, *options, "--range", "3-of-3")
    assert run(*command, embedded / "bundles" / "00000.fasta", job(embedded, 3)) == 0
    code, lines = esm(*gather_command(embedded, 3))
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]


def test_ranges_of_another_model_are_refused(embedded, absolute, esm):
    command = ("embed", "--quiet", "--model", absolute, *INCLUDE, "--range", "3-of-3")
    assert run(*command, embedded / "bundles" / "00000.fasta", job(embedded, 3)) == 0
    code, lines = esm(*gather_command(embedded, 3))
    assert (code, len(lines)) == (2, 1)
    assert "3-of-3.h5: model is" in lines[0]


def test_any_damaged_byte_is_told_or_does_not_matter(tmp_path, esm):
    """Of every byte of the files of two ranges, some at random."""
    shard(tmp_path)
    make_jobs(tmp_path / "bundles" / "00000.fasta", tmp_path / "embed" / "00000", 2)
    assert run(*gather_command(tmp_path, 2), "--quiet") == 0
    result, status = tmp_path / "embeddings.h5", tmp_path / "embed" / "00000.status.tsv"
    right, told = (result.read_bytes(), status.read_bytes()), 0
    random = np.random.default_rng(0)
    for name in ("1-of-2.h5", "2-of-2.h5"):
        path = tmp_path / "embed" / "00000" / name
        whole = path.read_bytes()
        for place in random.choice(len(whole), 150, replace=False).tolist():
            damaged = bytearray(whole)
            damaged[place] ^= 1 << random.integers(8)
            path.write_bytes(damaged)
            code, lines = esm(*gather_command(tmp_path, 2), "--quiet")
            told += code == 2
            assert (code, len(lines)) in ((0, 0), (2, 1)), (place, lines)
            assert code == 0 or name in lines[0]
            assert (result.read_bytes(), status.read_bytes()) == right, place
        path.write_bytes(whole)
    assert told > 30


def test_files_of_another_cut_are_removed_with_nothing_else(embedded, rotary):
    """What a run left that ended before it gathered, when the next one made other jobs."""
    folder = embedded / "embed" / "00000"
    embed(embedded, rotary, 2)
    kept = [folder / name for name in ("mine.h5", "1-of-2.txt", "1-of-2")]
    for path in kept:
        path.touch()
    assert len([*folder.glob("*-of-*.h5")]) == 5
    assert run(*gather_command(embedded, 3)) == 0
    assert sorted(folder.glob("*-of-*.h5")) == [job(embedded, number) for number in (1, 2, 3)]
    assert all(path.exists() for path in kept)
