"""Attributes of an HDF5 file that anyone may have written: small, and of the expected type.

Every function raises ValueError, which says what is wrong with the attribute.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

import h5py
import numpy as np

from esm_pipeline.errors import InputError
from esm_pipeline.formats.results.layout import FORMAT_VERSION

MOST_ATTRIBUTE_BYTES = 1 << 16
"""Of one attribute: as much as HDF5 keeps in the header of a file."""


def read_attribute(item: h5py.File | h5py.Dataset, name: str) -> Any:
    """An attribute that is text or numbers, and small enough for the header of a file.

    Raises ValueError for anything else, before HDF5 reads it: it crashes on text of unknown type.
    """
    name.encode()
    kind = h5py.h5a.open(item.id, name.encode())
    stored, count = kind.get_type(), math.prod(kind.shape)
    text = isinstance(stored, h5py.h5t.TypeStringID)
    number = isinstance(stored, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID))
    if not (text or number) or count * stored.get_size() > MOST_ATTRIBUTE_BYTES:
        raise ValueError(f"attribute {name!a} is neither text nor a number")
    value = item.attrs[name]
    if isinstance(value, str):
        value.encode()
    return value


def text_attribute(item: h5py.File | h5py.Dataset, name: str) -> str:
    """An attribute that is text. Raises ValueError if it is missing or not text."""
    if name not in item.attrs:
        raise ValueError(f"attribute {name!r} is missing")
    value = read_attribute(item, name)
    if not isinstance(value, str):
        raise ValueError(f"attribute {name!r} is not text")
    return value


def read_attributes(file: h5py.File) -> dict[str, Any]:
    """All attributes of a file; see `read_attribute`."""
    return {name: read_attribute(file, name) for name in file.attrs}


def json_attribute(file: h5py.File, name: str, kind: type) -> Any:
    """An attribute that is JSON: a list of text (`kind` list) or an object (`kind` dict).

    Raises ValueError for anything else.
    """
    text = text_attribute(file, name)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"attribute {name!r} is not JSON") from None
    texts = value if kind is list else ()
    if not isinstance(value, kind) or not all(isinstance(one, str) for one in texts):
        what = "a list of text" if kind is list else "an object"
        raise ValueError(f"attribute {name!r} is not {what} in JSON")
    return value


def require_version(path: str | os.PathLike[str], file: h5py.File) -> None:
    """Raise InputError for a format version newer than this, ValueError for a malformed one."""
    if "format_version" not in file.attrs:
        raise ValueError("attribute 'format_version' is missing")
    version = read_attribute(file, "format_version")
    if not isinstance(version, np.integer) or version < 1:
        raise ValueError("attribute 'format_version' is not a version")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {version}, newer than this esm-pipeline; update it"
        )
