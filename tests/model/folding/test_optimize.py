"""The folding model that `optimize_for_inference` makes folds the same."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esm_pipeline import EsmConfig, EsmForProteinFolding, optimize_for_inference
from esm_pipeline.errors import InputError
from esm_pipeline.model import linears
from esm_pipeline.model.folding.demo import LANGUAGE_MODEL, TRUNK
from esm_pipeline.model.folding.triangle import work_buffer
from esm_pipeline.model.folding.trunk import ResidueMLP
from esm_pipeline.model.inference import optimize
from tests.oracles.peers import enliven

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "MAGC:HHW"]
FIELDS = ("positions", "s_s", "s_z", "plddt", "ptm_logits")


@pytest.fixture
def model() -> EsmForProteinFolding:
    folding = {"lddt_head_hid_dim": 16, "trunk": TRUNK}
    config = EsmConfig(is_folding_model=True, esmfold_config=folding, **LANGUAGE_MODEL)
    found = EsmForProteinFolding(config)
    enliven(found)
    return found


def differences(
    fast: EsmForProteinFolding,
    model: EsmForProteinFolding,
    sequences: str | Sequence[str] = SEQUENCES,
    num_recycles: int = 1,
) -> dict[str, float]:
    """max-abs over the values, relative to the largest of them, of each field."""
    found, expected = (one.infer(sequences, num_recycles=num_recycles) for one in (fast, model))
    return {
        name: float((found[name] - expected[name]).abs().max() / expected[name].abs().max())
        for name in FIELDS
    }


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "fallback"])
def test_same_structures(
    model: EsmForProteinFolding, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "can_pack", lambda dtype: packs and linears.can_pack(dtype))
    fast = optimize_for_inference(model)
    assert type(fast) is EsmForProteinFolding
    assert fast.optimized
    packed = [m for m in fast.trunk.modules() if isinstance(m, linears.PackedLinear)]
    per_block = 2 * 4 + 2 * 3 + 3 + 2 * 2
    assert len(packed) == (per_block * TRUNK["num_blocks"] if packs else 0)
    assert max(differences(fast, model).values()) <= 1e-5


@pytest.mark.parametrize("part", ["fused_p", "fused_g", "linear_g"])
def test_a_wrong_layer_is_seen(model: EsmForProteinFolding, part: str) -> None:
    fast = optimize_for_inference(model)
    layer = getattr(fast.trunk.blocks[0].tri_mul_in, part)
    layer.forward = lambda x: type(layer).forward(layer, x) + 0.01
    assert max(differences(fast, model).values()) > 1e-4


def test_only_the_language_model_is_in_16_bits(model: EsmForProteinFolding) -> None:
    fast = optimize_for_inference(model, torch.bfloat16)
    assert fast.esm.dtype == torch.bfloat16
    others = {name: p.dtype for name, p in fast.named_parameters() if not name.startswith("esm.")}
    assert set(others.values()) == {torch.float32}
    found, expected = (one.infer(SEQUENCES, num_recycles=0) for one in (fast, model))
    assert found.positions.dtype == torch.float32
    assert 0 < (found.s_s - expected.s_s).abs().max() <= 0.1 * expected.s_s.abs().max()
    assert model.esm.dtype == torch.float32  # the original is untouched


def test_layers_that_are_fused_are_gone(model: EsmForProteinFolding) -> None:
    fast = optimize_for_inference(model)
    left = {name.rpartition(".")[2] for name, _ in fast.trunk.blocks.named_modules()}
    assert not left & {"linear_a_p", "linear_b_g", "linear_q", "linear_v"}
    assert isinstance(fast.trunk.blocks[0].mlp_pair, ResidueMLP)
    assert all(hasattr(block.tri_mul_in, "linear_a_p") for block in model.trunk.blocks)


@pytest.mark.skipif(not linears.can_pack(torch.float32), reason="no packed layers here")
def test_weights_go_when_they_are_packed() -> None:
    """So that a model of gigabytes is not in memory twice."""
    alive = []

    def fresh() -> EsmForProteinFolding:
        folding = {"lddt_head_hid_dim": 16, "trunk": TRUNK}
        made = EsmForProteinFolding(
            EsmConfig(is_folding_model=True, esmfold_config=folding, **LANGUAGE_MODEL)
        )
        alive.append(weakref.ref(made.trunk.blocks[0].tri_att_end.mha.linear_o.weight))
        alive.append(weakref.ref(made.esm.encoder.layers[0].output.dense.weight))
        return made

    fast = optimize_for_inference(fresh())
    assert [weight() for weight in alive] == [None, None]
    assert fast.infer("MKV").positions.isfinite().all()


# --- updates of pairs in 16 bits ---


def narrow_differences(fast: EsmForProteinFolding, model: EsmForProteinFolding) -> dict[str, float]:
    """The same, of each sequence on its own, as padding belongs to no sequence, and of one pass:
    behind it, residues a little further apart may be in another bin of distance, and z is all
    different."""
    found = [differences(fast, model, sequence, 0) for sequence in SEQUENCES]
    return {name: max(one[name] for one in found) for name in FIELDS}


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "fallback"])
def test_updates_in_16_bits_are_near(
    model: EsmForProteinFolding, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimize, "can_pack", lambda dtype: packs and linears.can_pack(dtype))
    fast = optimize_for_inference(model, trunk_dtype=torch.bfloat16)
    found = narrow_differences(fast, model)
    assert 1e-5 < found["s_z"] <= 0.02
    assert max(found.values()) <= 0.03
    output = fast.infer(SEQUENCES, num_recycles=0)
    assert {output[name].dtype for name in FIELDS} == {torch.float32}
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_chunks_change_nothing_in_16_bits(
    model: EsmForProteinFolding, chunk_size: int | None
) -> None:
    fast = optimize_for_inference(model, trunk_dtype=torch.bfloat16)
    whole, some = (
        fast.infer(SEQUENCES, num_recycles=0, chunk_size=size).s_z for size in (64, chunk_size)
    )
    assert (whole - some).abs().max() <= 0.02 * whole.abs().max()


def test_what_is_added_up_is_not_in_16_bits(model: EsmForProteinFolding) -> None:
    """And what updates s, of which there is little."""
    block = optimize_for_inference(model, trunk_dtype=torch.bfloat16).trunk.blocks[0]
    narrow = {
        name.rpartition(".")[0] for name, p in block.named_parameters() if p.dtype != torch.float32
    }
    assert all(name.startswith(("tri_", "mlp_pair.")) for name in narrow)
    assert not {"tri_att_start.linear", "tri_att_start.layer_norm.norm"} & narrow
    seen = {}
    for name in ("layer_norm_in", "layer_norm_out"):
        norm = getattr(block.tri_mul_in, name)
        norm.register_forward_hook(lambda m, x, y, name=name: seen.update({name: (x[0], y)}))
    with torch.no_grad():
        block.tri_mul_in(torch.randn(1, 6, 6, TRUNK["pairwise_state_dim"]), None, 2)
    given, normed = seen["layer_norm_in"]
    assert (given.dtype, normed.dtype) == (torch.float32, torch.bfloat16)
    assert seen["layer_norm_out"][0].dtype == torch.bfloat16  # the products


def test_scores_and_their_biases_are_not_in_16_bits(
    model: EsmForProteinFolding, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, right = set(), F.scaled_dot_product_attention
    fast = optimize_for_inference(model, trunk_dtype=torch.bfloat16)
    block = fast.trunk.blocks[0]

    def spy(*given: Tensor) -> Tensor:
        seen.update(x.dtype for x in given)
        return right(*given)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    z = torch.randn(1, 6, 6, TRUNK["pairwise_state_dim"])
    buffer = work_buffer(z, 2 * z.shape[-1], torch.bfloat16)
    with torch.no_grad():
        block.tri_att_end(z, None, 2, None, buffer)
    assert seen == {torch.float32}


@pytest.mark.parametrize("part", ["linear_g", "linear_z"])
def test_a_wrong_layer_in_16_bits_is_seen(model: EsmForProteinFolding, part: str) -> None:
    fast = optimize_for_inference(model, trunk_dtype=torch.bfloat16)
    layer = getattr(fast.trunk.blocks[0].tri_mul_in, part)
    layer.forward = lambda x: type(layer).forward(layer, x) * 0.5
    assert narrow_differences(fast, model)["s_z"] > 0.04


def test_another_precision_of_the_trunk_is_refused(model: EsmForProteinFolding) -> None:
    with pytest.raises(InputError, match=r"trunk_dtype torch.float16 is not float32 or bfloat16"):
        optimize_for_inference(model, trunk_dtype=torch.float16)
