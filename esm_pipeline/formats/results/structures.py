"""Writing and reading a `structures.h5`: predicted structures as arrays of one HDF5 file.

It holds what `fold` computes for each unique sequence. Files of structures are made from it, so
that settings of these files can change without running the model again.

with open_results("structures.h5") as results:
    results["P12345"].structure       # atoms, pLDDT, pTM
    results["P12345"].pae             # (R, R) Å
    results.to_pandas()               # one row for each record
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float32, Int64
from esm_pipeline.formats.results.attributes import json_attribute, text_attribute
from esm_pipeline.formats.results.layout import Array
from esm_pipeline.formats.results.reader import RaggedResults, StoredRecord
from esm_pipeline.formats.results.validation import DatasetRule, require
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.structure.pae import to_angstrom
from esm_pipeline.structure.residues import COUNT
from esm_pipeline.structure.structure import RANDOM, Structure

if TYPE_CHECKING:
    import pandas as pd

ARRAYS = (
    Array("aatype", "residue", (), "|u1"),  # index in residues.LETTERS
    Array("chain", "residue", (), "<i4"),  # 0, 1, …
    Array("positions", "residue", (14, 3), "<f4"),  # Å, atom14 order; 0 where there is no atom
    Array("plddt", "residue", (14,), "<f4"),  # 0–100
    Array("pae", "pair", (), "|u1"),  # eighths of Å
    Array("mean_plddt", "sequence", (), "<f4"),
    Array("ptm", "sequence", (), "<f4"),
    Array("iptm", "sequence", (), "<f4"),  # nan for a single chain
    Array("chunk_size", "sequence", (), "<i4"),  # 0 for none
    Array("flags", "sequence", (), "<i4"),  # bits, in the order of the attribute `flags`
)
ORIGIN = ("model", "revision", "weights_sha256", "dtype", "num_recycles", RANDOM)
"""Attributes that describe how the structures were made."""

MOST_FLAGS = 32


def write_structures(
    writer: RaggedWriter,
    rows: Int64,
    structures: Sequence[Structure],
    chunk_sizes: Sequence[int],
    flags: Sequence[int],
) -> None:
    """Write `structures` to the `rows` of a file with `ARRAYS`."""
    joined = {
        "aatype": np.concatenate([one.aatype for one in structures]),
        "chain": np.concatenate([one.chains for one in structures]),
        "positions": np.concatenate([one.positions for one in structures]),
        "plddt": np.concatenate([one.plddt for one in structures]),
        "pae": np.concatenate([one.pae.ravel() for one in structures]),
        "mean_plddt": np.array([one.mean_plddt for one in structures]),
        "ptm": np.array([one.ptm for one in structures]),
        "iptm": np.array([np.nan if one.iptm is None else one.iptm for one in structures]),
        "chunk_size": np.array(chunk_sizes),
        "flags": np.array(flags),
    }
    for name, values in joined.items():
        writer.write(name, rows, values)


class Structures(RaggedResults["FoldedProtein"]):
    """The records of a `structures.h5`."""

    format = "esm-pipeline/structures"
    file_name = "structures.h5"
    rules = tuple(DatasetRule(one.name, one.per, one.shape, (one.dtype,)) for one in ARRAYS)

    def check_more(self) -> None:
        """All arrays are stored, and the names of the flags."""
        for array in ARRAYS:
            require(isinstance(self.file.get(array.name), h5py.Dataset), array.name)
        self.flag_names: list[str] = json_attribute(self.file, "flags", list)
        require(len(self.flag_names) < MOST_FLAGS, "flags")

    @cached_property
    def origin(self) -> dict[str, str]:
        """How the structures were made: the model, its settings, and `software`, the version of
        this package.
        """
        with self.reading():
            found = {name: text_attribute(self.file, name) for name in ORIGIN}
            version = json_attribute(self.file, "software", dict).get("esm_pipeline")
            if not isinstance(version, str):
                raise ValueError("attribute 'software' does not name esm_pipeline's version")
            return {**found, "software": version}

    def item(self, position: int) -> FoldedProtein:
        """The record at a position, 0 to N - 1."""
        return FoldedProtein(self, position)

    @cached_property
    def pairs(self) -> Int64:
        """(U + 1,) where the residue pairs of each row begin."""
        return self.pairs_of("pae")

    @cached_property
    def per_sequence(self) -> dict[str, NDArray[Any]]:
        """Name → (U,) values of the arrays with one value for each row. Raises DamagedError."""
        most = {
            **{"mean_plddt": 100, "ptm": 1, "iptm": 1, "chunk_size": math.inf},
            "flags": (1 << len(self.flag_names)) - 1,
        }
        found = {name: self.file[name][...] for name in most}
        with self.reading():
            for name, values in found.items():
                fit = (values >= 0) & (values <= most[name])
                require((fit | np.isnan(values) if name == "iptm" else fit).all(), name)
        return found

    def structure(self, row: int) -> Structure:
        """The structure in a row."""
        start, stop = self.offset[row : row + 2].tolist()
        first, last = self.pairs[row : row + 2].tolist()
        size, one = stop - start, {name: values[row] for name, values in self.per_sequence.items()}
        aatype = self.file["aatype"][start:stop].astype(np.int64)
        chains = self.file["chain"][start:stop].astype(np.int64)
        positions, plddt = (self.file[name][start:stop] for name in ("positions", "plddt"))
        with self.reading():
            require((aatype < COUNT).all(), "aatype")
            require(chains[0] == 0 and np.isin(np.diff(chains), (0, 1)).all(), "chain")
            require(np.isfinite(positions).all(), "positions")
            require(((plddt >= 0) & (plddt <= 100)).all(), "plddt")
        return Structure(
            aatype=aatype,
            chains=chains,
            positions=positions,
            plddt=plddt,
            pae=self.file["pae"][first:last].reshape(size, size),
            mean_plddt=float(one["mean_plddt"]),
            ptm=float(one["ptm"]),
            iptm=None if np.isnan(one["iptm"]) else float(one["iptm"]),
        )

    def chain_count(self, row: int) -> int:
        """Number of chains of the structure in a row."""
        return int(self.file["chain"][self.offset[row + 1] - 1]) + 1

    def flags(self, row: int) -> list[str]:
        """The flags of the structure in a row; see `structure.quality.FLAGS`."""
        bits = int(self.per_sequence["flags"][row])
        return [name for place, name in enumerate(self.flag_names) if bits >> place & 1]

    def to_pandas(self) -> pd.DataFrame:
        """A table with one row for each record: id, index, length, mean plddt, ptm, iptm, flags."""
        import pandas as pd

        flags = [";".join(self.flags(row)) for row in range(len(self.length))]
        return pd.DataFrame(
            {
                "id": self.ids,
                "index": self.index,
                "length": self.length[self.row],
                "plddt": self.per_sequence["mean_plddt"][self.row],
                "ptm": self.per_sequence["ptm"][self.row],
                "iptm": self.per_sequence["iptm"][self.row],
                "flags": [flags[row] for row in self.row.tolist()],
            }
        )


class FoldedProtein(StoredRecord["Structures"]):
    """The structure of one record; `length` counts the residues of all chains."""

    @cached_property
    def structure(self) -> Structure:
        """Residues, atoms and confidences."""
        return self._results.structure(self._row)

    @property
    def pae(self) -> Float32:
        """(R, R) predicted aligned error in Å."""
        return to_angstrom(self.structure.pae)

    @property
    def flags(self) -> list[str]:
        """The flags of the structure; see `structure.quality.FLAGS`."""
        return self._results.flags(self._row)
