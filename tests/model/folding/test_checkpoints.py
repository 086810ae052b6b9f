"""Folding checkpoints: transformers' load here and ours there, whole, in shards, in 16 bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmForProteinFolding, EsmModel
from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.model.checkpoints.keys import IGNORED, modern_key
from esm_pipeline.model.checkpoints.weights import reference_state
from tests.oracles.folding_peers import all_double, folding_models, proteins, settings
from tests.oracles.peers import enliven, transformers_peer

OPENFOLD = {
    "trunk.structure_module.default_frames": (21, 8, 4, 4),
    "trunk.structure_module.group_idx": (21, 14),
    "trunk.structure_module.atom_mask": (21, 14),
    "trunk.structure_module.lit_positions": (21, 14, 3),
}
"""Tables of residues that OpenFold's structure module saves."""


@pytest.fixture(scope="module")
def peer() -> nn.Module:
    return enliven(transformers.EsmForProteinFolding(transformers.EsmConfig(**settings())))


@pytest.fixture
def saved(peer: nn.Module, tmp_path: Path) -> Path:
    peer.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def tensors(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    """Put tensors into a checkpoint, `__` for a dot, or take them out."""
    kept = tensors(folder)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        kept.pop(key, None)
        if tensor is not None:
            kept[key] = tensor
    safetensors.torch.save_file(kept, folder / "model.safetensors")


def same_weights(found: nn.Module, wanted: nn.Module) -> int:
    """Compare every parameter; how many there are."""
    own, others = dict(found.named_parameters()), dict(wanted.named_parameters())
    assert own.keys() == others.keys()
    for name, parameter in own.items():
        assert torch.equal(parameter, others[name]), name
    return len(own)


def folds_the_same(ours: EsmForProteinFolding, theirs: nn.Module) -> float:
    """Å between coordinates, in float64."""
    aatype, mask = proteins([9])
    with torch.no_grad():
        found = ours.double()(aatype, mask, num_recycles=1)
        with all_double():
            wanted = theirs.double()(aatype, mask, num_recycles=1)
    return float((found.positions - wanted.positions).abs().max())


def test_a_checkpoint_of_transformers_loads_whole(peer: nn.Module, saved: Path):
    ours, info = EsmForProteinFolding.from_pretrained(saved, output_loading_info=True)
    assert info["missing_keys"] == []
    assert info["unexpected_keys"] == []
    assert same_weights(ours, peer) > 200
    assert not ours.training
    learning = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, p in peer.named_parameters() if p.requires_grad}
    assert not any(name.startswith("esm.") for name in learning)


def test_ours_loads_in_transformers_whole(tmp_path: Path):
    _, ours = folding_models(torch.float32)
    ours.save_pretrained(tmp_path)
    theirs, info = transformers.EsmForProteinFolding.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert same_weights(theirs, ours) > 200
    assert theirs.config.esmfold_config.trunk.structure_module.num_blocks == 3
    assert torch.equal(theirs.af2_to_esm, ours.af2_to_esm)
    assert folds_the_same(ours, theirs.eval()) <= 1e-11


def test_keys_are_those_of_the_published_checkpoint(saved: Path, tmp_path: Path):
    """4.37.2's: frequencies of each layer, unused positions, and the residues' tokens."""
    _, ours = folding_models(torch.float32)
    ours.save_pretrained(tmp_path / "ours")
    own = tensors(tmp_path / "ours")
    theirs = {modern_key(key): tensor for key, tensor in tensors(saved).items()}
    frequencies = {
        f"esm.encoder.layer.{n}.attention.self.rotary_embeddings.inv_freq" for n in range(3)
    }
    positions = {"esm.embeddings.position_embeddings.weight"}
    star = "esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq"
    assert own.keys() - theirs.keys() == frequencies | positions
    assert theirs.keys() - own.keys() <= {star}
    for key in own.keys() & theirs.keys():
        assert own[key].shape == theirs[key].shape, key
        assert own[key].dtype == theirs[key].dtype, key
    assert torch.equal(own["af2_to_esm"], theirs["af2_to_esm"])


def test_what_is_saved_loads_again(tmp_path: Path):
    _, ours = folding_models(torch.float32)
    ours.save_pretrained(tmp_path)
    assert same_weights(EsmForProteinFolding.from_pretrained(tmp_path), ours) > 200
    bare = EsmForProteinFolding(ours.config)
    info = bare.load_state_dict(reference_state(ours))
    assert same_weights(bare, ours) > 200
    assert (info.missing_keys, info.unexpected_keys) == ([], [])


def test_shards(tmp_path: Path, peer: nn.Module, saved: Path):
    _, ours = folding_models(torch.float32)
    ours.save_pretrained(tmp_path / "ours", max_shard_size="100KB")
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 3
    theirs, info = transformers.EsmForProteinFolding.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values()), info
    same_weights(theirs, ours)
    peer.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 3
    same_weights(EsmForProteinFolding.from_pretrained(tmp_path / "parts"), peer)


def test_tables_of_openfold_are_left_out(peer: nn.Module, saved: Path):
    assert all(IGNORED.fullmatch(key) for key in OPENFOLD)
    assert not IGNORED.fullmatch("trunk.structure_module.ipa.head_weights")
    extra = {name.replace(".", "__"): torch.ones(shape) for name, shape in OPENFOLD.items()}
    rewrite(saved, **extra)
    same_weights(EsmForProteinFolding.from_pretrained(saved), peer)


def test_without_the_table_of_residues(peer: nn.Module, saved: Path):
    rewrite(saved, af2_to_esm=None)
    same_weights(EsmForProteinFolding.from_pretrained(saved), peer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision(peer: nn.Module, saved: Path, dtype: torch.dtype):
    ours = EsmForProteinFolding.from_pretrained(saved, dtype=dtype)
    assert {p.dtype for p in ours.parameters()} == {dtype}
    wanted = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, wanted[name].to(dtype)), name
    output = ours.infer("MKTAY", num_recycles=0)
    assert output.positions.isfinite().all()


def test_a_checkpoint_in_16_bits(peer: nn.Module, saved: Path):
    kept = {
        key: value.bfloat16() if value.is_floating_point() else value
        for key, value in tensors(saved).items()
    }
    safetensors.torch.save_file(kept, saved / "model.safetensors")
    auto = EsmForProteinFolding.from_pretrained(saved, dtype="auto")
    assert {p.dtype for p in auto.parameters()} == {torch.bfloat16}
    plain = EsmForProteinFolding.from_pretrained(saved)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}


def test_headers_alone(saved: Path):
    ours = EsmForProteinFolding.from_pretrained(saved, device="meta")
    assert {p.device.type for p in ours.parameters()} == {"meta"}
    rewrite(saved, trunk__blocks__1__tri_mul_in__linear_z__bias=None)
    with pytest.raises(WeightsError, match=r"trunk\.blocks\.1\.tri_mul_in\.linear_z\.bias"):
        EsmForProteinFolding.from_pretrained(saved, device="meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trunk__recycle_disto__weight": None}, r"'?trunk\.recycle_disto\.weight"),
        ({"esm__encoder__layer__0__output__dense__bias": None}, r"esm\.encoder\.layer\.0\.output"),
        ({"trunk__recycle_disto__weight": torch.ones(15, 17)}, r"shape \(15, 17\)"),
        ({"trunk__blocks__9__other__weight": torch.ones(3)}, r"'trunk\.blocks\.9\.other\.weight'"),
    ],
    ids=["trunk", "language model", "shape", "surplus"],
)
def test_weights_that_do_not_fit_are_reported(
    saved: Path, change: dict[str, Tensor | None], message: str
):
    rewrite(saved, **change)
    with pytest.raises(WeightsError, match=message):
        EsmForProteinFolding.from_pretrained(saved)


def test_a_model_that_does_not_fold_is_told(tmp_path: Path):
    transformers_peer(torch.float32).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="this is not a folding model"):
        EsmForProteinFolding.from_pretrained(tmp_path)


@pytest.mark.parametrize("other", [EsmModel, EsmForMaskedLM])
def test_another_class_says_which_to_use(saved: Path, other: type):
    with pytest.raises(WeightsError, match="load it with EsmForProteinFolding"):
        other.from_pretrained(saved)


def test_a_folding_checkpoint_is_known_by_its_weights(saved: Path, tmp_path: Path):
    """Its `lm_head` is not that of a masked language model."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    config = json.loads((saved / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="load it with EsmForProteinFolding"):
        EsmForMaskedLM.from_pretrained(tmp_path)


def test_a_config_that_says_it_folds_and_weights_that_do_not(saved: Path, tmp_path: Path):
    transformers_peer(torch.float32).save_pretrained(tmp_path)
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError):
        EsmForProteinFolding.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["esmfold_3B_v1.pt", "esmfold_structure_module_only_8M.pt"])
def test_a_file_of_fair_esm_says_what_to_use(tmp_path: Path, name: str):
    torch.save({"model": {}, "cfg": {}}, tmp_path / name)
    for load in (EsmForProteinFolding.from_pretrained, EsmConfig.from_pretrained):
        with pytest.raises(WeightsError, match="use facebook/esmfold_v1, which is complete"):
            load(tmp_path / name)


def test_a_table_of_other_residues_is_not_believed(peer: nn.Module, saved: Path):
    """The tokens of residues follow from the vocabulary, whatever the file's table says."""
    rewrite(saved, af2_to_esm=torch.zeros(22, dtype=torch.int64))
    ours = EsmForProteinFolding.from_pretrained(saved)
    assert torch.equal(ours.af2_to_esm, peer.af2_to_esm)


def test_new_weights_start_as_alphafolds():
    torch.manual_seed(0)
    ours = EsmForProteinFolding(EsmConfig(**settings()))
    block = ours.trunk.blocks[0]
    assert (block.tri_mul_out.linear_z.weight == 0).all()
    assert (block.tri_mul_out.linear_g.bias == 1).all()
    assert (block.seq_attention.o_proj.weight == 0).all()
    assert (ours.trunk.recycle_disto.weight[0] == 0).all()
    assert (ours.trunk.recycle_disto.weight[1:] != 0).any()
    assert (ours.embedding.weight[0] == 0).all()
    spread = float(block.tri_mul_out.linear_a_p.weight.detach().std())
    assert spread == pytest.approx(16**-0.5, rel=0.2)
    assert (ours.esm_s_combine == 0).all()


def test_an_optimized_model_is_not_saved(tmp_path: Path):
    from esm_pipeline import optimize_for_inference

    fast = optimize_for_inference(EsmForProteinFolding(EsmConfig(**settings())))
    with pytest.raises(InputError, match="save the original"):
        fast.save_pretrained(tmp_path)


def test_names_and_shapes_at_the_published_size():
    """facebook/esmfold_v1: a 3B language model and 48 blocks; the defaults of the folding part."""
    given = {
        **settings(),
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 40,
        "intermediate_size": 10240,
        "esmfold_config": {"fp16_esm": False},
    }
    with torch.device("meta"):
        peer = transformers.EsmForProteinFolding(transformers.EsmConfig(**given))
        ours = EsmForProteinFolding(EsmConfig(**given))
    theirs = {name: parameter.shape for name, parameter in peer.named_parameters()}
    assert {name: parameter.shape for name, parameter in ours.named_parameters()} == theirs
    assert sum(shape.numel() for shape in theirs.values()) > 3.5e9
