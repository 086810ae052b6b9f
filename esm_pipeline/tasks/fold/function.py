"""`fold` as a function: sequences in, structures with their confidences out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import numpy as np

from esm_pipeline.arrays import Float32
from esm_pipeline.errors import InputError, number_of
from esm_pipeline.files import atomic_path
from esm_pipeline.formats.records import OK
from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.formats.structure_files import file_stem
from esm_pipeline.settings.sections import FoldSettings
from esm_pipeline.structure.pae import to_angstrom
from esm_pipeline.structure.quality import CA
from esm_pipeline.structure.structure import Structure
from esm_pipeline.tasks.common.functions import (
    CommonOptions,
    ComputedRecords,
    FunctionCall,
    NamedSequences,
    model_or_name,
    read_sequences,
    with_index,
)
from esm_pipeline.tasks.fold.plan import FOLD, FoldPlan
from esm_pipeline.tasks.fold.tables import StructureFacts
from esm_pipeline.tasks.fold.texts import StructureNames, remarks_of, structure_text

if TYPE_CHECKING:
    import pandas as pd

    from esm_pipeline.tasks.common.functions import AnyModel, Sequences

TEXT_FORMATS = {".pdb": "pdb", ".cif": "cif"}
"""Suffix of a file of a structure, and its format."""


@dataclass(frozen=True, repr=False)
class PredictedStructure:
    """The predicted structure of one record, with its confidences; R residues of all chains."""

    id: str
    index: int
    """Position of the record in the input."""
    structure: Structure
    """Its atoms and confidences as arrays."""
    flags: list[str]
    """Doubts about it, such as low_plddt; see the results page."""
    facts: dict[str, str]
    """How it was made, as in the remarks of its files."""

    def __repr__(self) -> str:
        size = number_of(len(self.structure.aatype), "residue")
        return (
            f"<PredictedStructure {self.id!r}: {size}, pLDDT {self.mean_plddt:.1f}, "
            f"pTM {self.ptm:.2f}>"
        )

    @property
    def sequence(self) -> str:
        """Its residues, with `:` between chains."""
        return ":".join(self.structure.sequences)

    @property
    def plddt(self) -> Float32:
        """(R,) confidence of each residue, that of its C-alpha, 0 to 100; NaN if without atoms."""
        return np.where(self.structure.present, self.structure.plddt[:, CA], np.float32("nan"))

    @property
    def mean_plddt(self) -> float:
        """Mean of `plddt`, 0 to 100."""
        return self.structure.mean_plddt

    @property
    def ptm(self) -> float:
        """Predicted TM-score, 0 to 1."""
        return self.structure.ptm

    @property
    def iptm(self) -> float | None:
        """Predicted TM-score of the interfaces, 0 to 1; None for a single chain."""
        return self.structure.iptm

    @property
    def pae(self) -> Float32:
        """(R, R) predicted aligned error in Å; files leave out the residues without atoms."""
        return to_angstrom(self.structure.pae)

    @property
    def pdb(self) -> str:
        """The structure as the text of a PDB file."""
        return self._text("pdb")

    @property
    def cif(self) -> str:
        """The structure as the text of an mmCIF file."""
        return self._text("cif")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a .pdb or .cif file; returns its path. Raises InputError for another ending."""
        target = Path(path)
        kind = TEXT_FORMATS.get(target.suffix.lower())
        if kind is None:
            raise InputError(f"{target}: let its name end in {' or '.join(TEXT_FORMATS)}")
        text = self._text(kind)
        with atomic_path(target) as temporary:
            temporary.write_text(text, encoding="ascii")
        return target

    def _text(self, kind: str) -> str:
        names = StructureNames(file_stem(self.index, self.id), self.id)
        return structure_text(kind, self.structure, names, self.facts).decode("ascii")


@dataclass(frozen=True, repr=False)
class FoldResult:
    """The structures of N sequences.

    `result["P1"]` and `result[0]` are a structure, by id or position; iteration yields those that
    were predicted, in input order. `table` has a row for each record: id, status, reason, length,
    chains, plddt (mean of C-alphas, 0 to 100), ptm, iptm, num_recycles, chunk_size, flags, num_conf
    (residues with a pLDDT above 70), crc64 (of the sequence).
    """

    ids: list[str]
    table: pd.DataFrame
    _found: ComputedRecords
    _structures: dict[int, PredictedStructure]
    """By position in the input."""

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        structures = number_of(len(self._structures), "structure")
        return f"<FoldResult: {number_of(len(self), 'record')}, {structures}>"

    def keys(self) -> list[str]:
        """The ids of the records that were computed, in input order."""
        return self._found.computed_ids()

    def __contains__(self, key: object) -> bool:
        """Whether a computed record has `key` as its id, a name in it, or its position."""
        return self._found.has(key)

    def __getitem__(self, key: int | str) -> PredictedStructure:
        """The structure of a record. Raises InputError if it was not predicted."""
        return self._structures[self._found.place(FOLD, key)]

    def __iter__(self) -> Iterator[PredictedStructure]:
        return iter(self._structures.values())


def fold(
    sequences: Sequences | pd.DataFrame,
    model: AnyModel,
    *,
    num_recycles: int = 3,
    chunk_size: int | Literal["auto", "none"] | None = None,
    max_residues: int | None = None,
    memory: float | None = None,
    long: Literal["auto", "skip", "truncate", "full"] | None = None,
    ambiguous: Literal["omit", "approximate"] | None = None,
    **options: Unpack[CommonOptions],
) -> FoldResult:
    """Predict structures, as `esm-pipeline fold` does; chains of a complex are separated by `:`.

    `sequences`, the other options and the errors are those of `embed`. `model`: a folding model,
    such as "facebook/esmfold_v1", or a loaded EsmForProteinFolding; "demo" has random weights,
    whose structures are meaningless. `num_recycles`: the trunk runs N + 1 times. `chunk_size`: rows
    computed at once, auto for as many as fit. `max_residues`: longest sequence to fold. `memory`:
    GB that a batch may use, by default all that is free. `ambiguous`: whether B and Z are without
    atoms (omit) or folded as D and E (approximate).
    """
    own = {
        "num_recycles": num_recycles,
        "chunk_size": chunk_size,
        "max_residues": max_residues,
        "memory": memory,
        "long": long,
        "ambiguous": ambiguous,
    }
    call = FunctionCall(FOLD, model, options, own, FoldSettings)
    settings = call.settings(FoldSettings)
    from esm_pipeline.model.folding.demo import RANDOM_MODEL
    from esm_pipeline.tasks.common.compute import write_rows
    from esm_pipeline.tasks.fold.predictor import Predictor

    with call.computing(settings) as folder:
        predictor = Predictor(model_or_name(model), call.run.revision, settings)
        sequence_set, given = read_sequences(FOLD, sequences, call.cleaning, folder, complexes=True)
        with sequence_set:
            limit = predictor.config.max_residues
            plan = FoldPlan(sequence_set, predictor.policy, limit, settings.ambiguous)
            write_rows(predictor, plan, folder / "structures.h5", quiet=call.run.quiet)
            found = ComputedRecords.of(sequence_set.records(), plan.outcomes(), given)
        with Structures.open(folder / "structures.h5") as results:
            structures = structures_in(results, found)
            table = structure_frame(results, found, structures, given)
    if predictor.random:
        warnings.warn(RANDOM_MODEL, stacklevel=2)
    call.require_outcomes(found.outcomes, found.ids, "`table`")
    return FoldResult(found.ids, table, found, structures)


def structures_in(results: Structures, found: ComputedRecords) -> dict[int, PredictedStructure]:
    """Position of a record → its structure; records with the same sequence share the arrays."""
    rows: dict[int, Structure] = {}
    structures = {}
    for index, row in zip(results.index.tolist(), results.row.tolist(), strict=True):
        if row not in rows:
            rows[row] = results.structure(row)
        facts = remarks_of(results.origin, results.flags(row), rows[row])
        flags = results.flags(row)
        structures[index] = PredictedStructure(found.ids[index], index, rows[row], flags, facts)
    return structures


def structure_frame(
    results: Structures,
    found: ComputedRecords,
    structures: dict[int, PredictedStructure],
    given: NamedSequences | None,
) -> pd.DataFrame:
    """The columns of `structures.tsv` but index and file, with numbers as they were computed."""
    import pandas as pd

    ok = np.array([outcome.status == OK for outcome in found.outcomes], bool)
    chunk_size = np.full(len(ok), -1, np.int64)
    chunk_size[ok] = results.per_sequence["chunk_size"][results.row]

    def each(name: str) -> Float32:
        values = np.full(len(ok), np.nan, np.float32)
        values[ok] = results.per_sequence[name][results.row]
        return values

    found_at = [structures.get(place) for place in range(len(ok))]
    facts = [
        None if one is None else StructureFacts.of(one.structure, one.index, one.flags)
        for one in found_at
    ]
    recycles = int(results.origin["num_recycles"])
    whole = {
        "length": [record.length for record in found.records],
        "chains": [None if one is None else len(one.structure.ends) for one in found_at],
        "num_recycles": [None if one is None else recycles for one in found_at],
        "num_conf": [None if one is None else one.confident for one in facts],
        "chunk_size": [size if size > 0 else None for size in chunk_size.tolist()],
    }
    numbers = {name: pd.array(values, "Int64") for name, values in whole.items()}
    columns = {
        "id": found.ids,
        "status": [outcome.status for outcome in found.outcomes],
        "reason": [outcome.reason for outcome in found.outcomes],
        "length": numbers["length"],
        "chains": numbers["chains"],
        "plddt": each("mean_plddt"),
        "ptm": each("ptm"),
        "iptm": each("iptm"),
        "num_recycles": numbers["num_recycles"],
        "chunk_size": numbers["chunk_size"],
        "flags": ["" if one is None else ";".join(one.flags) for one in found_at],
        "num_conf": numbers["num_conf"],
        "crc64": ["" if one is None else one.crc64 for one in facts],
    }
    return with_index(pd.DataFrame(columns), given)
