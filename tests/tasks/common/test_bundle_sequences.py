"""The sequences of a range: those of the bundle, and of no other file; a changed byte is told."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.cli import main
from esm_pipeline.errors import InputError
from esm_pipeline.formats.bundles import Bundle, Range
from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks.common import bundle_sequences as module
from esm_pipeline.tasks.common.bundle_sequences import BundleSequences
from esm_pipeline.tasks.common.sequences import open_sequences
from esm_pipeline.tasks.embed.work import EMBED_WORK

TEXT = ">a\nMKVLAAGG\n>b\nMKV:LAA\n>c\nMKVLA\n>d\nM*K\n>e\nMKVLA\n>f\nGAV\n>g\nW\n>h\nMK:G\n"


def shard(folder: Path, text: str = TEXT, least: int = 1) -> Path:
    (folder / "in.fasta").write_text(text)
    arguments = ["shard", "--quiet", "--bundles=1", f"--least={least}", f"--out={folder / 'b'}"]
    assert main([*arguments, str(folder / "in.fasta")]) == 0
    return folder / "b" / "00000.fasta"


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return shard(tmp_path)


def opened(fasta: Path, number: int, count: int, *, complexes: bool = False) -> BundleSequences:
    part = Range(number, count)
    return BundleSequences(fasta, part, "embed", EMBED_WORK, complexes=complexes)


@pytest.mark.parametrize("complexes", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_ranges_together_have_all_sequences(
    fasta: Path, tmp_path: Path, count: int, complexes: bool
) -> None:
    found, whole = {}, {}
    with open_sequences(
        [str(tmp_path / "in.fasta")], CleaningSettings(), tmp_path, complexes=complexes
    ) as wanted:
        texts = wanted.sequences(np.arange(len(wanted.first)))
        numbers = zip(wanted.lengths.tolist(), wanted.digest.tolist(), texts, strict=True)
        whole = dict(zip(wanted.first.tolist(), numbers, strict=True))
        for _, digest, text in whole.values():
            assert f"{digest:016x}" == sha256(text).hexdigest()[:16]
    stop = 0
    for number in range(1, count + 1):
        with opened(fasta, number, count, complexes=complexes) as own:
            assert own.part.attributes == {
                "task": "embed",
                "bundle": sha256((tmp_path / "b" / "00000.index.npz").read_bytes()).hexdigest(),
                "range": f"{number}-of-{count}",
                "first": str(stop),
                "stop": str(stop := stop + own.count),
            }
            texts = own.sequences(np.arange(len(own.first)))
            numbers = zip(own.lengths.tolist(), own.digest.tolist(), texts, strict=True)
            assert not found.keys() & set(own.first.tolist())
            found |= dict(zip(own.first.tolist(), numbers, strict=True))
            records = list(own.records())
            assert [record.index for record in records] == list(range(own.count))
            for record, unique in zip(records, own.unique.tolist(), strict=True):
                assert (unique < 0) == (not complexes and int(record.id) in (1, 7))
                if unique >= 0:
                    assert int(record.id) == own.first[unique]
                    assert record.length == own.lengths[unique]
                    assert own.sequence(unique) == whole[int(record.id)][2]
            assert own.part.bundle_lengths.sum() == sum(one[0] for one in whole.values())
    assert stop == 6
    assert found == whole


def test_sequences_come_in_any_order(fasta: Path) -> None:
    with opened(fasta, 1, 1) as own:
        found = list(own.sequences(np.array([3, 0, 0, 2])))
    assert found == [b"W", b"MKVLAAGG", b"MKVLAAGG", b"GAV"]


def test_which_ranges_say_nothing(tmp_path: Path) -> None:
    """One range of a bundle tells how all were made, also where all are empty."""
    fasta = shard(tmp_path)
    idle = []
    for number in range(1, 10):
        with opened(fasta, number, 9) as own:
            idle.append(own.is_idle)
            assert own.is_idle == (own.count == 0)
    assert any(idle)
    assert not all(idle)
    fasta = shard(tmp_path, ">a\nM*K\n")
    for number in (1, 2, 3):
        with opened(fasta, number, 3) as own:
            assert (own.count, own.is_idle) == (0, number > 1)


def test_every_changed_byte_of_a_range_is_told(fasta: Path) -> None:
    bundle, whole = Bundle.open(fasta), fasta.read_bytes()
    ranges = [bundle.span(EMBED_WORK, Range(number, 2)) for number in (1, 2)]
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        fasta.write_bytes(damaged)
        for number, span in enumerate(ranges, 1):
            if bundle.offset[span.start] <= place < bundle.offset[span.stop]:
                with pytest.raises(InputError, match=r"00000.fasta: damaged, its sequence \d is"):
                    opened(fasta, number, 2)
            else:
                opened(fasta, number, 2).close()


def test_a_bundle_that_is_cut_short(fasta: Path) -> None:
    fasta.write_bytes(fasta.read_bytes()[:-3])
    opened(fasta, 1, 2).close()
    told = r"00000.fasta: damaged, its sequence 6 is not that in 00000.index.npz; remove it and run"
    with pytest.raises(InputError, match=told):
        opened(fasta, 2, 2)


def test_a_bundle_without_its_fasta(fasta: Path) -> None:
    fasta.unlink()
    with pytest.raises(InputError, match=r"00000.fasta: cannot be read \(No such file"):
        opened(fasta, 1, 1)


@given(st.integers(1, 40))
def test_blocks_of_the_check_do_not_matter(tmp_path_factory, batch: int) -> None:
    fasta = shard(tmp_path_factory.mktemp("blocks"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", batch)
        with opened(fasta, 1, 1) as own:
            assert own.count == 6
        fasta.write_bytes(fasta.read_bytes().replace(b"GAV", b"GAW"))
        with pytest.raises(InputError, match="its sequence 5 is not"):
            opened(fasta, 1, 1)


def test_only_the_range_is_read(fasta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], module.os.pread

    def pread(file: int, size: int, place: int) -> bytes:
        read.append((place, size))
        return real(file, size, place)

    monkeypatch.setattr(module.os, "pread", pread)
    bundle = Bundle.open(fasta)
    span = bundle.span(EMBED_WORK, Range(2, 3))
    with opened(fasta, 2, 3) as own:
        list(own.sequences(np.arange(len(own.first))))
    assert min(place for place, _ in read) == bundle.offset[span.start]
    assert max(place + size for place, size in read) == bundle.offset[span.stop]
