"""The tables of structures: confidence and file of each record, its flags, and pairs of chains.

What they say of a structure is found while its files are written, a line of JSON for each in the
order of the first records, and read again here: memory does not grow with their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple, Self

import numpy as np

from esm_pipeline.errors import InputError
from esm_pipeline.files import naming_errors
from esm_pipeline.formats.records import OK, Record, format_row
from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.formats.structure_files import (
    FLAG_COLUMNS,
    PAIR_COLUMNS,
    STRUCTURE_COLUMNS,
    file_stem,
    folder_name,
)
from esm_pipeline.settings.sections import StructureSettings
from esm_pipeline.structure.pae import to_angstrom
from esm_pipeline.structure.pdb import pdb_problem
from esm_pipeline.structure.quality import NOT_PDB, TRUNCATED, FlagDetail, details
from esm_pipeline.structure.structure import Structure, chain_name
from esm_pipeline.tasks.fold.plan import FOLD

STRUCTURES_FOLDER, PAE = "structures", "pae"
STRUCTURES_TABLE, FLAGS_TABLE, PAIRS_TABLE = STRUCTURE_TABLES = (
    "structures.tsv",
    "flags.tsv",
    "chain_pairs.tsv",
)
HEADERS = (STRUCTURE_COLUMNS, FLAG_COLUMNS, PAIR_COLUMNS)


class StructureFacts(NamedTuple):
    """What the tables say of the structure in a row, besides its confidences.

    unfit: why it does not fit into a PDB file. flags: flag, residues and value of each. pairs: the
    cells of `chain_pairs.tsv`.
    """

    row: int
    unfit: str
    flags: list[FlagDetail]
    pairs: list[list[str]]

    @classmethod
    def of(cls, structure: Structure, row: int, raised: list[str]) -> Self:
        """Find the facts of a structure with the flags `raised`."""
        flags = list(details(structure, raised))
        return cls(row, pdb_problem(structure) or "", flags, list(chain_pairs(structure)))

    def line(self) -> str:
        """The facts as a line of JSON."""
        return json.dumps(self) + "\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `line` wrote."""
        row, unfit, flags, pairs = json.loads(text)
        return cls(row, unfit, [FlagDetail(*one) for one in flags], pairs)


def chain_pairs(structure: Structure) -> Iterator[list[str]]:
    """Each two chains: their names, ipTM, and mean and smallest aligned error in Å.

    The errors are those of residues with atoms of either chain, aligned on one of the other.
    """
    count = len(structure.ends)
    own = [np.flatnonzero((structure.chains == one) & structure.present) for one in range(count)]
    for first in range(count):
        for second in range(first + 1, count):
            one, other = own[first], own[second]
            both = (structure.pae[np.ix_(one, other)], structure.pae[np.ix_(other, one)])
            errors = to_angstrom(np.concatenate([part.ravel() for part in both]))
            told = [f"{errors.mean():.2f}", f"{errors.min():.2f}"] if errors.size else ["", ""]
            iptm = np.nan if structure.chain_iptm is None else structure.chain_iptm[first, second]
            score = "" if np.isnan(iptm) else f"{iptm:.4f}"
            yield [chain_name(first), chain_name(second), score, *told]


def kinds_written(settings: StructureSettings, *, fits: bool) -> list[str]:
    """The formats of a structure, which `fits` into a PDB file or not."""
    if fits:
        return list(settings.formats)
    return ["cif"]


def write_structure_tables(
    targets: Iterable[Path],
    path: Path,
    records: Iterable[Record],
    settings: StructureSettings,
    facts: Iterable[str],
) -> None:
    """Write the tables of `STRUCTURE_TABLES` to `targets`. `facts` are lines of `StructureFacts`.

    Raises InputError if `records` are not those of the arrays in `path`.
    """
    with Structures.open(path) as arrays, ExitStack() as stack:
        handles: list[IO[str]] = []
        for target, header in zip(targets, HEADERS, strict=True):
            stack.enter_context(naming_errors(target))
            handles.append(stack.enter_context(open(target, "w", encoding="utf-8", newline="")))
            handles[-1].write(format_row(header))
        rows = StructureRows(arrays, settings, map(StructureFacts.parse, facts))
        for record in records:
            for handle, lines in zip(handles, rows.of(record), strict=True):
                handle.writelines(map(format_row, lines))
        rows.require_end()


class StructureRows:
    """The rows of all tables, in input order."""

    def __init__(
        self, arrays: Structures, settings: StructureSettings, facts: Iterator[StructureFacts]
    ) -> None:
        self.arrays, self.settings, self.facts = arrays, settings, facts
        self.shared = np.bincount(arrays.row, minlength=len(arrays.length)) > 1
        self.known: dict[int, tuple[StructureFacts, str]] = {}  # of rows that several records share
        self.place = 0

    def of(self, record: Record) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
        """The rows of a record in each table."""
        outcome = record.outcomes.get(FOLD)
        if outcome is None:
            raise InputError(f"record {record.index} has no outcome of fold; give another table")
        length = "" if record.length is None else str(record.length)
        cells = [str(record.index), record.id, *outcome, length]
        if outcome.status != OK:
            return [[*cells, *[""] * (len(STRUCTURE_COLUMNS) - len(cells))]], [], []
        row = self.next_row(record)
        found, file = self.facts_and_file(record, row)
        flags = [*found.flags, *self.flags_of_files(record, row, found)]
        names = dict.fromkeys(one.flag for one in flags)
        own = [str(record.index), record.id]
        return (
            [[*cells, *self.confidences(row), file, ";".join(names)]],
            [[*own, *one] for one in flags],
            [[*own, *one] for one in found.pairs],
        )

    def next_row(self, record: Record) -> int:
        """The row of the next stored record. Raises InputError if that is another one."""
        if self.place == len(self.arrays.index) or self.arrays.index[self.place] != record.index:
            raise InputError(
                f"{self.arrays.path}: its records differ from those of the table, first at "
                f"record {record.index}; make both again"
            )
        self.place += 1
        return int(self.arrays.row[self.place - 1])

    def require_end(self) -> None:
        """Raise InputError if there are more stored records."""
        if self.place < len(self.arrays.index):
            index = self.arrays.index[self.place]
            raise InputError(
                f"{self.arrays.path}: holds record {index}, which is not in the table; make both "
                "again"
            )

    def confidences(self, row: int) -> list[str]:
        """The cells that describe the structure in a row."""
        value = {name: values[row] for name, values in self.arrays.per_sequence.items()}
        iptm = "" if np.isnan(value["iptm"]) else f"{value['iptm']:.4f}"
        return [
            str(self.arrays.chain_count(row)),
            f"{value['mean_plddt']:.2f}",
            f"{value['ptm']:.4f}",
            iptm,
            self.arrays.origin["num_recycles"],
            str(value["chunk_size"] or ""),
        ]

    def facts_and_file(self, record: Record, row: int) -> tuple[StructureFacts, str]:
        """The facts of a structure, and its file, named after the first record with it."""
        if row in self.known:
            return self.known[row]
        facts = next(self.facts)
        assert facts.row == row, "structures are written in the order of their first records"
        kind = kinds_written(self.settings, fits=not facts.unfit)[0]
        folder = folder_name(record.index) + (".zip" if self.settings.archive else "")
        path = f"{STRUCTURES_FOLDER}/{folder}/{file_stem(record.index, record.id)}.{kind}"
        if self.shared[row]:
            self.known[row] = facts, path
        return facts, path

    def flags_of_files(
        self, record: Record, row: int, found: StructureFacts
    ) -> Iterator[FlagDetail]:
        """The flags of what is not in the structure, or not in a PDB file."""
        folded = int(self.arrays.length[row])
        if record.length is not None and record.length > folded:
            yield FlagDetail(TRUNCATED, f"A{folded + 1}-{record.length}", str(record.length))
        if found.unfit and "pdb" in self.settings.formats:
            yield FlagDetail(NOT_PDB, value=found.unfit)
