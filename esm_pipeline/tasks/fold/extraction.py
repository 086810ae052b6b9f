"""One structure by id or index, from arrays, files in folders or archives, or a database."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, require_apart
from esm_pipeline.flags import require_file
from esm_pipeline.formats.results.result_files import has_results
from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.formats.structure_files import file_stem
from esm_pipeline.formats.structure_reader import StructureFiles, is_structure_files
from esm_pipeline.structure.pdb import pdb_problem
from esm_pipeline.tasks.fold.texts import StructureNames, remarks_of, structure_text

STANDARD_OUTPUT = "-"
KINDS_OF_ENDING = {".pdb": "pdb", ".ent": "pdb", ".cif": "cif", ".mmcif": "cif"}


def add_id_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the flags that choose one record."""
    chosen = group.add_mutually_exclusive_group()
    chosen.add_argument("--id", help="write one structure, that of the record with this id")
    chosen.add_argument(
        "--index", type=int, help="write one structure, that of the record with this index"
    )


def key_of(args: argparse.Namespace) -> str | int | None:
    """The id or index of the chosen record, or None."""
    key: str | int | None = args.index if args.id is None else args.id
    return key


def kind_of_output(output: Path) -> str:
    """The format that the name of a file asks for: pdb, cif, or "" for `-`. Raises InputError."""
    if str(output) == STANDARD_OUTPUT:
        return ""
    kind = KINDS_OF_ENDING.get(output.suffix.lower())
    if kind is None:
        raise InputError(f"{output}: let its name end in .pdb or .cif, the format to write")
    return kind


def outputs_of_one(source: Path, output: Path) -> list[Path]:
    """What `write_one` writes. Raises InputError if it would replace what it reads."""
    if not kind_of_output(output):
        return []
    require_apart([output], [source])
    return [output]


def write_one(source: Path, key: str | int, output: Path) -> None:
    """Write the structure of a record to `output`, or to standard output (`-`).

    Raises InputError if there is none, or not in the format that the name of `output` asks for.
    """
    data = read_one(source, key, kind_of_output(output))
    if str(output) == STANDARD_OUTPUT:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with atomic_path(output) as path:
        path.write_bytes(data)


def read_one(source: Path, key: str | int, kind: str) -> bytes:
    """The structure of a record as a file: mmCIF or PDB, by `kind`, or as it is kept."""
    exact = has_results(source, [Structures.file_name])  # as `open_results` does
    if source.suffix.lower() not in (".h5", ".hdf5") and is_structure_files(source) and not exact:
        with StructureFiles(source) as files:
            return files.read(key, kind).data
    if not source.is_dir():
        require_file(str(source))
    with Structures.open(source) as arrays:
        record = arrays[key]
        names = StructureNames(file_stem(record.index, record.id), record.id)
        remarks = remarks_of(arrays.origin, record.flags, record.structure)
        kind = kind or ("cif" if pdb_problem(record.structure) else "pdb")
        return structure_text(kind, record.structure, names, remarks)
