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
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float32, Int64
from esm_pipeline.formats.results.attributes import json_attribute, text_attribute
from esm_pipeline.formats.results.layout import Array
from esm_pipeline.formats.results.part import FoundRecord, ResultPart
from esm_pipeline.formats.results.reader import RaggedResults, StoredRecord
from esm_pipeline.formats.results.validation import DatasetRule, require
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.structure.pae import to_angstrom
from esm_pipeline.structure.residues import COUNT, decode
from esm_pipeline.structure.structure import RANDOM, Structure

if TYPE_CHECKING:
    import pandas as pd

MOST_CHAINS = 16
"""Chains for whose pairs an ipTM is stored: those of a larger complex have none."""

STORED_PAIRS = MOST_CHAINS * (MOST_CHAINS - 1) // 2
"""Pairs of chains 0-1, 0-2, 1-2, 0-3, …: a number for each."""

ARRAYS = (
    Array("aatype", "residue", (), "|u1"),  # index in residues.LETTERS
    Array("letter", "residue", (), "|S1"),  # as in the sequence that was given
    Array("chain", "residue", (), "<i4"),  # 0, 1, …
    Array("positions", "residue", (14, 3), "<f4"),  # Å, atom14 order; 0 where there is no atom
    Array("plddt", "residue", (14,), "<f4"),  # 0–100
    Array("pae", "pair", (), "|u1"),  # eighths of Å
    Array("mean_plddt", "sequence", (), "<f4"),
    Array("ptm", "sequence", (), "<f4"),
    Array("iptm", "sequence", (), "<f4"),  # nan for a single chain
    Array(
        "chain_iptm", "sequence", (STORED_PAIRS,), "<f4"
    ),  # of two chains; nan where there are none
    Array("chunk_size", "sequence", (), "<i4"),  # 0 for none
    Array("flags", "sequence", (), "<i4"),  # bits, in the order of the attribute `flags`
)
ADDED = ("letter", "chain_iptm")
"""Arrays that files of earlier versions do not have."""

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
        "letter": np.concatenate([np.array([*given_letters(one)], "S1") for one in structures]),
        "chain": np.concatenate([one.chains for one in structures]),
        "positions": np.concatenate([one.positions for one in structures]),
        "plddt": np.concatenate([one.plddt for one in structures]),
        "pae": np.concatenate([one.pae.ravel() for one in structures]),
        "mean_plddt": np.array([one.mean_plddt for one in structures]),
        "ptm": np.array([one.ptm for one in structures]),
        "iptm": np.array([np.nan if one.iptm is None else one.iptm for one in structures]),
        "chain_iptm": np.stack([pairs_of(one.chain_iptm) for one in structures]),
        "chunk_size": np.array(chunk_sizes),
        "flags": np.array(flags),
    }
    for name, values in joined.items():
        writer.write(name, rows, values)


def given_letters(structure: Structure) -> str:
    """The letters of all residues in the sequence that was given."""
    return structure.letters or decode(structure.aatype)


def pairs_of(matrix: Float32 | None) -> Float32:
    """The numbers of the pairs in a (C, C) matrix; nan with more than `MOST_CHAINS` chains."""
    found = np.full((MOST_CHAINS, MOST_CHAINS), np.nan, np.float32)
    if matrix is not None and len(matrix) <= MOST_CHAINS:
        found[: len(matrix), : len(matrix)] = matrix
    return found[np.tril_indices(MOST_CHAINS, -1)]


def matrix_of(pairs: Float32, chains: int) -> Float32 | None:
    """The symmetric (C, C) matrix of stored `pairs`, nan on its diagonal; None for one chain."""
    if chains == 1:
        return None
    size = max(chains, MOST_CHAINS)
    found = np.full((size, size), np.nan, np.float32)
    found[np.tril_indices(MOST_CHAINS, -1)] = pairs
    found = np.where(np.isnan(found), found.T, found)
    return found[:chains, :chains]


def letters_in(part: ResultPart, place: int, folded: str) -> str:
    """The letters that were given for a row, or "" if they are those that were `folded`."""
    if "letter" not in part.arrays:
        return ""
    letters = part.values("letter", "residue", place).tobytes()
    part.require(letters.isalpha() and letters.isupper(), "letter")
    return "" if letters == folded.encode() else letters.decode()


def chain_iptm_in(part: ResultPart, place: int, chains: int) -> Float32 | None:
    """The ipTM of each pair of `chains` of a row: see `Structure.chain_iptm`."""
    pairs = np.full(STORED_PAIRS, np.nan, np.float32)
    if chains > 1 and "chain_iptm" in part.arrays:
        pairs = part.array("chain_iptm")[place : place + 1][0]
        part.require((np.isnan(pairs) | ((pairs >= 0) & (pairs <= 1))).all(), "chain_iptm")
    return matrix_of(pairs, chains)


class Structures(RaggedResults["FoldedProtein"]):
    """The records of a `structures.h5`, or of the `.h5` files in the folder `structures`."""

    format = "esm-pipeline/structures"
    file_name = "structures.h5"
    rules = tuple(DatasetRule(one.name, one.per, one.shape, (one.dtype,)) for one in ARRAYS)

    @classmethod
    def check_more(cls, file: h5py.File, sizes: Mapping[str, int]) -> None:
        """All arrays are stored, and the names of the flags."""
        for array in ARRAYS:
            stored = isinstance(file.get(array.name), h5py.Dataset)
            require(stored or (array.name in ADDED and array.name not in file), array.name)
        require(len(json_attribute(file, "flags", list)) < MOST_FLAGS, "flags")

    @cached_property
    def flag_names(self) -> list[str]:
        """Names of the bits of `flags`, the lowest first."""
        part = self.parts[0]
        with part.reading():
            names: list[str] = json_attribute(part.file, "flags", list)
            return names

    @cached_property
    def origin(self) -> dict[str, str]:
        """How the structures were made: the model, its settings, and `software`, the version of
        this package.
        """
        part = self.parts[0]
        with part.reading():
            found = {name: text_attribute(part.file, name) for name in ORIGIN}
            version = json_attribute(part.file, "software", dict).get("esm_pipeline")
            if not isinstance(version, str):
                raise ValueError("attribute 'software' does not name esm_pipeline's version")
            return {**found, "software": version}

    def record(self, found: FoundRecord) -> FoldedProtein:
        """The record with its structure."""
        return FoldedProtein(self, found)

    @cached_property
    def per_sequence(self) -> dict[str, NDArray[Any]]:
        """Name → (U,) values of the arrays with one value for each row. Raises DamagedError."""
        found = [self._checked_values(part, slice(None)) for part in self.parts]
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    def _checked_values(self, part: ResultPart, rows: slice) -> dict[str, NDArray[Any]]:
        most = {
            **{"mean_plddt": 100, "ptm": 1, "iptm": 1, "chunk_size": math.inf},
            "flags": (1 << len(self.flag_names)) - 1,
        }
        found = {name: part.array(name)[rows] for name in most}
        for name, values in found.items():
            fit = (values >= 0) & (values <= most[name])
            part.require((fit | np.isnan(values) if name == "iptm" else fit).all(), name)
        return found

    def structure(self, row: int) -> Structure:
        """The structure in a row."""
        return self.structure_in(*self.located(row))

    def structure_in(self, part: ResultPart, place: int) -> Structure:
        """The structure in a row of one file."""
        size, found = part.length(place), self._checked_values(part, slice(place, place + 1))
        one = {name: values[0] for name, values in found.items()}
        names = ("aatype", "chain", "positions", "plddt")
        aatype, chains, positions, plddt = (part.values(one, "residue", place) for one in names)
        chains = chains.astype(np.int64)
        part.require((aatype < COUNT).all(), "aatype")
        part.require(chains[0] == 0 and np.isin(np.diff(chains), (0, 1)).all(), "chain")
        part.require(np.isfinite(positions).all(), "positions")
        part.require(((plddt >= 0) & (plddt <= 100)).all(), "plddt")
        return Structure(
            aatype=aatype.astype(np.int64),
            chains=chains,
            positions=positions,
            plddt=plddt,
            pae=part.values("pae", "pair", place).reshape(size, size),
            mean_plddt=float(one["mean_plddt"]),
            ptm=float(one["ptm"]),
            iptm=None if np.isnan(one["iptm"]) else float(one["iptm"]),
            letters=letters_in(part, place, decode(aatype)),
            chain_iptm=chain_iptm_in(part, place, int(chains[-1]) + 1),
        )

    def chain_count(self, row: int) -> int:
        """Number of chains of the structure in a row."""
        part, place = self.located(row)
        last = part.units("chain", "residue", place).stop - 1
        return int(part.array("chain")[last]) + 1

    def flags(self, row: int) -> list[str]:
        """The flags of the structure in a row; see `structure.quality.FLAGS`."""
        return self.flags_in(*self.located(row))

    def flags_in(self, part: ResultPart, place: int) -> list[str]:
        """The flags of the structure in a row of one file."""
        values = self._checked_values(part, slice(place, place + 1))
        return self.flag_texts(int(values["flags"][0]))

    def flag_texts(self, bits: int) -> list[str]:
        """The names of the flags in `bits`."""
        return [name for place, name in enumerate(self.flag_names) if bits >> place & 1]

    def to_pandas(self) -> pd.DataFrame:
        """A table with one row for each record: id, index, length, mean plddt, ptm, iptm, flags."""
        import pandas as pd

        flags = [";".join(self.flag_texts(bits)) for bits in self.per_sequence["flags"].tolist()]
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
        return self._results.structure_in(self._part, self._row)

    @property
    def pae(self) -> Float32:
        """(R, R) predicted aligned error in Å."""
        return to_angstrom(self.structure.pae)

    @property
    def flags(self) -> list[str]:
        """The flags of the structure; see `structure.quality.FLAGS`."""
        return self._results.flags_in(self._part, self._row)
