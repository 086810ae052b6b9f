"""Confidences compared with the peer where it is right, and for each sequence where it is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from transformers.models.esm.modeling_esmfold import categorical_lddt
from transformers.models.esm.openfold_utils import loss

from esm_pipeline.model.folding import confidence
from esm_pipeline.model.folding.confidence import (
    MAX_ALIGNED_ERROR,
    chain_iptm,
    interchain_error,
    iptm,
    mean_plddt,
    pair_confidences,
    plddt,
    predicted_aligned_error,
    ptm,
)
from tests.oracles.structure_peers import Largest

TOLERANCE = 1e-12
LENGTHS = [1, 5, 19, 20, 41, 60]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def logits_of(length: int, seed: int = 0) -> Tensor:
    """(1, R, R, 64), some pairs surer than others and some sure of little."""
    return 4 * normal(1, length, length, 64, seed=seed) - 0.2 * torch.arange(64)


def unmasked(length: int) -> Tensor:
    return torch.ones(1, length)


def ptm_of(logits: Tensor, mask: Tensor) -> Tensor:
    return ptm(pair_confidences(logits, nn.Identity(), mask).tm, mask)


def padded(lengths: list[int], width: int) -> tuple[Tensor, Tensor]:
    """Logits (B, width, width, 64) with something else in the padding, and their mask."""
    logits = 10 * normal(len(lengths), width, width, 64, seed=9)
    for place, length in enumerate(lengths):
        logits[place, :length, :length] = logits_of(length, seed=place)[0]
    return logits, (torch.arange(width) < torch.tensor(lengths).unsqueeze(1)).double()


@pytest.mark.parametrize("length", LENGTHS)
def test_ptm_of_one_sequence_is_the_peers(length: int):
    logits = logits_of(length)
    wanted = loss.compute_tm(logits, max_bin=31, no_bins=64)
    found = ptm_of(logits, unmasked(length))
    assert found.shape == (1,)
    assert (found - wanted).abs() <= 1e-8  # the peer divides by R + 1e-8
    assert 0 < found < 1


def test_ptm_of_a_padded_batch_is_that_of_each_sequence_alone():
    lengths = [41, 5, 20]
    alone = [ptm_of(logits_of(n, seed=i), unmasked(n)) for i, n in enumerate(lengths)]
    for width in (41, 70):
        assert (ptm_of(*padded(lengths, width)) - torch.cat(alone)).abs().max() <= TOLERANCE


def test_the_peers_ptm_of_a_padded_batch_is_wrong():
    """So that the test above compares two things that could differ."""
    logits, mask = padded([41, 5, 20], 70)
    wrong = loss.compute_tm(logits, max_bin=31, no_bins=64)
    assert wrong.shape == ()
    assert (ptm_of(logits, mask) - wrong).abs().min() > 1e-2


def test_residues_between_chains_count_no_more_than_padding():
    """A linker: leaving it out of the mask is leaving it out of the batch."""
    logits = logits_of(30)
    mask = torch.ones(1, 30)
    mask[:, 10:16] = 0
    kept = mask[0].bool()
    wanted = ptm_of(logits[:, kept][:, :, kept], unmasked(24))
    assert (ptm_of(logits, mask) - wanted).abs() <= TOLERANCE
    assert (ptm_of(logits, unmasked(30)) - wanted).abs() > 1e-4


def test_scores_by_hand():
    """Certain of the first bin, 0.25 Å, at 100 residues: d0 = 3.65 Å."""
    logits = torch.full((1, 100, 100, 64), -1e4, dtype=torch.float64)
    logits[..., 0] = 0
    d0 = 1.24 * 85 ** (1 / 3) - 1.8
    assert d0 == pytest.approx(3.65, abs=0.01)
    mask = unmasked(100)
    assert ptm_of(logits, mask).item() == pytest.approx(1 / (1 + (0.25 / d0) ** 2), abs=1e-12)
    found = pair_confidences(logits, nn.Identity(), mask)
    assert (found.error - 0.25).abs().max() <= TOLERANCE
    uniform = predicted_aligned_error(torch.zeros(2, 2, 64))
    assert uniform["predicted_aligned_error"].tolist() == [[16.0, 16.0]] * 2  # (0.25 + 31.75) / 2
    assert uniform["max_predicted_aligned_error"] == MAX_ALIGNED_ERROR == 31.75


def test_no_residues_have_no_confidence():
    logits, mask = logits_of(4), torch.zeros(1, 4)
    assert ptm_of(logits, mask).item() == 0
    assert mean_plddt(torch.ones(1, 4, 37), mask).isnan().all()


def test_aligned_errors_are_the_peers():
    logits = logits_of(13)
    wanted = loss.compute_predicted_aligned_error(logits, max_bin=31, no_bins=64)
    found = predicted_aligned_error(logits)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert (value - wanted[name]).abs().max() <= TOLERANCE, name
    rows = pair_confidences(logits, nn.Identity(), unmasked(13)).error
    assert (rows - wanted["predicted_aligned_error"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("rows", [1, 7, 40, None])
def test_rows_at_once_change_nothing_but_memory(rows: int | None):
    z, mask = normal(2, 40, 40, 8), torch.ones(2, 40)
    head = nn.Linear(8, 64).double()
    whole = pair_confidences(z, head, mask, rows=40)
    with torch.no_grad(), Largest() as largest:
        found = pair_confidences(z, head, mask, rows=rows)
    assert (found.error - whole.error).abs().max() <= TOLERANCE
    assert (found.tm - whole.tm).abs().max() <= TOLERANCE
    assert largest.numbers == max((rows or 40) * 2 * 40 * 64, z.numel())


def test_rows_are_chosen_by_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(confidence, "LOGITS_AT_ONCE", 64 * 2 * 40 * 3)
    seen = []

    def head(block: Tensor) -> Tensor:
        seen.append(block.shape[1])
        return block

    pair_confidences(normal(2, 40, 40, 64), head, torch.ones(2, 40))
    assert seen == [3] * 13 + [1]


def test_halves_are_summed_up_in_float32():
    found = pair_confidences(logits_of(9).bfloat16(), nn.Identity(), unmasked(9))
    assert found.error.dtype == found.tm.dtype == torch.float32


def multimer_iptm(tm: Tensor, chains: list[int]) -> float:
    """AlphaFold-Multimer's, spelt out for one complex: (R, R) → 0–1."""
    best = 0.0
    for row, own in zip(tm.tolist(), chains, strict=True):
        others = [score for score, chain in zip(row, chains, strict=True) if chain != own]
        best = max(best, sum(others) / len(others))
    return best


def test_iptm_is_alphafold_multimers():
    chains = [0] * 9 + [1] * 4 + [2] * 7
    tm = normal(1, 20, 20).sigmoid()
    found = iptm(tm, unmasked(20), torch.tensor([chains]))
    assert found.item() == pytest.approx(multimer_iptm(tm[0], chains), abs=1e-12)
    assert found.item() != pytest.approx(ptm(tm, unmasked(20)).item(), abs=1e-3)


def test_iptm_leaves_out_linker_and_padding():
    chains = torch.tensor([[0] * 9 + [7] * 4 + [1] * 7, [0] * 10 + [1] * 5 + [9] * 5])
    mask = torch.ones(2, 20)
    mask[0, 9:13] = mask[1, 15:] = 0
    tm = normal(2, 20, 20).sigmoid()
    for place, kept in enumerate(mask.bool()):
        alone = multimer_iptm(tm[place][kept][:, kept], chains[place][kept].tolist())
        assert iptm(tm, mask, chains)[place].item() == pytest.approx(alone, abs=1e-12)
        error = tm[place][kept][:, kept]
        between = chains[place][kept].unsqueeze(1) != chains[place][kept]
        wanted = error[between].mean()
        assert (interchain_error(tm, mask, chains)[place] - wanted).abs() <= TOLERANCE


def test_iptm_of_two_chains_is_that_of_the_pair():
    chains = torch.tensor([[0] * 9 + [1] * 11, [0] * 10 + [1] * 5 + [0] * 5])
    mask = torch.ones(2, 20)
    mask[1, 15:] = 0
    tm = normal(2, 20, 20).sigmoid()
    found = chain_iptm(tm, mask, chains)
    torch.testing.assert_close(found[:, 0, 1], iptm(tm, mask, chains))
    assert torch.equal(found.isnan(), torch.eye(2, dtype=torch.bool).expand(2, 2, 2))
    three = chain_iptm(tm, mask, chains + (torch.arange(20) > 17))
    assert three.shape == (2, 3, 3)
    assert three[1, 2].isnan().all(), "its residues do not count"
    assert not three[0, 2, :2].isnan().any()


def test_one_chain_has_no_interface():
    tm, mask, chains = normal(1, 6, 6), torch.ones(1, 6), torch.zeros(1, 6, dtype=torch.int64)
    assert math.isnan(iptm(tm, mask, chains).item())
    assert math.isnan(interchain_error(tm, mask, chains).item())
    chains[0, 3:], mask[0, 3:] = 1, 0  # a second chain that does not count
    assert math.isnan(iptm(tm, mask, chains).item())


def test_plddt_is_the_peers_in_hundreds():
    logits = 3 * normal(2, 5, 37, 50)
    found = plddt(logits)
    assert found.shape == (2, 5, 37)
    assert (found - 100 * categorical_lddt(logits, bins=50)).abs().max() <= 1e-10
    sure = torch.full((50,), -1e4)
    sure[-1] = 0
    assert plddt(sure).item() == pytest.approx(99.0, abs=1e-4)


def test_mean_plddt_is_of_alpha_carbons_that_count():
    by_atom = 100 * torch.rand(2, 6, 37, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0]])
    wanted = torch.stack([by_atom[0, :, 1].mean(), by_atom[1, [0, 2], 1].mean()])
    torch.testing.assert_close(mean_plddt(by_atom, mask), wanted)
