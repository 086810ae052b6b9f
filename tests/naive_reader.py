"""What is in a result, read whole and searched from the first record to the last: an oracle."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from esm_pipeline.formats.results.layout import RecordRow
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.formats.results.validation import arrays_of
from esm_pipeline.formats.results.writer import RaggedWriter


class NaiveRecord(NamedTuple):
    id: str
    position: int
    row: int
    length: int


AMBIGUOUS = NaiveRecord("", -1, -1, -1)


class NaiveReader:
    """The records of a file, and the values of each."""

    def __init__(self, path: Path) -> None:
        with h5py.File(path, "r", locking=False) as file:
            self.lengths = file["length"][...].tolist()
            ids, self.index = file["id"].asstr()[...].tolist(), file["index"][...].tolist()
            self.records = [
                NaiveRecord(name, position, row, self.lengths[row])
                for name, position, row in zip(ids, self.index, file["row"][...], strict=True)
            ]
            self.arrays: dict[str, tuple[str, np.ndarray]] = {}
            file.visititems(self._keep)

    def _keep(self, name: str, item: h5py.Dataset | h5py.Group) -> None:
        if "per" in item.attrs:
            self.arrays[name] = (item.attrs["per"], item[...])

    def with_id(self, name: str) -> NaiveRecord | None:
        found = [record for record in self.records if record.id == name]
        if len({record.row for record in found}) > 1:
            return AMBIGUOUS
        return found[0] if found else None

    def with_index(self, index: int) -> NaiveRecord | None:
        found = [one for one, at in zip(self.records, self.index, strict=True) if at == index]
        return found[0] if found else None

    def values(self, name: str, row: int) -> np.ndarray:
        per, values = self.arrays[name]
        power = {"sequence": 0, "residue": 1, "pair": 2}[per]
        begin = sum(length**power for length in self.lengths[:row])
        return values[begin : begin + self.lengths[row] ** power]


def deal(source: Path, folder: Path, count: int, seed: int = 0) -> Path:
    """Deal the sequences of a result to `count` bundles, and mix them there; `folder` is new."""
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with open_results(source) as whole:
        owner = draw.integers(0, count, len(whole.length))
        for number in range(count):
            kept = draw.permutation(np.flatnonzero(owner == number))
            rows = np.full(len(owner), -1)
            rows[kept] = np.arange(len(kept))
            entries = [
                RecordRow(name, index, int(rows[row]))
                for name, index, row in zip(
                    whole.ids, whole.index.tolist(), whole.row.tolist(), strict=True
                )
                if rows[row] >= 0
            ]
            path, arrays = folder / f"{number:05d}.h5", arrays_of(whole.file)
            lengths, told = whole.length[kept], whole.attributes
            with RaggedWriter(path, arrays, lengths, len(entries), entries, told) as writer:
                writer.copy(whole.file, rows)
    return folder
