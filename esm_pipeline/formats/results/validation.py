"""Opening HDF5 files that anyone may have written, and checking them before values are read.

Every reader opens with `open_hdf5`, and every kind of result has rules for its datasets. Shapes,
types and places are checked in the headers alone: this takes milliseconds, and memory that does not
depend on what the headers claim. Each dataset must lie in the file itself, contiguous and of the
claimed size, so that nothing read afterwards is larger than the file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

from esm_pipeline.errors import DamagedError, InputError
from esm_pipeline.formats.results.attributes import read_attribute
from esm_pipeline.formats.results.layout import (
    BY_ID,
    BY_SEQUENCE,
    KEY_TYPE,
    POSITION_TYPE,
    STORED_DTYPES,
    Array,
    Per,
    unit_starts,
)

MOST_DATASETS = 10_000
FIRST_BYTES = 1 << 20
"""Bytes at the beginning of a file, where its attributes are."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""First bytes of every HDF5 file that this package writes."""

HEAP_MAGIC, HEAP_HEADER = b"GCOL\1\0\0\0", 16
"""First bytes, and size of the header, of a global heap of HDF5, which holds text."""

TEXT_PLACE = np.dtype([("bytes", "<u4"), ("place", "<u8"), ("number", "<u4")])
"""What a dataset of text has for each: its length, and where it is."""

TEXTS_AT_ONCE = 1 << 16
CACHE_BYTES = 1 << 19
"""Bytes of a file's own structure that HDF5 keeps in memory: text belongs to it."""

DAMAGE = (ValueError, KeyError, TypeError, IndexError, RuntimeError, OverflowError, AttributeError)
"""What h5py raises for malformed bytes, besides an OSError without a number."""


@dataclass(frozen=True)
class DatasetRule:
    """What the datasets whose names match `name` (a regular expression) must look like.

    They have a value of `shape`, of one of `dtypes`, for each unit `per`. A letter in `shape` is a
    size: the same number wherever the letter occurs in the rules of a result.
    """

    name: str
    per: Per
    shape: tuple[int | str, ...]
    dtypes: tuple[str, ...]


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise DamagedError for errors of h5py within, or InputError if the machine is at fault."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{path}: no such file; check the path") from None
        if error.errno is None:
            if not has_signature(path):
                raise DamagedError(
                    os.fspath(path),
                    "is not an HDF5 file of results",
                    "give an embeddings.h5 or another .h5 file that a command wrote",
                ) from None
            why = " ".join(str(error).split())
            raise damaged_result(path, f"cannot be read as HDF5 ({why})") from None
        raise unreadable(path, error) from None
    except DAMAGE as error:
        raise damaged_result(path, error) from None


def has_signature(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as HDF5 does, whatever follows; so may an empty one have been."""
    with open(path, "rb") as handle:
        start = handle.read(len(SIGNATURE))
    return start in (b"", SIGNATURE)


def unreadable(path: str | os.PathLike[str], error: OSError) -> InputError:
    """The error of a file that this machine cannot read, whatever it contains."""
    return InputError(
        f"{path}: cannot be read ({os.strerror(error.errno or 0)}); its contents may be whole: "
        "check the permissions, the file system and the limits of this machine"
    )


def damaged_result(path: str | os.PathLike[str], why: object) -> DamagedError:
    """The error of a file whose contents are not as they were written."""
    reason = " ".join(str(why.args[0] if isinstance(why, KeyError) and why.args else why).split())
    return DamagedError(os.fspath(path), reason[:200])


def open_hdf5(path: str | os.PathLike[str]) -> h5py.File:
    """Open a finished HDF5 file for reading.

    Raises DamagedError for a file that is cut short or not HDF5, InputError for one that cannot be
    read for another reason.
    """
    with reading(path), ExitStack() as stack:
        # no lock: a finished file needs none, and some file systems (NFS, Lustre) have no flock
        file = stack.enter_context(h5py.File(path, "r", locking=False))
        check_heaps(path)
        keep_little(file)
        stack.pop_all()
        return file


def keep_little(file: h5py.File) -> None:
    """Let HDF5 keep no more than `CACHE_BYTES` of a file's structure, in place of up to 32 MB."""
    config = file.id.get_mdc_config()
    config.set_initial_size = True
    config.initial_size = config.min_size = config.max_size = CACHE_BYTES
    file.id.set_mdc_config(config)


def check_heaps(path: str | os.PathLike[str]) -> None:
    """Check the sizes in the heaps that hold the text of attributes: HDF5 crashes on wrong ones.

    Raises ValueError for an impossible size.
    """
    with open(path, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        data = handle.read(FIRST_BYTES)
    place = data.find(HEAP_MAGIC)
    while place >= 0:
        head = data[place + len(HEAP_MAGIC) : place + HEAP_HEADER]
        end = place + int.from_bytes(head, "little")
        inside = place + HEAP_HEADER <= end <= size
        at = place + HEAP_HEADER
        while inside and at + HEAP_HEADER <= min(end, len(data)):
            number = int.from_bytes(data[at : at + 2], "little")
            length = int.from_bytes(data[at + 8 : at + HEAP_HEADER], "little")
            # number 0 is free space, whose length includes its own header
            at += length if number == 0 else HEAP_HEADER + -(-length // 8) * 8
            inside = at <= end and not (number == 0 and at != end)
            if number == 0:
                break
        if not inside:
            raise ValueError("a part that holds text is not as HDF5 writes it")
        place = data.find(HEAP_MAGIC, place + 1)


def check_datasets(file: h5py.File, rules: Sequence[DatasetRule] = ()) -> dict[str, int]:
    """Check the headers of a file's datasets; returns the sizes N, U and those of the letters.

    Raises ValueError, KeyError or TypeError, naming the dataset.
    """
    found: dict[str, h5py.Dataset] = {}
    for name, item in datasets(file):
        require(len(found) < MOST_DATASETS, name)
        name.encode()  # raises ValueError for a name that is not UTF-8
        found[name] = item
    file_bytes = os.fstat(file.id.get_vfd_handle()).st_size
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
        require_contiguous(name, found[name], file_bytes)
    require_offsets("offset", found, sizes["U"] + 1, file_bytes)
    first, residues = found["offset"][[0, -1]] if sizes["U"] else (0, 0)
    require(first == 0 and residues >= sizes["U"], "offset")
    for pair in (BY_ID, BY_SEQUENCE):
        require_lookup(pair, found, sizes["N"], file_bytes)
    for name, item in found.items():
        for rule in rules:
            if re.fullmatch(rule.name, name):
                require(item.dtype.str in rule.dtypes, name)
                require_contiguous(name, item, file_bytes)
                require_shape(name, item, rule, sizes, int(residues))
                if rule.per == "pair":
                    require_offsets(f"{name}_offset", found, sizes["U"] + 1, file_bytes)
    return sizes


def require_contiguous(name: str, item: h5py.Dataset, file_bytes: int) -> None:
    """Raise ValueError unless a dataset lies in the file, contiguous and of its full size."""
    size = math.prod(item.shape) * item.id.get_type().get_size()
    if size:
        place = item.id.get_offset()  # None where it is in chunks, or nowhere
        require(place is not None and place + size <= file_bytes, name)


def require_offsets(name: str, found: dict[str, h5py.Dataset], size: int, file_bytes: int) -> None:
    """Raise ValueError unless a dataset of `size` offsets is in the file."""
    require(name in found, name)
    require(found[name].shape == (size,) and found[name].dtype == "<i8", name)
    require_contiguous(name, found[name], file_bytes)


def require_lookup(
    pair: tuple[str, str], found: dict[str, h5py.Dataset], size: int, file_bytes: int
) -> None:
    """Raise ValueError unless both datasets of a lookup are in the file, with `size` keys each.

    A file may have neither.
    """
    if not any(name in found for name in pair):
        return
    for name, dtype in zip(pair, (KEY_TYPE, POSITION_TYPE), strict=True):
        require(name in found, name)
        require(found[name].shape == (size,) and found[name].dtype == dtype, name)
        require_contiguous(name, found[name], file_bytes)


def require_shape(
    name: str, item: h5py.Dataset, rule: DatasetRule, sizes: dict[str, int], residues: int
) -> None:
    """Raise ValueError unless a dataset has the shape of its `rule`; new letters go to `sizes`."""
    units = {"sequence": sizes["U"], "residue": residues}
    require(item.ndim == 1 + len(rule.shape), name)
    require(rule.per == "pair" or item.shape[0] == units[rule.per], name)
    for size, expected in zip(item.shape[1:], rule.shape, strict=True):
        if isinstance(expected, str):
            expected = sizes.setdefault(expected, size)
        require(size == expected, name)


def read_texts(file: h5py.File, name: str) -> list[str]:
    """A dataset of text, such as `id`. Raises ValueError or OSError if its text is damaged."""
    dataset = file[name]
    string = h5py.check_string_dtype(dataset.dtype)
    require(string and string.length is None and dataset.ndim == 1, name)
    return texts_in(file, dataset, 0, dataset.size)


def texts_in(file: h5py.File, dataset: h5py.Dataset, first: int, stop: int) -> list[str]:
    """The texts [first, stop) of a dataset of text. Raises ValueError or OSError for damaged ones.

    Each text is stored elsewhere in the file, with its length and place in the dataset. The lengths
    are checked first: HDF5 would allocate 4 GB if a length said so.
    """
    name, number = dataset.name.lstrip("/"), file.id.get_vfd_handle()
    require(0 <= first <= stop <= dataset.size, name)
    total, size = 0, os.fstat(number).st_size
    begin, texts, string = dataset.id.get_offset(), [], dataset.asstr()
    for start in range(first, stop, TEXTS_AT_ONCE):
        end = min(start + TEXTS_AT_ONCE, stop)
        wanted = (end - start) * TEXT_PLACE.itemsize
        stored = os.pread(number, wanted, begin + start * TEXT_PLACE.itemsize)
        require(len(stored) == wanted, name)
        total += int(np.frombuffer(stored, TEXT_PLACE)["bytes"].sum(dtype=np.uint64))
        require(total <= size, name)
        texts += string[start:end].tolist()
    return texts


def arrays_of(file: h5py.File) -> list[Array]:
    """The arrays that a `RaggedWriter` wrote to `file`.

    Raises ValueError, KeyError or TypeError for a file with another layout, and for data outside of
    the file: whatever is copied from it lies in it.
    """
    found = dict(datasets(file))
    for name in ("id", "index", "row", "length", "offset"):
        require(found[name].ndim == 1, name)
    lengths, rows = found["length"][...], found["row"][...]
    require(lengths.dtype == "<i4" and (lengths > 0).all(), "length")
    require(np.array_equal(found["offset"][...], unit_starts(lengths, "residue")), "offset")
    require(np.array_equal(np.unique(rows), np.arange(len(lengths))), "row")
    require(found["id"].shape == found["index"].shape == rows.shape, "id")
    arrays = []
    for name, item in found.items():
        if "per" in item.attrs:
            per, kind = read_attribute(item, "per"), item.dtype.str
            require(isinstance(per, str) and per in get_args(Per) and kind in STORED_DTYPES, name)
            require(not item.size or item.id.get_offset() is not None, name)
            require(item.shape[:1] == (unit_starts(lengths, per)[-1],), name)
            arrays.append(Array(name, per, item.shape[1:], kind))
    return arrays


def datasets(group: h5py.Group, prefix: str = "") -> Iterator[tuple[str, h5py.Dataset]]:
    """Name and dataset of all datasets of a file, at its top or in a group there.

    Raises ValueError for deeper groups, links and data in other files, which are not opened.
    """
    for name in group:
        path = prefix + name
        require(isinstance(group.get(name, getlink=True), h5py.HardLink), path)
        item = group[name]
        if isinstance(item, h5py.Group) and not prefix:
            yield from datasets(item, f"{name}/")
        else:
            require(isinstance(item, h5py.Dataset), path)
            require(not item.external and not item.is_virtual, path)
            yield path, item


def letters_of(values: NDArray[np.bytes_], name: str) -> str:
    """The capital letters (units,) of dataset `name` as text. Raises ValueError for other bytes."""
    found = values.tobytes()
    require(re.fullmatch(b"[A-Z]*", found), name)
    return str(found, "ascii")


def require(holds: Any, name: str) -> None:
    """Raise ValueError that names a dataset unless a condition `holds`."""
    if not holds:
        raise ValueError(f"{name!r} is not as a task writes it")
