"""The contents of one file of a structure, with remarks on how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.structure.modelcif import ErrorFile, cif_text
from esm_pipeline.structure.pdb import pdb_text
from esm_pipeline.structure.structure import MEANINGLESS, RANDOM, Structure


class StructureNames(NamedTuple):
    """What a file says of itself: the stem of its name, the record's id, its aligned errors."""

    stem: str
    id: str
    errors: ErrorFile | None = None


def structure_text(
    kind: str, structure: Structure, names: StructureNames, remarks: dict[str, str]
) -> bytes:
    """The contents of one file. Raises InputError for a structure that biotite cannot write."""
    from biotite.file import SerializationError
    from biotite.structure import BadStructureError

    title = f"Predicted structure of {names.id}"
    try:
        if kind == "pdb":
            return pdb_text(structure, title, remarks).encode("ascii")
        return cif_text(
            structure, names.stem, title, remarks, description=names.id, errors=names.errors
        ).encode("ascii")
    except (BadStructureError, SerializationError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{title}: cannot be written as {kind} ({why}); fold it again") from None


def remarks_of(
    origin: Mapping[str, str], flags: Sequence[str], structure: Structure
) -> dict[str, str]:
    """How a structure was made, by the `origin` of its arrays, and its confidence and flags."""
    facts = {"": MEANINGLESS} if origin[RANDOM] == "true" else {}
    facts["software"] = f"esm_pipeline {origin['software']}"
    for name in ("model", "revision", "weights_sha256", "dtype", "num_recycles"):
        if origin[name]:
            facts[name] = origin[name]
    facts |= structure.facts
    if flags:
        facts["flags"] = " ".join(flags)
    return facts
