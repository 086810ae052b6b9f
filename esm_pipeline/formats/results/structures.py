"""Predicted structures as arrays of one flat HDF5 file, `structures.h5`; see `hdf5`.

What `fold` computes for each unique sequence, before any file of a structure is written: settings
that only change those files need no model again.

with open_results("structures.h5") as results:
    results["P12345"].structure       # atoms, pLDDT, pTM
    results["P12345"].pae             # (R, R) Å
    results.to_pandas()               # one row a record
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
from esm_pipeline.formats.results.reader import RaggedResults, StoredRecord
from esm_pipeline.formats.results.validation import Declared, json_attribute, text_attribute
from esm_pipeline.formats.results.writer import Array, RaggedWriter, require
from esm_pipeline.structure.pae import to_angstrom
from esm_pipeline.structure.residues import COUNT
from esm_pipeline.structure.structure import RANDOM, Structure

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "esm-pipeline/structures"
ARRAYS = (
    Array("aatype", "residue", (), "|u1"),  # place in residues.LETTERS
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
"""Attributes that tell how structures were made."""

MOST_FLAGS = 32


def write_structures(
    writer: RaggedWriter,
    rows: Int64,
    structures: Sequence[Structure],
    chunk_sizes: Sequence[int],
    flags: Sequence[int],
) -> None:
    """Write `structures` into `rows` of a file with `ARRAYS`."""
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


class Structures(RaggedResults["Folded"]):
    """The records of a `structures.h5`."""

    format = FORMAT
    declared = tuple(Declared(one.name, one.per, one.shape, (one.dtype,)) for one in ARRAYS)

    def check_more(self) -> None:
        """All arrays are there, and the attributes that files of structures tell."""
        for array in ARRAYS:
            require(isinstance(self.file.get(array.name), h5py.Dataset), array.name)
        self.flag_names: list[str] = json_attribute(self.file, "flags", list)
        require(len(self.flag_names) < MOST_FLAGS, "flags")

    @cached_property
    def origin(self) -> dict[str, str]:
        """How the structures were made, as their files tell it: the model and its settings.

        `software` is the version of this package.
        """
        with self.judged():
            told = {name: text_attribute(self.file, name) for name in ORIGIN}
            version = json_attribute(self.file, "software", dict).get("esm_pipeline")
            if not isinstance(version, str):
                raise ValueError("attribute 'software' does not name esm_pipeline's version")
            return {**told, "software": version}

    def item(self, position: int) -> Folded:
        """The record at a position among those that are stored."""
        return Folded(self, position)

    @cached_property
    def pairs(self) -> Int64:
        """(U + 1,) where the pairs of residues of each row begin."""
        return self.pairs_of("pae")

    @cached_property
    def of_sequence(self) -> dict[str, NDArray[Any]]:
        """What there is one value of for each row, (U,) by name. Raises DamagedError."""
        most = {
            **{"mean_plddt": 100, "ptm": 1, "iptm": 1, "chunk_size": math.inf},
            "flags": (1 << len(self.flag_names)) - 1,
        }
        found = {name: self.file[name][...] for name in most}
        with self.judged():
            for name, values in found.items():
                fit = (values >= 0) & (values <= most[name])
                require((fit | np.isnan(values) if name == "iptm" else fit).all(), name)
        return found

    def structure(self, row: int) -> Structure:
        """The structure in a row."""
        start, stop = self.offset[row : row + 2].tolist()
        first, last = self.pairs[row : row + 2].tolist()
        size, one = stop - start, {name: values[row] for name, values in self.of_sequence.items()}
        aatype = self.file["aatype"][start:stop].astype(np.int64)
        chains = self.file["chain"][start:stop].astype(np.int64)
        positions, plddt = (self.file[name][start:stop] for name in ("positions", "plddt"))
        with self.judged():
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
        """The chains of the structure in a row."""
        return int(self.file["chain"][self.offset[row + 1] - 1]) + 1

    def flags(self, row: int) -> list[str]:
        """What is wrong with the structure in a row."""
        bits = int(self.of_sequence["flags"][row])
        return [name for place, name in enumerate(self.flag_names) if bits >> place & 1]

    def to_pandas(self) -> pd.DataFrame:
        """A table with one row a record: id, index, length, plddt (mean), ptm, iptm, flags."""
        import pandas as pd

        flags = [";".join(self.flags(row)) for row in range(len(self.length))]
        return pd.DataFrame(
            {
                "id": self.ids,
                "index": self.index,
                "length": self.length[self.row],
                "plddt": self.of_sequence["mean_plddt"][self.row],
                "ptm": self.of_sequence["ptm"][self.row],
                "iptm": self.of_sequence["iptm"][self.row],
                "flags": [flags[row] for row in self.row.tolist()],
            }
        )


class Folded(StoredRecord["Structures"]):
    """The structure of one record; `length` is of all chains."""

    @cached_property
    def structure(self) -> Structure:
        """Its residues, atoms and confidences."""
        return self._results.structure(self._row)

    @property
    def pae(self) -> Float32:
        """(R, R) predicted aligned error in Å."""
        return to_angstrom(self.structure.pae)

    @property
    def flags(self) -> list[str]:
        """What is wrong with it, in words of `FLAGS`."""
        return self._results.flags(self._row)
