"""What tools expect of every model: dtype, device, size and masks; and what fast copies refuse.

Peer: transformers 4.37.2 `ModuleUtilsMixin`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from esm_pipeline.errors import InputError
from esm_pipeline.model.linears import Packed


def plain_model(model: nn.Module) -> ModuleUtils:
    """The model inside the wrappers of other libraries: peft, `torch.compile`, DDP.

    Raises InputError if there is no model of ours inside, or if there are trained prompts, which
    would be lost.
    """
    inner: Any = model
    while not isinstance(inner, ModuleUtils):
        config = getattr(inner, "active_peft_config", None)
        if getattr(config, "is_prompt_learning", False):
            raise InputError(
                "a model with trained prompts only works through its own call; use that"
            )
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if inner is None:
            raise InputError(
                f"{type(model).__name__} is not an ESM model; load one, for example EsmForMaskedLM"
            )
    return inner


class ModuleUtils(nn.Module):
    """Base of the models: what does not depend on the kind of model."""

    is_parallelizable = False
    model_parallel = False

    optimized = False
    """Whether `optimize_for_inference` made this model, which can be neither saved nor trained."""

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights; only those that are not frozen, or without embedding tables.

        Optimized models count too, although their weights have another form.
        """
        tables = [m.weight for m in self.modules() if isinstance(m, nn.Embedding)]
        left_out = {id(table) for table in tables if exclude_embeddings}
        if not only_trainable:
            return sum(held.numel() for held in weights_of(self) if id(held) not in left_out)
        counted = (p for p in self.parameters() if p.requires_grad and id(p) not in left_out)
        return sum(parameter.numel() for parameter in counted)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights and, by default, of buffers."""
        packed = [one.packed for one in self.modules() if isinstance(one, Packed)]
        held = [*self.parameters(), *packed, *(self.buffers() if return_buffers else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def get_extended_attention_mask(
        self,
        attention_mask: Tensor,
        input_shape: tuple[int, ...],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """A mask (B, L) or (B, L, S) → what to add to scores: (B, 1, 1 or L, S), 0 or the minimum.

        In a decoder, no token attends to later ones. For scripts with their own layers: `forward`
        takes the mask itself. Raises InputError for other shapes.
        """
        dtype = dtype or self.dtype
        if attention_mask.ndim not in (2, 3):
            raise InputError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; give (B, L) or (B, L, S)"
            )
        visible = attention_mask[:, None]
        if attention_mask.ndim == 2:
            visible = visible[:, :, None]
            if self.config.is_decoder:  # type: ignore[union-attr]
                length, keys = input_shape[1], attention_mask.shape[1]
                causal = visible.new_ones(length, keys).tril(keys - length)
                visible = visible * causal
        return (1.0 - visible.to(dtype)) * torch.finfo(dtype).min

    def get_head_mask(
        self, head_mask: Tensor | None, num_hidden_layers: int, is_attention_chunked: bool = False
    ) -> Any:
        """(H,) or (n, H) → (n, 1, H, 1, 1), with chunks one dimension more; None → a list of None.

        For scripts with their own layers: `forward` takes the mask itself.
        """
        if head_mask is None:
            return [None] * num_hidden_layers
        if head_mask.ndim == 1:
            head_mask = head_mask.expand(num_hidden_layers, -1)
        spread = head_mask[:, None, :, None, None].to(self.dtype)
        return spread.unsqueeze(-1) if is_attention_chunked else spread

    # what models made by `optimize_for_inference` refuse

    def require_original(self, what: str) -> None:
        """Raise InputError, naming the operation `what`, if this is an optimized model."""
        if self.optimized:
            self.refuse(what)

    def refuse(self, what: str) -> NoReturn:
        """Raise InputError: an optimized model cannot do `what`."""
        raise InputError(
            f"{what}: a model optimized for inference has no gradients, and its weights are in "
            "another form; take the original, and optimize that again"
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in PyTorch. Raises InputError for an optimized model, whose layers are fused."""
        self.require_original("state_dict")
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in PyTorch. Raises InputError for an optimized model."""
        self.require_original("load_state_dict")
        return super().load_state_dict(state_dict, *args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """As in PyTorch. Raises InputError for an optimized model, except for `train(False)`."""
        if mode:
            self.require_original("train")
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As in PyTorch. Raises InputError for an optimized model, except for False."""
        if requires_grad:
            self.require_original("requires_grad_")
        return super().requires_grad_(requires_grad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to()`, `.half()` and similar methods call.

        Raises InputError for another dtype of an optimized model, and for another device if its
        weights are packed for the CPU.
        """
        if self.optimized:
            self.require_same_form(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def require_same_form(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Raise InputError if `fn` moves an optimized model to a dtype or device it cannot have."""
        for dtype, device in {(held.dtype, held.device) for held in self.parameters()}:
            made = fn(torch.empty(0, dtype=dtype, device=device))
            if made.dtype != dtype:
                raise InputError(
                    f"a model optimized for inference keeps its precision; for {made.dtype}, "
                    "optimize the original again with that dtype"
                )
            if made.device != device and any(isinstance(one, Packed) for one in self.modules()):
                raise InputError(
                    f"this model is optimized for the CPU; for {made.device}, move the original "
                    "there and optimize it again"
                )


def weights_of(model: nn.Module) -> Iterator[Tensor]:
    """Each weight once, packed ones included; without the steps of 8-bit layers."""
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, Packed):
            yield module.packed
        for name, held in module._parameters.items():
            if held is not None and id(held) not in seen and name != "steps":
                seen.add(id(held))
                yield held
