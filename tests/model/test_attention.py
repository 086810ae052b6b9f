"""Every backend of attention gives what a plain loop over the sequences gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from esm_pipeline.errors import InputError
from esm_pipeline.model import PackedLayout, attention, explicit_attention

LENGTHS = [5, 5, 17, 1, 9, 9, 9]
Projections = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def projections() -> Projections:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, sum(LENGTHS), 2, 8, generator=generator, dtype=torch.float64)
    return q, k, v


@pytest.fixture
def layout() -> PackedLayout:
    return PackedLayout.from_lengths(LENGTHS)


def plain(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    parts, start = [], 0
    for length in lengths:
        stop = start + length
        for head in range(q.shape[1]):
            scores = q[start:stop, head] @ k[start:stop, head].T / q.shape[2] ** 0.5
            parts.append(scores.softmax(1) @ v[start:stop, head])
        start = stop
    heads, split = q.shape[1], [parts[i : i + q.shape[1]] for i in range(0, len(parts), q.shape[1])]
    assert heads == len(split[0])
    return torch.cat([torch.stack(group, dim=1) for group in split])


@pytest.mark.parametrize("backend", [attention.attend_by_length, attention.attend_padded])
def test_backend_equals_plain_loop(
    backend: attention.Backend, projections: Projections, layout: PackedLayout
) -> None:
    found = backend(*projections, layout, 0.0)
    assert float((found - plain(*projections, LENGTHS)).abs().max()) <= 1e-12


def test_explicit_maps_mix_to_the_same(projections: Projections, layout: PackedLayout) -> None:
    found, maps = explicit_attention.attend_explicitly(*projections, layout, with_maps=True)
    assert float((found - plain(*projections, LENGTHS)).abs().max()) <= 1e-12
    assert [tuple(group.shape) for group in maps] == [
        (2, 2, 5, 5),
        (1, 2, 17, 17),
        (1, 2, 1, 1),
        (3, 2, 9, 9),
    ]
    assert all(float((group.sum(-1) - 1).abs().max()) <= 1e-12 for group in maps)


def test_variable_length_kernel_gets_the_layout(
    projections: Projections, layout: PackedLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the kernel itself: a stand-in of its documented call runs on the CPU."""

    def kernel(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        ends_q: Tensor,
        ends_k: Tensor,
        longest_q: int,
        longest_k: int,
    ) -> Tensor:
        assert ends_q.dtype == ends_k.dtype == torch.int32
        assert longest_q == longest_k == max(LENGTHS)
        return plain(q, k, v, ends_q.diff().tolist())

    monkeypatch.setattr(f"{attention.VARLEN}.varlen_attn", kernel)
    found = attention.attend_variable_length(*projections, layout, 0.0)
    assert float((found - plain(*projections, LENGTHS)).abs().max()) <= 1e-12


class Elsewhere:
    """Stands for a tensor on another device."""

    def __init__(self, device: str, dtype: torch.dtype, width: int) -> None:
        self.device, self.dtype, self.shape = torch.device(device), dtype, (9, 4, width)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Have PyTorch see a card of some compute capability, with its kernels or without."""

    def see(capability: tuple[int, int], *, built: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)

    attention.has_varlen.cache_clear()
    yield see
    attention.has_varlen.cache_clear()


@pytest.mark.parametrize(
    ("capability", "built", "expected"),
    [
        ((7, 0), True, attention.attend_padded),
        ((7, 5), True, attention.attend_padded),
        ((8, 0), True, attention.attend_variable_length),
        ((8, 0), False, attention.attend_padded),
        ((9, 0), True, attention.attend_variable_length),
        ((12, 0), True, attention.attend_variable_length),
    ],
)
def test_older_cards_pad(
    capability: tuple[int, int],
    built: bool,
    expected: attention.Backend,
    card: Callable[..., None],
) -> None:
    card(capability, built=built)
    assert attention.choose_backend(Elsewhere("cuda:1", torch.bfloat16, 24), 0.0) is expected


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "kernel", "expected"),
    [
        ("cpu", torch.bfloat16, 0.0, True, attention.attend_by_length),
        ("cuda", torch.bfloat16, 0.0, True, attention.attend_variable_length),
        ("cuda", torch.float16, 0.0, True, attention.attend_variable_length),
        ("cuda", torch.bfloat16, 0.0, False, attention.attend_padded),
        ("cuda", torch.bfloat16, 0.1, True, attention.attend_padded),
        ("cuda", torch.float32, 0.0, True, attention.attend_padded),
        ("mps", torch.float32, 0.0, True, attention.attend_padded),
    ],
)
@pytest.mark.parametrize("width", [24, 12, 320])
def test_choice_of_backend(
    device: str,
    dtype: torch.dtype,
    dropout: float,
    kernel: bool,
    width: int,
    expected: attention.Backend,
    monkeypatch: pytest.MonkeyPatch,
    card: Callable[..., None],
) -> None:
    card((8, 0))
    if not kernel:
        monkeypatch.setattr(attention, "VARLEN", "torch.nn.attention.of_an_older_torch")
    if width != 24 and device == "cuda":
        expected = attention.attend_padded
    assert attention.choose_backend(Elsewhere(device, dtype, width), dropout) is expected


def test_gradients_agree_between_backends(projections: Projections, layout: PackedLayout) -> None:
    gradients = []
    for backend in (attention.attend_by_length, attention.attend_padded):
        leaves = [x.clone().requires_grad_() for x in projections]
        backend(*leaves, layout, 0.0).square().sum().backward()
        gradients.append([x.grad for x in leaves])
    for one, other in zip(*gradients, strict=True):
        assert float((one - other).abs().max()) <= 1e-12
        assert float(one.abs().max()) > 0.1


def test_layout_of_a_mask_with_holes() -> None:
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]])
    layout = PackedLayout.from_mask(mask)
    assert layout.lengths == [3, 2]
    assert layout.offsets == [0, 3, 5]
    assert layout.positions.tolist() == [0, 1, 3, 1, 2]
    assert layout.sequence.tolist() == [0, 0, 0, 1, 1]
    padded = torch.arange(8.0).reshape(2, 4)
    packed = layout.pack(padded)
    assert packed.tolist() == [0, 1, 3, 5, 6]
    assert torch.equal(layout.unpack(packed, 4), padded * mask)


def test_layout_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="zero everywhere"):
        PackedLayout.from_mask(torch.zeros(2, 3))
