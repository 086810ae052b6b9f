"""How large the content of a `torch.save` file is, computed before anything is unpacked.

A pickle of a few bytes can unpack to gigabytes: by compression, by numbers that stand for sizes, or
by copying its own content again and again. Here the pickle is executed with stand-ins: no class is
created, no function is called, and no tensor gets memory. Peer: torch/serialization.py.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, NamedTuple

from esm_pipeline.errors import WeightsError, brief

MOST_PICKLE = 2 << 20
"""Bytes of names, shapes and settings. ESMFold's 5,000 tensors take less than half of it."""

MOST_WORK = 2_000_000
"""Bytes and items that all calls in a pickle together may create or copy."""

MOST_SHARING = 10
"""How often, on average, tensors may use the same bytes of the file; twice for a tied head."""

MOST_SIZE = 2**63 - 1
DIMENSIONS = 64  # of a tensor, at most
MOST_REASON = 200  # characters
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ITEM_BYTES = {
    **dict.fromkeys(("ComplexDoubleStorage",), 16),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
}
"""Kind of storage → bytes of a number; 1 for kinds that are not listed."""

UNPICKLER: Any = pickle._Unpickler
"""The one in Python: the one in C allocates gigabytes for a memo entry with a large number."""

TENSOR_BUILDERS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")


class TooLargeError(Exception):
    """A pickle whose content is larger than its file."""


def require_bounded(path: Path) -> None:
    """Raise WeightsError for a damaged file, or one with more content than its own size."""
    try:
        if zipfile.is_zipfile(path):
            require_bounded_zip(path)
        else:
            require_bounded_legacy(path)
    except TooLargeError as error:
        raise WeightsError(
            f"{path}: {error}; a checkpoint is not like this: get it from its author, or as "
            "safetensors"
        ) from None
    except Exception as error:  # a damaged file may raise any
        why = (str(error).splitlines() or ["it ends early"])[0][:MOST_REASON]
        raise WeightsError(f"{path}: not a whole weight file ({why}); copy it again") from None


def require_bounded_zip(path: Path) -> None:
    """The same for a file of PyTorch 1.6 or later: a zip archive without compression."""
    total = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > total:
                raise TooLargeError(
                    f"{brief(member.filename)} in it is compressed, and would unpack to "
                    f"{member.file_size:,} bytes"
                )
        names = {member.filename.lower() for member in members}
        if sum(member.file_size for member in members) > total or len(names) < len(members):
            raise TooLargeError("its members overlap")
        (main,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = main.removesuffix("data.pkl")
        sizes = {member.filename: member.file_size for member in members}
        if sizes[main] > MOST_PICKLE:
            raise TooLargeError(
                f"its pickle has {sizes[main]:,} bytes, more than the {MOST_PICKLE:,} that names "
                "and shapes may take"
            )
        content = archive.read(main)
    DryUnpickler(io.BytesIO(content), total, lambda key: sizes[f"{folder}data/{key}"]).load()


def require_bounded_legacy(path: Path) -> None:
    """The same for an older file: several pickles, then the bytes of the storages."""
    total, storages = path.stat().st_size, 0
    with open(path, "rb") as handle:
        source = io.BytesIO(handle.read(MOST_PICKLE))
    try:
        if DryUnpickler(source, total).load() != LEGACY_MAGIC:
            raise pickle.UnpicklingError("neither a zip file nor one of an older PyTorch")
        for _ in range(4):  # version, system, tensors, names of storages
            unpickler = DryUnpickler(source, total)
            unpickler.load()
            storages += sum(unpickler.storages.values())
    except (EOFError, ValueError, LookupError, struct.error):
        if source.tell() < MOST_PICKLE:
            raise
        raise TooLargeError(
            f"its pickles have more than the {MOST_PICKLE:,} bytes that names and shapes may take"
        ) from None
    if storages > total:
        raise TooLargeError(f"its tensors would take {storages:,} bytes, it has {total:,}")


class Storage(NamedTuple):
    """The numbers of one or more tensors: how many there are, and the bytes of each."""

    length: int
    item: int


class PickledType(NamedTuple):
    """A class of storages, known by the bytes of a number in it."""

    item: int


class StandIn:
    """Replaces objects that are neither tensors nor plain values; it stores nothing."""

    __new__ = lambda cls, *args: object.__new__(cls)  # noqa: E731
    append = extend = update = __setitem__ = lambda self, *args: None


class Weighed(tuple[Any, ...]):
    """A tuple that knows its number of items, including those of the tuples in it.

    A tuple may contain another many times; hashing or printing it would visit all of them.
    """

    weight: int


def weight_of(value: Any) -> int:
    """The number of items to visit in a value."""
    if isinstance(value, Weighed):
        return value.weight
    if isinstance(value, (list, tuple)):
        return 1 + sum(one.weight if isinstance(one, Weighed) else 1 for one in value)
    return 1 + (len(value) if isinstance(value, (str, bytes, bytearray, dict, set)) else 0)


def weighed(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap the loading of a tuple, to count its items. Raises TooLargeError."""

    def load_tuple(unpickler: DryUnpickler) -> None:
        load(unpickler)
        found = Weighed(unpickler.stack[-1])
        found.weight = weight_of(unpickler.stack[-1])
        if found.weight > MOST_WORK:
            raise TooLargeError("its pickle has tuples in tuples without end")
        unpickler.stack[-1] = found

    return load_tuple


def require_tensor_sizes(*values: Any) -> None:
    """Raise TooLargeError for values that cannot be sizes of a tensor."""
    if len(values) > 2 * DIMENSIONS + 1:
        raise TooLargeError(f"a tensor in it has more than {DIMENSIONS} dimensions")
    for value in values:
        if type(value) is not int or not 0 <= value <= MOST_SIZE:
            raise TooLargeError(f"a tensor in it has the size {brief(value)}")


def put(target: Any, key: Any, value: Any) -> None:
    """Set an item of a mapping. Raises TooLargeError for a key that may take long to look up."""
    if not isinstance(key, (str, bytes, int, float, NoneType)):
        raise TooLargeError(f"it uses {brief(key)} as a name")
    target[key] = value


class DryUnpickler(UNPICKLER):  # type: ignore[misc]
    """Executes one pickle with stand-ins. Raises TooLargeError; a damaged one may raise any error.

    total: bytes of the file. size_of: key of a storage → its bytes in the file, if known.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(UNPICKLER.dispatch)

    def __init__(self, file: Any, total: int, size_of: Callable[[str], int] | None = None) -> None:
        super().__init__(file, encoding="latin-1")
        self.total, self.size_of = total, size_of
        self.storages: dict[str, int] = {}
        self.work = self.tensor_bytes = 0

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a class or function."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in TENSOR_BUILDERS:
            return self.tensor
        if module == "torch._utils" and name in PARAMETERS:
            return self.parameter
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return self.from_type
        if module == "torch._utils" and name.startswith("_rebuild"):
            raise TooLargeError(
                f"it has a tensor of a special kind ({brief(name)}), not plain weights"
            )
        return PickledType(ITEM_BYTES.get(name, 1)) if name.endswith("Storage") else StandIn

    def persistent_load(self, pid: Any) -> Storage:
        """A storage: ("storage", kind, key, device, number of items, …)."""
        _, kind, key, _, count = pid[:5]
        require_tensor_sizes(count)
        storage = Storage(count, kind.item)
        held = self.total if self.size_of is None else self.size_of(key)
        if count * storage.item > held:
            raise TooLargeError(
                f"its storage {brief(key)} has {held:,} bytes, not {brief(count)} items"
            )
        self.storages[str(key)] = count * storage.item
        return storage

    def tensor(self, storage: Storage, offset: int, size: Any, stride: Any, *_: object) -> None:
        """A tensor, which must be within its storage."""
        require_tensor_sizes(offset, *size, *stride)
        count = prod(size)
        last = sum((one - 1) * step for one, step in zip(size, stride, strict=True))
        if count > storage.length or (count and offset + last >= storage.length):
            raise TooLargeError(
                f"a tensor of shape {brief(tuple(size))} in it has only {storage.length:,} items"
            )
        self.tensor_bytes += count * storage.item
        if self.tensor_bytes > MOST_SHARING * self.total:
            raise TooLargeError(
                f"its tensors would take more than {MOST_SHARING} times its own size"
            )

    def parameter(self, tensor: Any, *_: object) -> Any:
        """A parameter is its tensor."""
        return tensor

    def from_type(self, function: Any, kind: Any, args: Any, *_: object) -> Any:
        """A tensor with attributes is what `function` returns."""
        return self.call(function, args)

    def call(self, function: Any, args: Any) -> Any:
        """Call one of the functions above, or create a stand-in."""
        if function in (self.tensor, self.parameter, self.from_type):
            return function(*args)
        self.charge(*args)
        return OrderedDict(*args) if function is OrderedDict else StandIn()

    def charge(self, *values: Any) -> None:
        """Count what a call would create or copy. Raises TooLargeError."""
        for value in values:
            self.work += abs(value) if isinstance(value, int) else weight_of(value)
        if self.work > MOST_WORK:
            raise TooLargeError("its pickle creates or copies more than a checkpoint has")

    def load_reduce(self) -> None:
        """Execute a call."""
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    def load_build(self) -> None:
        """Set attributes, which are copied."""
        state = self.stack.pop()
        self.charge(state)

    def load_setitem(self) -> None:
        """Set an item of a mapping."""
        value, key = self.stack.pop(), self.stack.pop()
        put(self.stack[-1], key, value)

    def load_setitems(self) -> None:
        """Set items of a mapping."""
        items = self.pop_mark()
        for place in range(0, len(items), 2):
            put(self.stack[-1], items[place], items[place + 1])

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    for one in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        dispatch[one[0]] = weighed(UNPICKLER.dispatch[one[0]])
    for one in (pickle.INST, pickle.OBJ, pickle.FROZENSET, pickle.ADDITEMS, pickle.BYTEARRAY8):
        del dispatch[one[0]]  # torch.load does not know these either
