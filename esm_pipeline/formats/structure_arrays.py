"""Predicted structures as arrays of one flat HDF5 file, `structures.h5`; see `hdf5`.

What `fold` computes for each unique sequence, before any file of a structure is written: settings
that only change those files need no model again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.errors import InputError
from esm_pipeline.formats.hdf5 import Array, Int64, RaggedWriter, arrays_of, unit_starts
from esm_pipeline.formats.structures import Structure

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
AGAIN = "make it again with `esm-pipeline fold`"


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


class StructureArrays:
    """The rows of a `structures.h5`. A context manager.

    Raises InputError for a file that is none, or not as it was written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self.file = h5py.File(path)
        except OSError as error:
            why = " ".join(str(error).split())
            raise InputError(f"{path}: cannot be read as HDF5 ({why}); {AGAIN}") from None
        try:
            self._open()
        except (KeyError, ValueError, TypeError) as error:
            self.file.close()
            raise InputError(f"{path}: not a structures.h5 ({error}); {AGAIN}") from None

    def _open(self) -> None:
        found = {array.name: array for array in arrays_of(self.file)}
        if self.file.attrs["format"] != FORMAT or found != {one.name: one for one in ARRAYS}:
            raise ValueError("it holds other arrays")
        self.flag_names: list[str] = json.loads(self.file.attrs["flags"])
        self.lengths: NDArray[np.int32] = self.file["length"][...]
        self.index: Int64 = self.file["index"][...]
        self.row: Int64 = self.file["row"][...]
        self._residues = unit_starts(self.lengths, "residue")
        self._pairs = unit_starts(self.lengths, "pair")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()

    @property
    def attributes(self) -> dict[str, str]:
        """How the structures were made: model, revision, weights_sha256, dtype, …"""
        return {name: str(value) for name, value in self.file.attrs.items()}

    def structure(self, row: int) -> Structure:
        """The structure in a row."""
        start, stop = self._residues[row : row + 2].tolist()
        first, last = self._pairs[row : row + 2].tolist()
        size, iptm = stop - start, float(self.file["iptm"][row])
        return Structure(
            aatype=self.file["aatype"][start:stop].astype(np.int64),
            chains=self.file["chain"][start:stop].astype(np.int64),
            positions=self.file["positions"][start:stop],
            plddt=self.file["plddt"][start:stop],
            pae=self.file["pae"][first:last].reshape(size, size),
            mean_plddt=float(self.file["mean_plddt"][row]),
            ptm=float(self.file["ptm"][row]),
            iptm=None if np.isnan(iptm) else iptm,
        )

    def chain_count(self, row: int) -> int:
        """The chains of the structure in a row."""
        return int(self.file["chain"][self._residues[row + 1] - 1]) + 1

    def flags(self, row: int) -> list[str]:
        """What is wrong with the structure in a row."""
        bits = int(self.file["flags"][row])
        return [name for place, name in enumerate(self.flag_names) if bits >> place & 1]
