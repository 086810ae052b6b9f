"""Bundles: ranges have every sequence once and cost the same; an index is that of its list."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import InputError
from esm_pipeline.formats.bundles import (
    Bundle,
    Range,
    Work,
    digit_counts,
    index_path,
    range_bounds,
    range_names,
    record_offsets,
    write_index,
)
from esm_pipeline.formats.checksums import write_digests

LENGTHS = st.lists(st.integers(1, 40_000), max_size=200).map(lambda one: sorted(one, reverse=True))
WORKS = [
    Work(lambda lengths: lengths * (7680 + lengths)),
    Work(lambda lengths: lengths**3.0, least=1 / 20),
    Work(lambda lengths: lengths * 0),
]


def bundle_of(folder: Path, lengths: list[int], least: int = 1) -> Bundle:
    """A bundle of sequences of some lengths, with its list."""
    fasta, length = folder / "00000.fasta", np.array(lengths, np.int32)
    first = np.arange(len(length))
    write_index(
        index_path(fasta),
        first=first,
        length=length,
        offset=record_offsets(first, length),
        digest=first.astype(np.uint64),
        least=least,
    )
    write_digests(folder / "digests.sha256", {index_path(fasta).name: index_path(fasta)})
    return Bundle.open(fasta)


@pytest.mark.parametrize(
    ("name", "number", "count"), [("1-of-1", 1, 1), ("03-of-40", 3, 40), ("3-of-40", 3, 40)]
)
def test_names_of_ranges(name: str, number: int, count: int) -> None:
    found = Range.parse(name)
    assert found == (number, count)
    assert found.name == f"{number:0{len(str(count))}d}-of-{count}"


@pytest.mark.parametrize(
    "name", ["0-of-3", "4-of-3", "x", "1-of-", "1 of 3", "-1-of-3", "1-of-3\n"]
)
def test_what_is_not_a_range(name: str) -> None:
    with pytest.raises(ValueError, match="is not a range such as 3-of-40"):
        Range.parse(name)


def test_names_sort_as_their_numbers() -> None:
    names = range_names(1200)
    assert names == sorted(names)
    assert [Range.parse(name).number for name in names] == list(range(1, 1201))


@given(LENGTHS, st.integers(1, 60), st.sampled_from(WORKS), st.integers(1, 50_000))
def test_ranges_have_every_sequence_once(
    lengths: list[int], count: int, work: Work, least: int
) -> None:
    array = np.array(lengths, np.int32)
    bundle = Bundle(
        *(Path("x.fasta"), np.arange(len(array)), array, np.zeros(0, np.int64)),
        *(np.zeros(0, np.uint64), least, ""),
    )
    spans = [bundle.span(work, Range(number, count)) for number in range(1, count + 1)]
    assert spans[0].start == 0
    assert spans[-1].stop == len(lengths)
    assert all(one.stop == other.start for one, other in itertools.pairwise(spans))
    assert all(span.start <= span.stop for span in spans)
    filled = min(count, max(1, int(sum(lengths) / max(1.0, least * work.least))))
    assert all(span.start == span.stop for span in spans[filled:])
    cost = np.asarray(work.cost(array.astype(np.int64)), float)
    loads = [cost[span].sum() for span in spans[:filled]]
    share = cost.sum() / filled
    slack = cost.max(initial=0) + 1e-9 * cost.sum()
    assert all(abs(load - share) <= slack for load in loads)


def test_a_giant_is_a_range_of_its_own() -> None:
    cost = np.array([10_000] + [1] * 1000)
    bounds = range_bounds(cost, 4, 4)
    spans = [pair for pair in itertools.pairwise(bounds.tolist()) if pair[0] < pair[1]]
    assert spans == [(0, 1), (1, 1001)]


def test_short_bundles_fill_few_ranges(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [100] * 50, least=1000)
    assert bundle.bounds(WORKS[0], 40).tolist() == [0, 10, 20, 30, 40, *[50] * 36]
    work = Work(WORKS[0].cost, least=1 / 2)
    assert len(set(bundle.bounds(work, 40).tolist())) == 11
    assert bundle.bounds(WORKS[0], 3).tolist() == [0, 17, 33, 50]


def test_a_bundle_without_sequences(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, [])
    assert bundle.bounds(WORKS[0], 3).tolist() == [0, 0, 0, 0]
    assert (len(bundle), bundle.residues, len(bundle.is_complex)) == (0, 0, 0)


@given(st.lists(st.integers(0, 10**12)))
def test_digits(numbers: list[int]) -> None:
    found: Int64 = digit_counts(np.array(numbers, np.int64))
    assert found.tolist() == [len(str(number)) for number in numbers]


def test_an_index_has_the_same_bytes_again(tmp_path: Path) -> None:
    before = index_path(bundle_of(tmp_path, [5, 3, 1]).fasta).read_bytes()
    assert index_path(bundle_of(tmp_path, [5, 3, 1]).fasta).read_bytes() == before


def test_an_index_that_was_changed(tmp_path: Path) -> None:
    path = index_path(bundle_of(tmp_path, [5, 3, 1]).fasta)
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged, its digest is not that in digests.sha256"):
            Bundle.open(tmp_path / "00000.fasta")


@pytest.mark.parametrize("content", [b"", b"x" * 100, "npy", "part"])
def test_what_is_not_an_index(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "00000.index.npz"
    if content in ("npy", "part"):
        stream = io.BytesIO()
        if content == "npy":
            np.save(stream, np.arange(3))
        else:
            np.savez(stream, first=np.arange(3))
        content = stream.getvalue()
    assert isinstance(content, bytes)
    path.write_bytes(content)
    write_digests(tmp_path / "digests.sha256", {path.name: path})
    with pytest.raises(InputError, match=r"00000.index.npz: not the index of a bundle \("):
        Bundle.open(tmp_path / "00000.fasta")


def test_an_index_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"00000.index.npz: no such file; give a bundle of"):
        Bundle.open(tmp_path / "00000.fasta")
