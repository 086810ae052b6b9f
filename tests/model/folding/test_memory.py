"""The predicted memory of folding against the measured memory, and the chunk size chosen by it."""

from __future__ import annotations

import sys

import pytest
import torch

from esm_pipeline import EsmConfig
from esm_pipeline.errors import CapacityError, WeightsError
from esm_pipeline.model.folding.memory import choose_chunk_size, fold_memory
from tests.benchmarks.bench_fold_memory import Point, config_of, measured, predicted

linux = pytest.mark.skipif(sys.platform != "linux", reason="measured by what /proc tells")
PAIR = 128 * 4
"""Bytes of a pair of residues."""


@pytest.fixture(autouse=True)
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@linux
def test_near_what_is_measured() -> None:
    point = (96, 1, 24)
    assert predicted(point) == pytest.approx(measured(point), rel=0.15)


@linux
@pytest.mark.long
@pytest.mark.parametrize(
    "point",
    [(64, 1, None), (128, 4, 64), (256, 1, None), (256, 1, 16), (256, 4, None), (512, 1, 64)],
    ids=str,
)
def test_within_a_fifth_of_what_is_measured(point: Point) -> None:
    assert predicted(point) == pytest.approx(measured(point), rel=0.2)


def test_long_sequences_take_three_pair_representations() -> None:
    """z and two projections: what the design is about."""
    for residues in (512, 1024, 2048):
        share = fold_memory(config_of(), 1, residues, None).total / (PAIR * residues**2)
        assert 3 < share < 3.2


def test_more_takes_more() -> None:
    def total(*point: int | None) -> int:
        return fold_memory(config_of(), *point).total  # type: ignore[arg-type]

    assert total(1, 256, None) < total(2, 256, None) < total(2, 300, None)
    sizes = [total(1, 512, size) for size in (1, 4, 16, 64, 512)]
    assert sizes == sorted(set(sizes))


def test_attention_maps_are_counted() -> None:
    plain = config_of()
    folding = {"trunk": {"num_blocks": 2}, "use_esm_attn_map": True}
    settings = {**plain.to_dict(), "num_hidden_layers": 36, "num_attention_heads": 40}
    with_maps = EsmConfig(**{**settings, "hidden_size": 320, "esmfold_config": folding})
    found = fold_memory(with_maps, 1, 256, None)
    assert found.language_model > 256**2 * 36 * 40 * 4
    assert found.total == found.language_model


def test_the_fastest_that_fits_is_chosen() -> None:
    config, device = config_of(), torch.device("cuda")  # where None means all rows at once
    fast, half, least = (
        fold_memory(config, 1, 300, size, device=device).total for size in (None, 64, 1)
    )
    assert choose_chunk_size(config, 1, 300, fast, device=device) is None
    assert choose_chunk_size(config, 1, 300, fast - 1, device=device) == 128
    assert choose_chunk_size(config, 1, 300, half, device=device) == 64
    assert choose_chunk_size(config, 1, 300, least, device=device) in (1, 2, 4, 8)
    with pytest.raises(CapacityError, match=r"1 sequences of 300 residues take 0\.2 GB"):
        choose_chunk_size(config, 1, 300, least - 1, device=device)


def test_a_choice_fits_and_no_faster_one_does() -> None:
    config, device = config_of(), torch.device("cuda")  # nothing is computed there

    def total(size: int | None) -> int:
        return fold_memory(config, 2, 300, size, device=device).total

    for available in range(total(1), total(None), 2**23):
        chosen = choose_chunk_size(config, 2, 300, available, device=device)
        assert chosen is not None
        assert total(chosen) <= available < total(2 * chosen)


def test_a_model_that_does_not_fold_is_refused() -> None:
    with pytest.raises(WeightsError, match="is_folding_model is not set"):
        fold_memory(EsmConfig(vocab_size=33, pad_token_id=1, mask_token_id=32), 1, 64, None)
