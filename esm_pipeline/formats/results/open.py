"""Opening any result, whatever it holds.

with open_results("embeddings.h5") as results:
    results["P12345"]                 # a record by id
    results[17]                       # by index, the record's position in the input
    results.to_pandas()               # a table
"""

from __future__ import annotations

import os
from typing import Literal, TypeAlias, overload

from esm_pipeline.errors import InputError
from esm_pipeline.formats.results.classes import Classes, ResidueClasses
from esm_pipeline.formats.results.embeddings import Embeddings
from esm_pipeline.formats.results.reader import open_kind
from esm_pipeline.formats.results.result_files import has_results
from esm_pipeline.formats.results.saturation import Saturations
from esm_pipeline.formats.results.structures import Structures
from esm_pipeline.formats.structure_reader import StructureFiles, is_structure_files

Results: TypeAlias = Embeddings | Saturations | Classes | ResidueClasses | Structures

RESULT_CLASSES: tuple[type[Results], ...] = (
    Embeddings,
    Saturations,
    Classes,
    ResidueClasses,
    Structures,
)
"""Every kind of result; a new one is added here, and to the overloads below."""

KINDS = {kind.file_name.removesuffix(".h5"): kind for kind in RESULT_CLASSES}
"""Name of a kind, that of its file, and its class."""

FILES = "structure_files"
"""The kind of the files of structures, which are not HDF5."""

AnyPath: TypeAlias = str | os.PathLike[str]


@overload
def open_results(path: AnyPath, kind: None = None) -> Results: ...
@overload
def open_results(path: AnyPath, kind: Literal["embeddings"]) -> Embeddings: ...
@overload
def open_results(path: AnyPath, kind: Literal["saturation"]) -> Saturations: ...
@overload
def open_results(path: AnyPath, kind: Literal["classes"]) -> Classes: ...
@overload
def open_results(path: AnyPath, kind: Literal["residue_classes"]) -> ResidueClasses: ...
@overload
def open_results(path: AnyPath, kind: Literal["structures"]) -> Structures: ...
@overload
def open_results(path: AnyPath, kind: Literal["structure_files"]) -> StructureFiles: ...
def open_results(path: AnyPath, kind: str | None = None) -> Results | StructureFiles:
    """Open a result for reading: an `embeddings.h5` or any other of `RESULT_CLASSES`.

    `path` is a file, or the folder of a sample. `kind` is what it should be: embeddings,
    saturation, classes, residue_classes or structures; then type checkers know what a record has,
    and a sample may have results of several kinds. structure_files are those that `structures`
    wrote: `path` is their table or folder, or a Foldcomp database. A context manager; `len` is the
    number of records. Raises InputError if the file is missing, unreadable, not HDF5, of another
    format or of a later version.
    """
    if kind == FILES:
        return StructureFiles(path)
    if kind is None:
        names = [one.file_name for one in RESULT_CLASSES]
        if is_structure_files(path) and not has_results(path, names):
            raise InputError(
                f"{os.fspath(path)}: files of structures; open them with "
                f"open_results(path, '{FILES}')"
            )
        return open_kind(path, RESULT_CLASSES)
    if kind not in KINDS:
        known = ", ".join([*KINDS, FILES])
        raise InputError(f"open_results: no kind {kind!r}; use one of {known}")
    return open_kind(path, [KINDS[kind]])
