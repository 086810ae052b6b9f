"""Copies of a model for inference: same class and call, linear layers in a faster form."""

from __future__ import annotations

import copy
import os
from typing import Any, TypeVar, cast

import torch
from torch import nn

from esm_pipeline.errors import InputError
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.config import EsmConfig, named_dtype
from esm_pipeline.model.folding.config import (
    EsmFoldConfig,
    StructureModuleConfig,
    TrunkConfig,
)
from esm_pipeline.model.folding.esmfold import EsmForProteinFolding
from esm_pipeline.model.folding.optimize import optimize_block
from esm_pipeline.model.folding.trunk import TrunkBlock
from esm_pipeline.model.inference.cpu_attention import CpuSelfAttention
from esm_pipeline.model.inference.finite import require_finite
from esm_pipeline.model.inference.int8 import can_quantize, find_ranges, quantize
from esm_pipeline.model.layer import EsmLayer, EsmSelfAttention
from esm_pipeline.model.linears import (
    FusedLinear,
    can_pack,
    frozen,
    is_plain_layer,
    pack_branch,
    pack_linear,
)
from esm_pipeline.model.module_utils import plain_model
from esm_pipeline.model.tokenizer.tokenizer import EsmTokenizer

M = TypeVar("M", bound=EsmPreTrainedModel)
T = TypeVar("T", bound=nn.Module)

CONFIGS = (EsmConfig, EsmFoldConfig, TrunkConfig, StructureModuleConfig)

KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Sizes of the caches in which oneDNN, and PyTorch around it, keep kernels made for one shape.

A batch uses two kernels for each of its lengths, in every layer; hardly any of them is used by the
next batch, and the 1,024 that are kept by default take half a gigabyte.
"""
KERNELS_KEPT = "256"


def optimize_for_inference(
    model: M,
    dtype: torch.dtype | str = torch.float32,
    *,
    trunk_dtype: torch.dtype | str = torch.float32,
) -> M:
    """A copy of the model for inference in `dtype`: float32, bfloat16 or int8; same class and call.

    Both precisions may be given by their names. The copy has no gradients, cannot be saved as a
    checkpoint and keeps its precision; it can be copied and pickled. The original is not changed
    and not needed afterwards; only weights that need no change are shared with it. Queries, keys
    and values are computed in one product, and on the CPU linear layers are packed by oneDNN if
    possible.

    int8: the layers of the encoder are in 8 bits, with ranges of values measured on some packaged
    proteins; states and logits are float32. It only runs on the CPU, and is the least exact.

    In a folding model, `dtype` is that of the language model, and `trunk_dtype` (float32 or
    bfloat16) that of the updates of the pair representation: their linear layers and triangle
    products. Sums, norms and softmax stay as they are. float32 is safe. bfloat16 has not been
    validated: in 48 blocks of random weights, pairs drift by 5 % and atoms by 0.8 Å on average,
    some by 4 Å (float32: 0.001 Å). Random weights do not fold, so the effect on real structures is
    not known: compare some before relying on it.

    Raises InputError for another dtype, for a model that is already optimized or has adapters or
    hooks in its layers, and where int8 is not possible; WeightsError for NaN or infinite weights.
    """
    dtype = one_of("dtype", dtype, torch.float32, torch.bfloat16, torch.int8)
    trunk_dtype = one_of("trunk_dtype", trunk_dtype, torch.float32, torch.bfloat16)
    model = cast(M, plain_model(model))
    if model.optimized:
        raise InputError("optimize_for_inference: this model is optimized; give the original")
    require_plain(model)
    quantizes = dtype == torch.int8
    if quantizes:
        require_quantizable(model)
        dtype = torch.float32
    for name in KERNEL_CACHES:  # read when the first kernel is made
        os.environ.setdefault(name, KERNELS_KEPT)
    folds = isinstance(model, EsmForProteinFolding)
    fast = frozen_copy(model, None if folds else dtype)
    if folds:
        encoder: EsmPreTrainedModel = frozen_copy(fast.base_model, dtype)
        encoder.config = fast.config
        fast.esm = encoder
    del model  # without other references, the memory of each weight is freed when it is packed
    require_finite(fast)
    fast.eval().optimized = fast.base_model.optimized = True
    ranges = find_ranges(fast) if quantizes else []
    packs = packs_at(fast.base_model) and not quantizes
    for module in fast.modules():
        if isinstance(module, EsmLayer):
            optimize_layer(module, fast.base_model.encoder.rotary, packs, quantizes)
        elif isinstance(module, TrunkBlock):
            optimize_block(module, packs_at(module, trunk_dtype), trunk_dtype)
    if quantizes:
        quantize(fast.base_model.encoder.layer, ranges)
    return fast


def require_quantizable(model: EsmPreTrainedModel) -> None:
    """Raise InputError if this model cannot be in 8 bits on this machine."""
    if isinstance(model, EsmForProteinFolding) or model.config.is_decoder:
        raise InputError("int8 is only for encoders; use float32 or bfloat16")
    if next(model.parameters()).device.type != "cpu":
        raise InputError("int8 is for the CPU; use dtype bfloat16, or the device cpu")
    if not can_quantize():
        raise InputError("int8: this processor or PyTorch has no exact 8-bit product; use bfloat16")
    if model.config.vocab_size != len(EsmTokenizer.standard()):
        raise InputError("int8 needs the standard vocabulary of 33 tokens; use float32 or bfloat16")


def packs_at(module: nn.Module, dtype: torch.dtype = torch.float32) -> bool:
    """Whether layers can be packed on the device and in the dtype of a module, and in `dtype`."""
    weight = next(module.parameters())
    return weight.device.type == "cpu" and can_pack(weight.dtype) and can_pack(dtype)


def one_of(name: str, given: torch.dtype | str, *known: torch.dtype) -> torch.dtype:
    """One of the `known` dtypes, given itself or by name. Raises InputError."""
    found = named_dtype(given)
    if found not in known:
        *others, last = (str(one).removeprefix("torch.") for one in known)
        raise InputError(
            f"optimize_for_inference: {name} {given} is not {', '.join(others)} or {last}"
        )
    return found


def require_plain(model: nn.Module) -> None:
    """Raise InputError if a layer that would be fused or packed has an adapter or hook."""
    for name, module in model.named_modules():
        if not isinstance(module, (EsmLayer, TrunkBlock)):
            continue
        for inner, layer in module.named_modules():
            has_weight = getattr(layer, "weight", None) is not None
            if has_weight and not (
                is_plain_layer(layer) or is_plain_layer(layer, nn.LayerNorm, nn.Embedding)
            ):
                raise InputError(
                    f"optimize_for_inference: {name}.{inner} has an adapter or hook (it is a "
                    f"{type(layer).__name__}), which would be lost; merge or remove it first"
                )


def frozen_copy(module: T, dtype: torch.dtype | None, copies: dict[int, Any] | None = None) -> T:
    """The same modules with frozen parameters in `dtype` (None: their own).

    Storage of parameters is shared if the dtype is the same, and nothing else; hooks are copied.
    `copies`: copies of configs and tied weights, which occur twice, by the id of the original.
    """
    copies = {} if copies is None else copies
    other = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, CONFIGS):
            setattr(other, name, copy.deepcopy(value, copies))
        elif isinstance(value, (dict, set)):  # hooks, and PyTorch's records of them
            vars(other)[name] = copy.copy(value)
    if isinstance(other, EsmPreTrainedModel):
        other._load_state_dict_pre_hooks.clear()  # they refer to the original
    other._buffers = {
        name: None if own is None else own.clone() for name, own in module._buffers.items()
    }
    other._parameters = {
        name: None if own is None else frozen_once(own, dtype, copies)
        for name, own in module._parameters.items()
    }
    other._modules = {
        name: None if child is None else frozen_copy(child, dtype, copies)
        for name, child in module._modules.items()
    }
    return other


def frozen_once(own: nn.Parameter, dtype: torch.dtype | None, copies: dict[int, Any]) -> Any:
    """A frozen weight, in `dtype` if given; the same one each time for a tied weight."""
    if id(own) not in copies:
        copies[id(own)] = frozen(own.detach().to(dtype or own.dtype))
    return copies[id(own)]


def optimize_layer(layer: EsmLayer, rotary: bool, packs: bool, quantizes: bool) -> None:
    """Fuse queries, keys and values of a layer, and pack its linear layers if `packs`."""
    attention, wide = layer.attention, layer.intermediate
    if attention.self.heads:  # none if all are pruned
        simple = type(attention.self) is EsmSelfAttention
        if (packs or quantizes) and simple and attention.self.distance_embedding is None:
            attention.self = CpuSelfAttention(attention.self, rotary=rotary)
        else:
            fuse(attention.self)
    if not packs:
        return
    if attention.self.heads:
        pack_linear(attention.self, "fused")
        pack_branch(attention)
    pack_linear(wide, "dense", "gelu")
    wide.activation = nn.Identity()
    pack_branch(layer)


def fuse(attention: EsmSelfAttention) -> None:
    """Compute queries, keys and values in one linear layer."""
    attention.fused = FusedLinear([attention.query, attention.key, attention.value])
    del attention.query, attention.key, attention.value
