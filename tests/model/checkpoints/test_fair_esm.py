"""Original fair-esm checkpoints: files as published, compared with fair-esm's own loader."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import esm
import pytest
import torch
from torch import Tensor, nn

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmModel, EsmTokenizer
from esm_pipeline.errors import WeightsError
from esm_pipeline.model import resolve_checkpoint
from esm_pipeline.model.checkpoints.fair_esm import open_checkpoint
from tests.oracles.peers import MASK, TOLERANCE, batch, enliven, fair_esm1b, fair_esm2, max_abs

Content = dict[str, Any]
NAMES = {
    "ESM-2": "esm2_t3_1K_UR50D",
    "ESM-1b": "esm1b_t3_1K_UR50S",
    "ESM-1v": "esm1v_t3_1K_UR90S_1",
}
"""fair-esm's loader decides by the name of the file."""

SHAPE = {"encoder_layers": 3, "encoder_embed_dim": 48, "encoder_attention_heads": 4}
LENGTHS = [5, 60, 1]


def published(kind: str) -> tuple[Content, Content | None]:
    """A checkpoint and its contact regression with random weights, as the published files are.

    The weights lie under `encoder.sentence_encoder`, the head under `encoder`, its last layer tied;
    the rotary frequencies are those of training in float16.
    """
    peer = fair_esm2(torch.float32) if kind == "ESM-2" else fair_esm1b(torch.float32)
    state: dict[str, Tensor] = {}
    regression: dict[str, Tensor] = {}
    for key, tensor in peer.state_dict().items():
        if key.startswith("contact_head."):
            regression[key] = tensor
        elif key.startswith("emb_layer_norm_before.") and kind == "ESM-1v":
            continue
        elif key.startswith("lm_head."):
            state[f"encoder.{key}"] = tensor
        else:
            rounded = tensor.half() if key.endswith("inv_freq") else tensor
            state[f"encoder.sentence_encoder.{key}"] = rounded
    if kind == "ESM-2":
        given = argparse.Namespace(arch="esm2", token_dropout=True, **SHAPE)
        return {"cfg": {"model": given, "_name": None}, "model": state}, {"model": regression}
    given = argparse.Namespace(
        arch="roberta_large",
        encoder_ffn_embed_dim=192,
        max_positions=1024,
        token_dropout=True,
        dropout=0.1,
        **SHAPE,
    )
    content = {"args": given, "model": state}
    return content, {"model": regression} if kind == "ESM-1b" else None


def write(folder: Path, kind: str, change: Callable[[Content], None] | None = None) -> Path:
    """Write the published files of a model; `change` modifies the checkpoint first."""
    content, regression = published(kind)
    if change is not None:
        change(content)
    path = folder / f"{NAMES[kind]}.pt"
    torch.save(content, path)
    if regression is not None:
        torch.save(regression, folder / f"{NAMES[kind]}-contact-regression.pt")
    return path


def by_fair_esm(path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> nn.Module:
    """The model from fair-esm's own loader, which runs any code in a file."""
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: load(*a, **{**k, "weights_only": False}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the missing contact regression of ESM-1v
        model, _ = esm.pretrained.load_model_and_alphabet_local(str(path))
    monkeypatch.setattr(torch, "load", load)
    return model.to(dtype).eval()


def ours(path: Path, dtype: torch.dtype = torch.float32) -> EsmForMaskedLM:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*contact_head\.regression")
        model: EsmForMaskedLM = EsmForMaskedLM.from_pretrained(path, dtype=dtype)
    return model


def differences(model: EsmForMaskedLM, peer: nn.Module) -> dict[str, float]:
    """Largest differences of logits, representations and contacts over real tokens."""
    tokens, mask = batch(LENGTHS, masked=0.2)
    assert (tokens == MASK).any()
    with torch.no_grad():
        theirs = peer(tokens, repr_layers=[0, 1, 3], return_contacts=True)
        found = model(tokens, output_hidden_states=True)
        contacts = model.predict_contacts(tokens)
    states = {
        f"layer {layer}": max_abs(
            found.hidden_states[layer], theirs["representations"][layer], mask
        )
        for layer in (0, 1, 3)
    }
    pairs = mask[:, 2:, None] * mask[:, None, 2:]
    return {
        "logits": max_abs(found.logits, theirs["logits"], mask),
        "contacts": max_abs(contacts, theirs["contacts"], pairs),
        **states,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", NAMES)
def test_as_fair_esm_loads_it(
    kind: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, kind)
    peer = by_fair_esm(path, monkeypatch, dtype)
    model = ours(path, dtype)
    if kind == "ESM-1v":  # its regression is random there too
        model.esm.contact_head.regression.load_state_dict(peer.contact_head.regression.state_dict())
    found = differences(model, peer)
    assert max(found.values()) <= TOLERANCE, found


def drop_dropout(content: Content) -> None:
    (content["cfg"]["model"] if "cfg" in content else content["args"]).token_dropout = False


def exact_frequencies(content: Content) -> None:
    for key in [key for key in content["model"] if key.endswith("inv_freq")]:
        del content["model"][key]


def swap(one: str, other: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        state = content["model"]
        keys = [key for key in state if one in key]
        assert keys
        for key in keys:
            partner = key.replace(one, other)
            state[key], state[partner] = state[partner], state[key]

    return change


@pytest.mark.parametrize(
    ("kind", "mistake"),
    [
        ("ESM-2", drop_dropout),
        ("ESM-1b", drop_dropout),
        ("ESM-2", exact_frequencies),
        ("ESM-1v", swap("q_proj", "k_proj")),
        ("ESM-1b", swap("self_attn_layer_norm", "final_layer_norm")),
        ("ESM-1b", swap("emb_layer_norm_before", "emb_layer_norm_after")),
    ],
)
def test_twin_fails(
    kind: str,
    mistake: Callable[[Content], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = by_fair_esm(write(tmp_path, kind), monkeypatch, torch.float32)
    found = differences(ours(write(tmp_path, kind, mistake)), peer)
    assert found["logits"] > 20 * TOLERANCE, found


@pytest.mark.parametrize("tied", [True, False], ids=["one storage", "two"])
def test_the_row_of_the_mask(tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fair-esm sets it to zero in the embedding, then overwrites that by the head's last layer."""

    def untie(content: Content) -> None:
        if not tied:
            head = content["model"]["encoder.lm_head.weight"]
            content["model"]["encoder.lm_head.weight"] = head.clone()

    path = write(tmp_path, "ESM-1b", untie)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    model, peer = ours(path), by_fair_esm(path, monkeypatch, torch.float32)
    rows = model.get_input_embeddings().weight
    assert torch.equal(rows, peer.embed_tokens.weight)
    assert bool((rows[MASK] == 0).all()) is tied
    assert max(differences(model, peer).values()) <= TOLERANCE
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


@pytest.mark.parametrize("kind", NAMES)
def test_settings_and_tokens(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    config = EsmConfig.from_pretrained(path)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (3, 48, 4)
    assert config.intermediate_size == 192
    assert config.max_residues == (None if kind == "ESM-2" else 1022)
    assert config.emb_layer_norm_before is (kind == "ESM-1b")
    assert EsmConfig.from_pretrained(path, token_dropout=False).token_dropout is False
    tokenizer = EsmTokenizer.from_pretrained(path)
    alphabet = esm.Alphabet.from_architecture("ESM-1b")
    assert tokenizer.get_vocab() == alphabet.to_dict()
    text = "MKTAYIAKQRX<mask>-.BUZO"
    assert tokenizer(text)["input_ids"] == [
        alphabet.cls_idx,
        *alphabet.encode(text),
        alphabet.eos_idx,
    ]


def test_contact_regression_beside_it_or_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path, "ESM-2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, info = EsmForMaskedLM.from_pretrained(path, output_loading_info=True)
    assert info["missing_keys"] == []
    checkpoint = resolve_checkpoint(str(path))
    assert [file.name for file in checkpoint.weight_files] == [
        f"{NAMES['ESM-2']}.pt",
        f"{NAMES['ESM-2']}-contact-regression.pt",
    ]
    with_regression = checkpoint.weights_sha256()
    checkpoint.weight_files[1].unlink()
    with pytest.warns(UserWarning, match=r"contact_head\.regression\.bias.*contact-regression\.pt"):
        bare, info = EsmForMaskedLM.from_pretrained(path, output_loading_info=True)
    assert sorted(info["missing_keys"]) == [
        "esm.contact_head.regression.bias",
        "esm.contact_head.regression.weight",
    ]
    assert resolve_checkpoint(str(path)).weights_sha256() != with_regression
    tokens, _ = batch([9])
    assert torch.equal(bare(tokens).logits, whole(tokens).logits)
    assert torch.isfinite(bare.predict_contacts(tokens)).all()


def test_half_precision_files_and_saving(tmp_path: Path) -> None:
    """The published 3B and 15B are in float16; what is saved can be loaded like any folder."""

    def halve(content: Content) -> None:
        content["model"] = {key: tensor.half() for key, tensor in content["model"].items()}

    path = write(tmp_path, "ESM-2", halve)
    model = ours(path)
    assert model.dtype == torch.float32
    assert ours(path, "auto").dtype == torch.float16
    model.save_pretrained(tmp_path / "saved")
    again = EsmForMaskedLM.from_pretrained(tmp_path / "saved")
    tokens, _ = batch([40])
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    bare = EsmModel.from_pretrained(path, add_pooling_layer=False)
    assert torch.equal(bare(tokens).last_hidden_state, model.esm(tokens).last_hidden_state)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.marker, "w")


def put_code(marker: Path) -> dict[str, Callable[[Content], None]]:
    bad = Malicious(marker)
    return {
        "weights": lambda content: content["model"].update(evil=bad),
        "beside": lambda content: content.update(evil=bad),
        "arguments": lambda content: vars(content["args"]).update(evil=bad),
    }


@pytest.mark.parametrize("place", ["weights", "beside", "arguments"])
def test_code_is_refused_and_never_runs(place: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = write(tmp_path, "ESM-1b", put_code(marker)[place])
    for load in (EsmForMaskedLM.from_pretrained, EsmConfig.from_pretrained):
        with pytest.raises(WeightsError, match="holds pickled code, not only tensors, and is ref"):
            load(path)
    assert not marker.exists()
    with open(path, "rb") as handle, pytest.raises(Exception, match=r".*"):
        torch.load(handle, weights_only=False)["nothing"]
    assert marker.exists()  # the file is as harmful as intended


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(fair_esm2(torch.float32), path)
    with pytest.raises(WeightsError, match="holds pickled code"):
        EsmForMaskedLM.from_pretrained(path)


def without(name: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        del vars(content["cfg"]["model"])[name]

    return change


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "ESM-1b",
            lambda c: setattr(c["args"], "arch", "protein_bert_base"),
            "'protein_bert_base'",
        ),
        (
            "ESM-1b",
            lambda c: setattr(c["args"], "arch", "msa_transformer"),
            "use ESM-1b, ESM-1v or",
        ),
        ("ESM-1b", lambda c: c.pop("args"), "no training arguments"),
        ("ESM-2", lambda c: c.pop("model"), "no 'model' with named tensors"),
        ("ESM-2", lambda c: c.update(model=[1]), "no 'model' with named tensors"),
        ("ESM-2", without("encoder_layers"), "no usable 'layers'"),
        (
            "ESM-2",
            lambda c: setattr(c["cfg"]["model"], "encoder_layers", 4),
            "layers is 4, .* have 3",
        ),
        (
            "ESM-2",
            lambda c: setattr(c["cfg"]["model"], "encoder_layers", 10**9),
            "num_hidden_layers is 1000000000, but the weights have 3 of them",
        ),
        (
            "ESM-1b",
            lambda c: setattr(c["args"], "embed_dim", 10**15),
            "hidden_size is 1000000000000000, but the weights have 48",
        ),
        ("ESM-1b", lambda c: setattr(c["args"], "arch", "x" * 10**6), "its architecture is 'xxx"),
        (
            "ESM-2",
            lambda c: c["model"].update(wide=torch.zeros(2).expand(10**6, 2)),
            r"a tensor of shape \(1000000, 2\) in it has only 2 items",
        ),
        (
            "ESM-2",
            lambda c: setattr(c["cfg"]["model"], "encoder_layers", 2),
            r"\(1, 12\), the",
        ),
        (
            "ESM-2",
            lambda c: setattr(c["cfg"]["model"], "encoder_embed_dim", 52),
            "size is 52, .* have 48",
        ),
        ("ESM-1b", lambda c: setattr(c["args"], "max_positions", 512), "is 514, .* have 1026"),
    ],
)
def test_files_that_cannot_be_used(
    kind: str, change: Callable[[Content], None], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, kind, change)
    with pytest.raises(WeightsError, match=message) as caught:
        ours(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path, "ESM-2")
    whole = path.read_bytes()
    for damaged in (whole[:-2000], whole[: len(whole) // 2], b"", b"x" * 50, pickle.dumps({})):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=str(path)):
            ours(path)


def test_a_pickle_damaged_anywhere_gives_one_line(tmp_path: Path) -> None:
    """PyTorch's reader may raise any error for a damaged pickle."""
    path = write(tmp_path, "ESM-1b")
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
    begin, size = pickled.header_offset + 60, pickled.file_size - 60
    chance, messages = random.Random(0), []
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[begin + chance.randrange(size)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            open_checkpoint(path)
            EsmConfig.from_pretrained(path)
        except WeightsError as error:
            messages.append(str(error))
    assert 30 < len(messages) < 150
    assert all(str(path) in line and "\n" not in line for line in messages)


def test_a_revision_is_not_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, "ESM-2")
    with pytest.raises(WeightsError, match="only hub models have revisions"):
        resolve_checkpoint(str(path), revision="main")
    with pytest.warns(UserWarning, match="is on this disk, so that revision 'v2' is ignored"):
        EsmModel.from_pretrained(path, revision="v2")
    with pytest.raises(WeightsError, match="no such folder or file"):
        EsmModel.from_pretrained(tmp_path / "absent.pt")


def test_enlivened_peers_use_every_weight(tmp_path: Path) -> None:
    """A guard: with constant weights, a swap of two would not be noticed."""
    peer = enliven(fair_esm2(torch.float32))
    assert all(float(p.detach().std()) > 0.01 for p in peer.parameters() if p.numel() > 1)
