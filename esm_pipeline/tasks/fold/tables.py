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
from esm_pipeline.formats.foldcomp_database import DatabaseEntry
from esm_pipeline.formats.records import OK, Record, format_row
from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.formats.sequence_checksums import crc64
from esm_pipeline.formats.structure_archives import archive_name, member_name
from esm_pipeline.formats.structure_files import (
    DATABASE,
    FLAG_COLUMNS,
    PAIR_COLUMNS,
    STRUCTURE_COLUMNS,
    file_stem,
    folder_name,
)
from esm_pipeline.settings.sections import StructureSettings
from esm_pipeline.structure import residues
from esm_pipeline.structure.pae import to_angstrom
from esm_pipeline.structure.pdb import pdb_problem
from esm_pipeline.structure.quality import (
    NOT_FOLDCOMP,
    NOT_PDB,
    TRUNCATED,
    FlagDetail,
    details,
)
from esm_pipeline.structure.structure import Structure, chain_name
from esm_pipeline.tasks.fold.plan import FOLD

STRUCTURES_FOLDER, PAE = "structures", "pae"
STRUCTURES_TABLE, FLAGS_TABLE, PAIRS_TABLE = STRUCTURE_TABLES = (
    "structures.tsv",
    "flags.tsv",
    "chain_pairs.tsv",
)
ATLAS_TABLE = "structures.parquet"
HEADERS = (STRUCTURE_COLUMNS, FLAG_COLUMNS, PAIR_COLUMNS)


CONFIDENT = 70.0
"""pLDDT of an alpha carbon above which the ESM Metagenomic Atlas calls a residue confident."""


class StructureFacts(NamedTuple):
    """What the tables say of the structure in a row, besides its confidences.

    unfit: why it does not fit into a PDB file. flags: flag, residues and value of each. pairs: the
    cells of `chain_pairs.tsv`. confident: residues with a pLDDT above `CONFIDENT`. crc64: of the
    letters. refused: why it is not in the Foldcomp database; size: bytes of its entry there, 0
    without one.
    """

    row: int
    unfit: str
    flags: list[FlagDetail]
    pairs: list[list[str]]
    confident: int
    crc64: str
    refused: str = ""
    size: int = 0

    @classmethod
    def of(cls, structure: Structure, row: int, raised: list[str]) -> Self:
        """Find the facts of a structure with the flags `raised`."""
        alpha = residues.BACKBONE.index("CA")
        return cls(
            row,
            pdb_problem(structure) or "",
            list(details(structure, raised)),
            list(chain_pairs(structure)),
            int((structure.plddt[structure.present, alpha] > CONFIDENT).sum()),
            crc64(":".join(structure.given)),
        )

    def line(self) -> str:
        """The facts as a line of JSON."""
        return json.dumps(self) + "\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `line` wrote."""
        row, unfit, flags, *others = json.loads(text)
        return cls(row, unfit, [FlagDetail(*one) for one in flags], *others)


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


def kinds_written(settings: StructureSettings, facts: StructureFacts) -> list[str]:
    """The formats of a structure: mmCIF if it fits into no PDB file; PDB, at the least, if it is
    not in the Foldcomp database that it should be in.
    """
    if facts.unfit:
        return ["cif"]
    kinds: list[str] = [
        kind for kind in settings.formats if not (kind == DATABASE and facts.refused)
    ]
    return kinds or ["pdb"]


def write_structure_tables(
    targets: Iterable[Path],
    path: Path,
    records: Iterable[Record],
    settings: StructureSettings,
    facts: Iterable[str],
) -> Iterator[DatabaseEntry]:
    """Write the tables of `STRUCTURE_TABLES` to `targets`. `facts` are lines of `StructureFacts`.

    Yields the entry of each record in the Foldcomp database, if it has one. Raises InputError if
    `records` are not those of the arrays in `path`.
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
            if rows.entry:
                yield rows.entry
        rows.require_end()


class StructureRows:
    """The rows of all tables, in input order."""

    def __init__(
        self, arrays: Structures, settings: StructureSettings, facts: Iterator[StructureFacts]
    ) -> None:
        self.arrays, self.settings, self.facts = arrays, settings, facts
        self.shared = np.bincount(arrays.row, minlength=len(arrays.length)) > 1
        self.known: dict[int, tuple[StructureFacts, str, int]] = {}  # of rows that records share
        self.place = self.offset = 0
        self.entry: DatabaseEntry | None = None  # of the last record, in the Foldcomp database

    def of(self, record: Record) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
        """The rows of a record in each table."""
        outcome = record.outcomes.get(FOLD)
        if outcome is None:
            raise InputError(f"record {record.index} has no outcome of fold; give another table")
        length = "" if record.length is None else str(record.length)
        cells = [str(record.index), record.id, *outcome, length]
        self.entry = None
        if outcome.status != OK:
            return [[*cells, *[""] * (len(STRUCTURE_COLUMNS) - len(cells))]], [], []
        row = self.next_row(record)
        found, file, offset = self.facts_and_file(record, row)
        if found.size:
            self.entry = DatabaseEntry(record.index, record.id, offset, found.size)
        flags = [*found.flags, *self.flags_of_files(record, row, found)]
        names = dict.fromkeys(one.flag for one in flags)
        own = [str(record.index), record.id]
        return (
            [
                [
                    *(*cells, *self.confidences(row), file, ";".join(names)),
                    *(str(found.confident), found.crc64),
                ]
            ],
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

    def facts_and_file(self, record: Record, row: int) -> tuple[StructureFacts, str, int]:
        """The facts of a structure, its file, named after the first record with it, and where its
        entry in the Foldcomp database begins.
        """
        if row in self.known:
            return self.known[row]
        facts = next(self.facts)
        assert facts.row == row, "structures are written in the order of their first records"
        kind = kinds_written(self.settings, facts)[0]
        found = facts, self.file(record, kind), self.offset
        self.offset += facts.size
        if self.shared[row]:
            self.known[row] = found
        return found

    def file(self, record: Record, kind: str) -> str:
        """The path of the file of a record, in one of the formats."""
        if kind == DATABASE:
            return f"{STRUCTURES_FOLDER}/{DATABASE}/{record.index}"
        path = f"{folder_name(record.index)}/{file_stem(record.index, record.id)}.{kind}"
        if self.settings.archive:
            archive = archive_name(record.index, self.settings.archive_records)
            path = f"{archive}/{member_name(path)}"
        return f"{STRUCTURES_FOLDER}/{path}"

    def flags_of_files(
        self, record: Record, row: int, found: StructureFacts
    ) -> Iterator[FlagDetail]:
        """The flags of what is not in the structure, or not in a PDB file."""
        folded = int(self.arrays.length[row])
        if record.length is not None and record.length > folded:
            cut = f"A{folded + 1}"
            if record.length > folded + 1:
                cut += f"-{record.length}"
            yield FlagDetail(TRUNCATED, cut, str(record.length))
        if found.unfit and "pdb" in self.settings.formats:
            yield FlagDetail(NOT_PDB, value=found.unfit)
        if found.refused:
            yield FlagDetail(NOT_FOLDCOMP, value=found.refused)
