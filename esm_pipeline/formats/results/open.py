"""Opening any result, whatever it holds.

with open_results("embeddings.h5") as results:
    results["P12345"]                 # a record by id
    results[17]                       # by index, the record's position in the input
    results.to_pandas()               # a table
"""

from __future__ import annotations

import os
from typing import TypeAlias

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
"""Every kind of result; a new one is added here."""


def open_results(path: str | os.PathLike[str]) -> Results | StructureFiles:
    """Open a result for reading: an `embeddings.h5` or any other of `RESULT_CLASSES`.

    A `structures.tsv`, a folder with one and without HDF5, or a Foldcomp database is opened as the
    files of its structures.

    A context manager; `len` is the number of records. Raises InputError if the file is missing,
    unreadable, not HDF5, of another format or of a later version.
    """
    names = [kind.file_name for kind in RESULT_CLASSES]
    if is_structure_files(path) and not has_results(path, names):
        return StructureFiles(path)
    return open_kind(path, RESULT_CLASSES)
