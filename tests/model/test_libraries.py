"""Our models in the hands of peft, accelerate and PyTorch's quantization, against the reference.

Modules are called, never read past: what these libraries put around a module is what runs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import (
    cpu_offload,
    disk_offload,
    infer_auto_device_map,
    load_checkpoint_and_dispatch,
)
from peft import (
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import esm_pipeline
from esm_pipeline import (
    EsmConfig,
    EsmForMaskedLM,
    EsmForProteinFolding,
    EsmForSequenceClassification,
    iter_packed,
    optimize_for_inference,
)
from esm_pipeline.errors import InputError
from esm_pipeline.model.rotary import rotary_frequencies
from tests.oracles.folding_peers import settings as folding_settings
from tests.oracles.peers import ESM1B, ESM2, SMALL, batch, enliven, max_abs

KINDS = {"ESM-2": ESM2, "ESM-1b": ESM1B}
STEADY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TOLERANCE = 2e-5
"""Of logits in float32, which are up to 10."""

INPUTS, MASK = batch([9, 30, 2])


def pair(name: str = "EsmForMaskedLM", kind: str = "ESM-2", **more: Any) -> list[nn.Module]:
    """The reference's model and ours with its weights, in evaluation mode, without dropout."""
    given = {**SMALL, **KINDS[kind], **STEADY, **more}
    peer = getattr(transformers, name)(transformers.EsmConfig(**given, attn_implementation="eager"))
    enliven(peer)
    ours = getattr(esm_pipeline, name)(EsmConfig(**given)).eval()
    ours.load_state_dict(peer.state_dict())
    return [peer, ours]


def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=INPUTS, attention_mask=MASK).logits
    return found


def seen(found: Tensor) -> Tensor | None:
    return MASK if found.ndim == 3 and found.shape[1] == MASK.shape[1] else None


# accelerate


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", ["cpu", "disk"])
@pytest.mark.parametrize(
    "name", ["EsmForMaskedLM", "EsmForSequenceClassification", "EsmForTokenClassification"]
)
def test_offloaded_weights_give_the_same(name: str, to: str, kind: str, tmp_path: Path) -> None:
    _, ours = pair(name, kind)
    expected = logits(ours)
    if to == "cpu":
        cpu_offload(ours, execution_device=torch.device("cpu"))
    else:
        disk_offload(ours, str(tmp_path), execution_device=torch.device("cpu"))
    assert any(parameter.is_meta for parameter in ours.parameters())
    for _ in range(2):
        assert torch.equal(logits(ours), expected)


@pytest.mark.parametrize("position_type", ["rotary", "relative_key", "relative_key_query"])
def test_offloaded_maps_and_contacts(position_type: str) -> None:
    config = EsmConfig(**{**SMALL, **ESM2, "position_embedding_type": position_type})
    ours = enliven(EsmForMaskedLM(config))
    contacts = ours.predict_contacts(INPUTS, MASK)
    maps = ours(INPUTS, MASK, output_attentions=True).attentions
    cpu_offload(ours, execution_device=torch.device("cpu"))
    assert max_abs(ours.predict_contacts(INPUTS, MASK), contacts) <= 1e-6
    found = ours(INPUTS, MASK, output_attentions=True).attentions
    assert all(torch.equal(a, b) for a, b in zip(found, maps, strict=True))


def test_an_offloaded_folding_model() -> None:
    torch.manual_seed(0)
    ours = enliven(EsmForProteinFolding(EsmConfig(**folding_settings()))).eval()
    residues = torch.randint(0, 20, (1, 9))
    with torch.no_grad():
        expected = ours(residues, num_recycles=1)
        cpu_offload(ours, execution_device=torch.device("cpu"))
        found = ours(residues, num_recycles=1)
    assert max_abs(found.positions, expected.positions) <= 1e-3
    assert max_abs(found.plddt, expected.plddt) <= 1e-3


def saved_by_4(peer: nn.Module, folder: Path) -> None:
    """What transformers 4 writes: today's names, no tied weight, frequencies in each layer."""
    state = {k: p.clone() for k, p in peer.state_dict().items() if k != "lm_head.decoder.weight"}
    state["esm.embeddings.position_ids"] = torch.arange(1026).unsqueeze(0)
    if peer.config.position_embedding_type == "rotary":
        for number in range(SMALL["num_hidden_layers"]):
            key = f"esm.encoder.layer.{number}.attention.self.rotary_embeddings.inv_freq"
            state[key] = rotary_frequencies(12)
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device_map", [None, {"": "cpu"}, "layers", "disk"])
@pytest.mark.parametrize("name", ["EsmForMaskedLM", "EsmForSequenceClassification"])
def test_saved_checkpoints_are_dispatched(
    name: str, device_map: Any, kind: str, tmp_path: Path
) -> None:
    peer, ours = pair(name, kind)
    saved_by_4(peer, tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    if device_map in ("layers", "disk"):
        head = "lm_head" if name == "EsmForMaskedLM" else "classifier"
        parts = ["embeddings", "contact_head", "encoder.emb_layer_norm_after"]
        parts += [f"encoder.layer.{number}" for number in range(SMALL["num_hidden_layers"])]
        to = dict.fromkeys([head, *(f"esm.{part}" for part in parts)], "cpu")
        device_map = to | ({"esm.encoder.layer.1": "disk"} if device_map == "disk" else {})
    for folder in ("theirs", "ours"):
        fresh = type(ours)(ours.config).eval()
        dispatched = load_checkpoint_and_dispatch(
            *(fresh, str(tmp_path / folder)),
            device_map=device_map,
            offload_folder=str(tmp_path / "offloaded"),
        )
        found = logits(dispatched)
        assert max_abs(found, logits(peer), seen(found)) <= TOLERANCE
        if name == "EsmForMaskedLM":
            assert fresh.lm_head.decoder.weight is fresh.get_input_embeddings().weight


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_transformers_5_saved_is_read(kind: str, tmp_path: Path) -> None:
    """Its files name norms as BERT's did (gamma, beta), and frequencies once, with a `*`."""
    peer, ours = pair("EsmForMaskedLM", kind)
    peer.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert any(key.endswith("LayerNorm.gamma") for key in state)
    fresh = EsmForMaskedLM(ours.config).eval()
    info = fresh.load_state_dict(state)
    assert (info.missing_keys, info.unexpected_keys) == ([], [])
    assert max_abs(logits(fresh), logits(peer), MASK) <= TOLERANCE


def test_frequencies_stay_as_they_are() -> None:
    """Half-precision models turn by the same angles; copies have their own."""
    _, ours = pair()
    before = ours.esm.encoder.frequencies.clone()
    assert torch.equal(copy.deepcopy(ours).half().esm.encoder.frequencies, before)
    fast = optimize_for_inference(ours, "bfloat16")
    fast.esm.encoder.frequencies = before * 2
    assert torch.equal(ours.esm.encoder.frequencies, before)
    assert torch.equal(fast.esm.encoder.frequencies, before * 2)


def test_distributed_data_parallel(tmp_path: Path) -> None:
    """Gradients of one process among one: two, by hand, were equal to the reference's to 1e-7."""
    _, ours = pair()
    labels = INPUTS.where(MASK == 1, -100)
    ours(INPUTS, attention_mask=MASK, labels=labels).loss.backward()
    expected = {k: p.grad.clone() for k, p in ours.named_parameters() if p.grad is not None}
    ours.zero_grad()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(ours, find_unused_parameters=True)
        wrapped(INPUTS, attention_mask=MASK, labels=labels).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(expected) > 40
    for key, gradient in expected.items():
        assert max_abs(ours.get_parameter(key).grad, gradient) <= 1e-6, key


def test_layers_are_not_split_between_devices() -> None:
    _, ours = pair()
    kinds = list(ours._no_split_modules)
    each = sum(p.numel() for p in ours.esm.encoder.layer[0].parameters()) * 4
    limits = {0: int(2.5 * each), "cpu": 10**9}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        places = infer_auto_device_map(ours, limits, no_split_module_classes=kinds)
    inner = [name for name in places if name.startswith("esm.encoder.layer.")]
    assert inner
    assert all(name.count(".") == 3 for name in inner), inner


def test_hooks_run_on_each_module_of_a_head() -> None:
    _, ours = pair()
    called = []
    for name, module in ours.lm_head.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    logits(ours)
    assert called == ["dense", "layer_norm", "decoder", ""]


# PyTorch


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["EsmForMaskedLM", "EsmForTokenClassification"])
def test_dynamic_quantization(name: str) -> None:
    """In 8 bits ours is as near to the reference in 8 bits as both are to float32, or nearer."""
    peer, ours = pair(name)
    whole = logits(peer)
    dynamic = torch.ao.quantization.quantize_dynamic
    found, theirs = (
        logits(dynamic(model, {nn.Linear}, dtype=torch.qint8)) for model in (ours, peer)
    )
    off = max_abs(theirs, whole, MASK)
    assert 0 < off < 0.2 * float(whole.detach().abs().max())
    assert max_abs(found, whole, MASK) <= 2 * off


@pytest.mark.parametrize("name", ["EsmForMaskedLM", "EsmForSequenceClassification"])
def test_precision_of_logits_under_autocast(name: str) -> None:
    """A bias after the product makes those of tokens float32, as in the reference."""
    peer, ours = pair(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, found = logits(peer), logits(ours)
    assert found.dtype == theirs.dtype
    assert (found.dtype == torch.float32) == (name == "EsmForMaskedLM")


def test_confidences_under_autocast_are_float32() -> None:
    torch.manual_seed(0)
    ours = enliven(EsmForProteinFolding(EsmConfig(**folding_settings()))).eval()
    residues = torch.randint(0, 20, (1, 9))
    with torch.no_grad():
        expected = ours(residues, num_recycles=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = ours(residues, num_recycles=0)
    for field in ("ptm", "plddt", "mean_plddt", "predicted_aligned_error", "positions"):
        assert found[field].dtype == torch.float32, field
    assert found.ptm.item() == pytest.approx(expected.ptm.item(), abs=0.01)


# peft

WIDE = ["query", "key", "value", "dense"]
ADAPTERS: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: LoraConfig(target_modules=WIDE, r=4),
    "LoRA, all but the head": lambda: LoraConfig(
        target_modules="all-linear", exclude_modules=["decoder"], r=4
    ),
    "DoRA": lambda: LoraConfig(target_modules=WIDE, r=4, use_dora=True),
    "PiSSA": lambda: LoraConfig(target_modules=WIDE, r=4, init_lora_weights="pissa"),
    "PiSSA, all but the head": lambda: LoraConfig(
        target_modules="all-linear", exclude_modules=["decoder"], r=4, init_lora_weights="pissa"
    ),
    "OLoRA": lambda: LoraConfig(target_modules=WIDE, r=4, init_lora_weights="olora"),
    "LoRA on the head": lambda: LoraConfig(target_modules=["decoder", "dense"], r=4),
    "IA3": lambda: IA3Config(target_modules=["key", "dense"], feedforward_modules=["dense"]),
}


def adapted(config: Callable[[], Any], name: str = "EsmForMaskedLM") -> list[nn.Module]:
    """Theirs and ours with the same adapters."""
    both = []
    for model in pair(name):
        torch.manual_seed(3)
        both.append(get_peft_model(model, config()))
    theirs = {key: p for key, p in both[0].named_parameters() if p.requires_grad}
    for key, parameter in both[1].named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(theirs.pop(key))
    assert not theirs
    return both


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_start_train_and_merge_as_the_references(kind: str) -> None:
    peer, ours = adapted(ADAPTERS[kind])
    plain = logits(pair()[1])
    assert max_abs(logits(ours.eval()), plain, MASK) <= 5e-5  # before any training
    found = []
    for model in (peer, ours):
        chosen = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(chosen, lr=0.05)
        for _ in range(3):
            labels = INPUTS.where(MASK == 1, -100)
            loss = model(input_ids=INPUTS, attention_mask=MASK, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append({k: p for k, p in model.named_parameters() if p.requires_grad})
    for key, parameter in found[1].items():
        assert (parameter.grad is None) == (found[0][key].grad is None), key
        assert max_abs(parameter, found[0][key]) <= 1e-4, key
    trained = [logits(model.eval()) for model in (peer, ours)]
    assert max_abs(trained[1], plain, MASK) > 1e-3
    assert max_abs(trained[1], trained[0], MASK) <= 2e-4
    if "head" not in kind or "but" in kind:
        assert max_abs(logits(ours.merge_and_unload()), trained[1], MASK) <= 1e-4


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_tied_head_whose_weight_an_adapter_changes_is_told(start: str) -> None:
    """peft leaves the head out on its own only for classes of Transformers alone."""
    _, ours = pair()
    config = LoraConfig(target_modules="all-linear", init_lora_weights=start, r=4)
    with pytest.raises(InputError, match=r"changed both.*exclude_modules=\['decoder'\]"):
        get_peft_model(ours, config)
    _, ours = pair()
    expected, tied = logits(ours), ours.get_output_embeddings()
    own = nn.Linear(tied.in_features, tied.out_features, bias=False)
    own.weight = nn.Parameter(tied.weight.detach().clone())
    ours.set_output_embeddings(own)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=start, r=4)
    assert max_abs(logits(get_peft_model(ours, config).eval()), expected, MASK) <= 5e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_on_a_tied_head_is_not_merged_into_the_embedding() -> None:
    _, ours = adapted(ADAPTERS["LoRA on the head"])
    ours.base_model.model.lm_head.decoder.lora_B.default.weight.data.fill_(0.1)
    with pytest.raises(InputError, match="changed both"):
        ours.merge_and_unload()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["EsmForSequenceClassification", "EsmForTokenClassification"])
def test_prompt_tuning(name: str) -> None:
    task = "SEQ_CLS" if "Sequence" in name else "TOKEN_CLS"
    peer, ours = adapted(lambda: PromptTuningConfig(task_type=task, num_virtual_tokens=4), name)
    theirs, found = (logits(model.eval()) for model in (peer, ours))
    assert found.shape == theirs.shape
    if found.ndim == 2:
        assert max_abs(found, theirs) <= TOLERANCE
    else:
        assert max_abs(found[:, -MASK.shape[1] :], theirs[:, -MASK.shape[1] :], MASK) <= TOLERANCE


def test_prefix_tuning_is_for_decoders() -> None:
    """Encoders have no cache to put prefixes in: the reference fails as well."""
    peer, ours = adapted(
        lambda: PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
        "EsmForSequenceClassification",
    )
    for model in (peer, ours):
        with pytest.raises(Exception):  # noqa: B017, PT011
            logits(model)


def test_adapters_of_a_folding_model_act() -> None:
    """Layers whose weight goes into a longer sum are called by unit vectors."""
    torch.manual_seed(0)
    ours = enliven(EsmForProteinFolding(EsmConfig(**folding_settings()))).eval()
    residues = torch.randint(0, 20, (1, 7))
    with torch.no_grad():
        plain = ours(residues, num_recycles=0)
        targets = ["o_proj", "linear"]
        model = get_peft_model(ours, LoraConfig(target_modules=targets, r=2)).eval()
        again = model(input_ids=residues, num_recycles=0)
        assert max_abs(again.s_z, plain.s_z) <= 1e-4
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
        found = model(input_ids=residues, num_recycles=0)
        assert max_abs(found.s_z, plain.s_z) > 1e-2
        merged = model.merge_and_unload()(residues, num_recycles=0)
        assert max_abs(merged.s_z, found.s_z) <= 1e-3


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("around", ["adapter", "hook", "offload", "parametrization"])
def test_what_fusing_would_lose_is_refused(around: str) -> None:
    _, ours = pair()
    layer = ours.esm.encoder.layer[1]
    if around == "adapter":
        get_peft_model(ours, LoraConfig(target_modules=["value"]))
    elif around == "hook":
        layer.intermediate.dense.register_forward_hook(lambda *_: None)
    elif around == "offload":
        cpu_offload(ours, execution_device=torch.device("cpu"))
    else:
        nn.utils.parametrizations.weight_norm(layer.output.dense)
    with pytest.raises(InputError, match=r"layer\.\d.* has an adapter or hook"):
        optimize_for_inference(ours)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_merged_model_is_optimized() -> None:
    ours = EsmForSequenceClassification(EsmConfig(**SMALL, **ESM2)).eval()
    merged = get_peft_model(ours, LoraConfig(target_modules=WIDE, r=4)).merge_and_unload()
    with torch.inference_mode():
        expected = logits(merged)
        assert max_abs(logits(optimize_for_inference(merged)), expected) <= 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_many_sequences_go_through_what_others_put_around_a_model() -> None:
    ours = EsmForSequenceClassification(EsmConfig(**SMALL, **ESM2)).eval()
    sequences = ["MKTAYIAKQR", "MKV", "MKTAYI"]
    expected = dict(iter_packed(ours, sequences))
    adapted = LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    for wrapped in (get_peft_model(copy.deepcopy(ours), adapted), torch.compile(ours)):
        found = dict(iter_packed(wrapped, sequences))
        assert found.keys() == expected.keys()
        assert all(max_abs(found[place], expected[place]) <= 1e-6 for place in expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("call", [lambda m: iter_packed(m, ["MKV"]), optimize_for_inference])
def test_trained_prompts_are_not_lost(call: Callable[[Any], Any]) -> None:
    prompts = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    ours = get_peft_model(EsmForSequenceClassification(EsmConfig(**SMALL, **ESM2)), prompts)
    with pytest.raises(InputError, match="trained prompts only works through its own call"):
        call(ours)
    with pytest.raises(InputError, match="Linear is not an ESM model"):
        call(nn.Linear(2, 2))
