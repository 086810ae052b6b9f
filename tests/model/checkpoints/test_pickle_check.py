"""Pickled weight files that unpack to more than their size: refused at once, without the memory.

All are opened in one process, with a limit on its memory; what it says of each is judged here.
"""

from __future__ import annotations

import copy
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from esm_pipeline.errors import WeightsError
from esm_pipeline.model.checkpoints.pickle_check import require_bounded
from esm_pipeline.model.checkpoints.tensors import load_pickle, open_pickle
from tests.within import Outcome, judge

STORED = {"0": bytes(400)}
START = b"\x80\x02"  # protocol 2


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def whole(value: int) -> bytes:
    digits = value.to_bytes(9, "little")
    return b"\x8a" + bytes([len(digits)]) + digits


def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def tensor(
    size: tuple[int, ...],
    stride: tuple[int, ...],
    count: int = 100,
    key: str = "0",
    legacy: bool = False,
    rebuild: str = "_rebuild_tensor_v2",
) -> bytes:
    """Opcodes of a float32 tensor over the storage `key` with `count` items."""
    storage = text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + whole(count)
    storage = b"(" + storage + (b"N" if legacy else b"") + b"tQ"
    args = storage + whole(0) + sizes(size) + sizes(stride)
    more = b"\x89" + b"ccollections\nOrderedDict\n)R"
    if rebuild == "_rebuild_qtensor":
        more = b"(ctorch\nper_tensor_affine\nG?\xf0\0\0\0\0\0\0" + whole(0) + b"t" + more
    return f"ctorch._utils\n{rebuild}\n".encode() + b"(" + args + more + b"tR"


def named(*values: bytes) -> bytes:
    """A pickle of values by name."""
    items = b"".join(text(f"w{place}") + value for place, value in enumerate(values))
    return START + b"}(" + items + b"u."


def archive(
    path: Path, content: bytes, storages: dict[str, bytes] = STORED, packed: str = ""
) -> None:
    """A file as `torch.save` writes it; the member that ends in `packed` is compressed."""
    members = {"data.pkl": content, "byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{key}": values for key, values in storages.items()}
    with zipfile.ZipFile(path, "w") as file:
        for name, values in members.items():
            kind = zipfile.ZIP_DEFLATED if packed and name.endswith(packed) else zipfile.ZIP_STORED
            file.writestr(f"archive/{name}", values, kind)


def legacy(path: Path, content: bytes) -> None:
    """A file as PyTorch before 1.6 wrote it, except its storages."""
    before = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(one, 2) for one in before] + [content, pickle.dumps(["0"], 2)]
    path.write_bytes(b"".join(parts))


def overlapping(path: Path) -> None:
    archive(path, named(tensor((100,), (1,))), {"0": bytes(1 << 20)})
    with zipfile.ZipFile(path, "a") as file:
        for number in range(1, 2000):
            again = copy.copy(file.getinfo("archive/data/0"))
            again.filename = f"archive/data/{number}"
            file.filelist.append(again)
            file._didModify = True


def called(function: str, args: bytes) -> bytes:
    module, name = function.rsplit(".", 1)
    return f"c{module}\n{name}\n".encode() + args + b"\x85R"


def doubled(levels: int) -> bytes:
    """A pair that contains the same pair twice, and so on."""
    return b")" + b"q\x00h\x00\x86" * levels


def copies(count: int) -> bytes:
    """A dictionary of a thousand names, copied again and again."""
    items = b"".join(text(f"{place:x}") + b"N" for place in range(1000))
    return b"}(" + items + b"uq\x010" + b"ccollections\nOrderedDict\nh\x01\x85R0" * count + b"N"


def sharing(count: int, items: int = 100) -> bytes:
    return named(*[tensor((items,), (1,), items)] * count)


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "packed pickle": (
        lambda path: archive(path, bytes(1 << 28), packed="data.pkl"),
        "is compressed, and would unpack to 268,435,456 bytes",
    ),
    "packed storage": (
        lambda path: archive(path, sharing(1), {"0": bytes(1 << 28)}, packed="data/0"),
        "is compressed, and would unpack to 268,435,456 bytes",
    ),
    "overlapping members": (overlapping, "its members overlap"),
    "lists": (
        lambda path: archive(path, START + b"(" + b"]" * (100 << 20) + b"t."),
        "its pickle has 104,857,605 bytes, more than",
    ),
    "lists, old file": (
        lambda path: legacy(path, START + b"(" + b"]" * (100 << 20) + b"t."),
        "its pickles have more than",
    ),
    "size": (
        lambda path: archive(path, named(tensor((10**10,), (1,)))),
        "a tensor of shape (10000000000,) in it has only 100 items",
    ),
    "size of two": (
        lambda path: archive(path, named(tensor((2**40, 2**40), (1, 1)))),
        "in it has only 100 items",
    ),
    "size of 19 digits": (
        lambda path: archive(path, named(tensor((2**63,), (1,)))),
        "has the size 9223372036854775808",
    ),
    "expanded": (
        lambda path: archive(path, named(tensor((100_000, 100_000), (0, 0)))),
        "in it has only 100 items",
    ),
    "stride": (
        lambda path: archive(path, named(tensor((2,), (10**10,)))),
        "a tensor of shape (2,) in it has only 100 items",
    ),
    "dimensions": (
        lambda path: archive(path, named(tensor((1,) * 500, (1,) * 500))),
        "more than 64 dimensions",
    ),
    "storage": (
        lambda path: archive(path, named(tensor((10**10,), (1,), count=10**10))),
        "has 400 bytes, not 10000000000 items",
    ),
    "storage, old file": (
        lambda path: legacy(path, named(tensor((2 * 10**9,), (1,), 2 * 10**9, legacy=True))),
        "bytes, not 2000000000 items",
    ),
    "many storages, old file": (
        lambda path: legacy(
            path, named(*[tensor((10,), (1,), 2000, str(n), legacy=True) for n in range(100)])
        ),
        "its tensors would take 800,000 bytes",
    ),
    "sharing": (
        lambda path: archive(path, sharing(1000, 25_000), {"0": bytes(100_000)}),
        "more than 10 times its own size",
    ),
    "quantized": (
        lambda path: archive(path, named(tensor((2 * 10**9,), (1,), rebuild="_rebuild_qtensor"))),
        "a tensor of a special kind ('_rebuild_qtensor')",
    ),
    "bytes from a number": (
        lambda path: archive(path, named(called("builtins.bytearray", whole(4 * 10**9)))),
        "creates or copies more",
    ),
    "numbers from a number": (
        lambda path: archive(path, named(called("torch.FloatTensor", whole(10**9)))),
        "creates or copies more",
    ),
    "copies": (lambda path: archive(path, named(copies(30_000))), "creates or copies more"),
    "tuples of tuples": (
        lambda path: archive(path, named(b"cbuiltins\nset\n](" + doubled(100) + b"e\x85R")),
        "tuples in tuples without end",
    ),
    "tuple for a name": (
        lambda path: archive(path, START + b"}" + doubled(10) + b"Ns."),
        ") as a name; a checkpoint is not like this",
    ),
    "memo": (
        lambda path: archive(path, START + b"}r\xff\xff\xff\x7f."),
        "",
    ),
    "text that is not there": (
        lambda path: legacy(path, START + b"X" + struct.pack("<I", 2**32 - 1) + b"a."),
        "not a whole weight file",
    ),
    "bytes that are not there": (
        lambda path: legacy(path, b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"a."),
        "not a whole weight file",
    ),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Case → the message about its file."""
    folder = tmp_path_factory.mktemp("files")
    for name, (write, _) in CASES.items():
        write(folder / f"{name}.bin")
    return judge("esm_pipeline.model.checkpoints.tensors.open_pickle", folder)


@pytest.mark.parametrize("case", CASES)
def test_refused_before_it_is_unpacked(case: str, outcomes: dict[str, Outcome]) -> None:
    one = outcomes[case]
    if case == "memo":  # harmless in Python's own unpickler, gigabytes in the one in C
        assert one.said == "nothing"
    else:
        assert CASES[case][1] in one.said
        assert f"{case}.bin: " in one.said
    one.require_small()


def legitimate() -> dict[str, Any]:
    base = torch.arange(24.0).view(4, 6)
    half = base.half()
    return {
        "state": {"a": base, "b": half, "c": torch.tensor(3), "d": torch.zeros(0, 5)},
        "views": {"a": base, "transposed": base.T, "part": base[1:3, 2:], "same": base},
        "parameters": {"a": torch.nn.Parameter(base), "b": base.to(torch.bfloat16)},
        "small": {"a": torch.ones(3, dtype=torch.bool), "b": base.to(torch.int16)},
        "newest": {"a": base.to(torch.float8_e4m3fn), "b": base.to(torch.uint16)},
        "ordered": OrderedDict(torch.nn.Linear(3, 2).state_dict()),
        "module": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).state_dict(),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("case", legitimate())
def test_whole_files_are_read(case: str, zipped: bool, tmp_path: Path) -> None:
    if case == "newest" and not zipped:
        return  # PyTorch writes these to zip files only
    path, state = tmp_path / "pytorch_model.bin", legitimate()[case]
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    found = {entry.key: entry.mapped() for entry in [*open_pickle(path).stored_tensors()]}
    assert found.keys() == state.keys()
    for key, expected in state.items():
        assert found[key].dtype == expected.dtype
        assert torch.equal(found[key].float(), expected.float())


def test_tensors_with_attributes_are_read(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    weight.note = "kept"  # type: ignore[attr-defined]
    torch.save({"a": weight}, tmp_path / "a.bin")
    assert torch.equal(load_pickle(tmp_path / "a.bin")["a"], torch.ones(2, 3))


def test_what_is_not_named_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for found in (
        {1: torch.ones(1)},
        {"a": torch.ones(3, 3).to_sparse()},
        {"a": torch.ones(3, device="meta")},
    ):
        torch.save(found, path)
        with pytest.raises(WeightsError, match=r"more than named tensors|of a special kind"):
            open_pickle(path)


def test_a_checkpoint_of_thousands_of_tensors_takes_no_time_to_judge(tmp_path: Path) -> None:
    """As many as ESMFold has, more than any other model here."""
    path = tmp_path / "pytorch_model.bin"
    names = [f"trunk.blocks.{place}.tri_att_start.mha.linear_q.weight" for place in range(6000)]
    torch.save({name: torch.zeros(2) for name in names}, path)
    with zipfile.ZipFile(path) as file:
        assert 500_000 < file.getinfo("pytorch_model/data.pkl").file_size < 2_000_000
    require_bounded(path)


def test_the_files_here_are_what_they_should_be(tmp_path: Path) -> None:
    """The same kinds of file, but with correct sizes, are opened."""
    path = tmp_path / "a.bin"
    archive(path, named(tensor((10, 10), (10, 1))))
    assert [entry.shape for entry in open_pickle(path).stored_tensors()] == [(10, 10)]
    legacy(path, named(tensor((40,), (1,), 40, legacy=True)))
    path.write_bytes(path.read_bytes() + struct.pack("<q", 40) + bytes(160))
    assert [entry.shape for entry in open_pickle(path).stored_tensors()] == [(40,)]
