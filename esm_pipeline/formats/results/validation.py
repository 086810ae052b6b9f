"""What an HDF5 file declares, checked before any of it is read, and opened without a lock.

Every reader opens with `open_hdf5` and every kind of result says which datasets it has, so that
shapes, types and places are judged from the file's headers alone: in milliseconds, with memory
that does not depend on what they claim. Datasets lie in the file itself, in one piece, as large as
they say; so whatever is read afterwards is no larger than the file. Finished files are never
changed, and many file systems have no locks (NFS, Lustre without flock): none is asked for.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from esm_pipeline.errors import DamagedError, InputError
from esm_pipeline.formats.results.writer import (
    FORMAT_VERSION,
    Per,
    datasets,
    read_attribute,
    require,
)

MOST_DATASETS = 10_000
HEAPS = 1 << 20  # bytes at the beginning, where attributes are
HEAP, HEAP_HEAD = b"GCOL\1\0\0\0", 16
DAMAGE = (ValueError, KeyError, TypeError, IndexError, RuntimeError, OverflowError, AttributeError)
"""What h5py raises for bytes that make no sense, besides an OSError without a number."""


@dataclass(frozen=True)
class Declared:
    """Datasets of a result, named by a regular expression: a value of `shape` for each `per`.

    A letter in `shape` stands for a size that is the same wherever the letter stands.
    """

    name: str
    per: Per
    shape: tuple[int | str, ...]
    dtypes: tuple[str, ...]


@contextmanager
def judging(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what h5py raises into DamagedError, or, where the machine is at fault, InputError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{path}: no such file; check the path") from None
        if error.errno is None:
            why = " ".join(str(error).split())
            raise damaged(path, f"cannot be read as HDF5 ({why})") from None
        raise InputError(
            f"{path}: cannot be read ({os.strerror(error.errno)}); its contents may be whole: "
            "check the permissions, the file system and the limits of this machine"
        ) from None
    except DAMAGE as error:
        raise damaged(path, error) from None


def damaged(path: str | os.PathLike[str], why: object) -> DamagedError:
    """The error of a file whose contents are not as they were written."""
    told = " ".join(str(why.args[0] if isinstance(why, KeyError) and why.args else why).split())
    return DamagedError(os.fspath(path), told[:200])


def open_hdf5(path: str | os.PathLike[str]) -> h5py.File:
    """Open a finished HDF5 file for reading, without a lock.

    Raises DamagedError for one that is no HDF5 or cut short, InputError for one that cannot be read
    for another reason.
    """
    with judging(path), ExitStack() as stack:
        # locking: flock fails on file systems without it, and a finished file needs none
        file = stack.enter_context(h5py.File(path, "r", locking=False))  # finds it cut short
        check_heaps(path)
        stack.pop_all()
        return file


def check_heaps(path: str | os.PathLike[str]) -> None:
    """Check the parts of a file that hold its text, as far as attributes' text may lie there.

    HDF5 believes the sizes that stand there, and crashes. Raises ValueError for one that cannot be.
    """
    with open(path, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        data = handle.read(HEAPS)
    place = data.find(HEAP)
    while place >= 0:
        head = data[place + len(HEAP) : place + HEAP_HEAD]
        end = place + int.from_bytes(head, "little")
        inside = place + HEAP_HEAD <= end <= size
        at = place + HEAP_HEAD
        while inside and at + HEAP_HEAD <= min(end, len(data)):
            number = int.from_bytes(data[at : at + 2], "little")
            length = int.from_bytes(data[at + 8 : at + HEAP_HEAD], "little")
            # number 0 is what is free, and counts its own head
            at += length if number == 0 else HEAP_HEAD + -(-length // 8) * 8
            inside = at <= end and not (number == 0 and at != end)
            if number == 0:
                break
        if not inside:
            raise ValueError("a part that holds text is not as HDF5 writes it")
        place = data.find(HEAP, place + 1)


def check(
    file: h5py.File,
    declared: Sequence[Declared] = (),
) -> dict[str, int]:
    """Check the datasets of a file, by their headers; gives sizes: N, U and those of the letters.

    Raises ValueError, KeyError or TypeError, naming the dataset.
    """
    found: dict[str, h5py.Dataset] = {}
    for name, item in datasets(file):
        require(len(found) < MOST_DATASETS, name)
        name.encode()  # names that are no UTF-8 raise a ValueError
        found[name] = item
    bytes_ = os.fstat(file.id.get_vfd_handle()).st_size
    for name in ("id", "index", "row", "length", "offset"):
        require(name in found and found[name].ndim == 1, name)
    sizes = {"N": len(found["id"]), "U": len(found["length"])}
    string = h5py.check_string_dtype(found["id"].dtype)
    require(string and string.length is None, "id")
    for name, size, dtype in (
        ("index", sizes["N"], "<i8"),
        ("row", sizes["N"], "<i8"),
        ("length", sizes["U"], "<i4"),
    ):
        require(found[name].shape == (size,) and found[name].dtype == dtype, name)
    require(sizes["U"] <= sizes["N"], "length")
    for name in ("id", "index", "row", "length"):
        require_in_one_piece(name, found[name], bytes_)
    require_starts("offset", found, sizes["U"] + 1, bytes_)
    first, residues = found["offset"][[0, -1]] if sizes["U"] else (0, 0)
    require(first == 0 and residues >= sizes["U"], "offset")
    for name, item in found.items():
        for one in declared:
            if re.fullmatch(one.name, name):
                require(item.dtype.str in one.dtypes, name)
                require_in_one_piece(name, item, bytes_)
                require_shape(name, item, one, sizes, int(residues))
                if one.per == "pair":
                    require_starts(f"{name}_offset", found, sizes["U"] + 1, bytes_)
    return sizes


def require_in_one_piece(name: str, item: h5py.Dataset, file_bytes: int) -> None:
    """Raise ValueError unless a dataset lies in the file, in one piece, as large as it says."""
    size = math.prod(item.shape) * item.id.get_type().get_size()
    if size:
        place = item.id.get_offset()  # None where it is in chunks, or nowhere
        require(place is not None and place + size <= file_bytes, name)


def require_starts(name: str, found: dict[str, h5py.Dataset], size: int, file_bytes: int) -> None:
    """Raise ValueError unless there is a dataset of `size` places in the file."""
    require(name in found, name)
    require(found[name].shape == (size,) and found[name].dtype == "<i8", name)
    require_in_one_piece(name, found[name], file_bytes)


def require_shape(
    name: str, item: h5py.Dataset, one: Declared, sizes: dict[str, int], residues: int
) -> None:
    """Raise ValueError unless a dataset has the shape that it should; notes new letters."""
    units = {"sequence": sizes["U"], "residue": residues}
    require(item.ndim == 1 + len(one.shape), name)
    require(one.per == "pair" or item.shape[0] == units[one.per], name)
    for size, expected in zip(item.shape[1:], one.shape, strict=True):
        if isinstance(expected, str):
            expected = sizes.setdefault(expected, size)
        require(size == expected, name)


def text_attribute(item: h5py.File | h5py.Dataset, name: str) -> str:
    """An attribute that is text. Raises ValueError if it is missing or anything else."""
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
    """An attribute that is JSON of a list of text, or of an object; `kind` is list or dict.

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
        raise ValueError(f"attribute {name!r} is not {what} as JSON has it")
    return value


def require_version(path: str | os.PathLike[str], file: h5py.File) -> None:
    """Raise InputError for a format version newer than this, ValueError for one that is none."""
    if "format_version" not in file.attrs:
        raise ValueError("attribute 'format_version' is missing")
    version = read_attribute(file, "format_version")
    if not isinstance(version, np.integer) or version < 1:
        raise ValueError("attribute 'format_version' is not a version")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {version}, newer than this esm-pipeline; update it"
        )


def read_ids(file: h5py.File) -> list[str]:
    """The dataset `id`. Raises ValueError, OSError where its text is damaged.

    Each text is stored elsewhere in the file, under its length and place, which are looked at
    first: HDF5 would make room for 4 GB where a length says so.
    """
    dataset = file["id"]
    if not dataset.size:
        return []
    kind = np.dtype([("bytes", "<u4"), ("place", "<u8"), ("number", "<u4")])
    with open(file.filename, "rb") as handle:
        handle.seek(dataset.id.get_offset())
        stored = np.fromfile(handle, kind, dataset.size)
        size = os.fstat(handle.fileno()).st_size
    total = int(stored["bytes"].sum(dtype=np.uint64))
    require(len(stored) == dataset.size and total <= size, "id")
    ids: list[str] = dataset.asstr()[...].tolist()
    return ids
