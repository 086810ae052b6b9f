"""What tools ask every model for: precision, place, size, masks; and what a fast copy refuses.

Peer: transformers 4.37.2 `ModuleUtilsMixin`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from esm_pipeline.errors import InputError
from esm_pipeline.model.inference.linears import Packed


def plain_model(model: nn.Module) -> ModuleUtils:
    """The model within what other libraries put around it: peft, `torch.compile`, DDP.

    Raises InputError for one without a model of ours, or with trained prompts, which it would lose.
    """
    inner: Any = model
    while not isinstance(inner, ModuleUtils):
        config = getattr(inner, "active_peft_config", None)
        if getattr(config, "is_prompt_learning", False):
            raise InputError("a model with trained prompts works by its own call alone; use that")
        if hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            inner = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if inner is None:
            raise InputError(f"{type(model).__name__} is no ESM model; load one, as EsmForMaskedLM")
    return inner


class ModuleUtils(nn.Module):
    """Base of the models: what needs no weights of a certain kind."""

    is_parallelizable = False
    model_parallel = False

    optimized = False
    """Whether `optimize_for_inference` made this model, which then cannot be saved or trained."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights; of those that are not frozen, and without tables of embeddings.

        Of an optimized model too, whose weights are in another form.
        """
        tables = [m.weight for m in self.modules() if isinstance(m, nn.Embedding)]
        left_out = {id(table) for table in tables if exclude_embeddings}
        if not only_trainable:
            return sum(held.numel() for held in weights_of(self) if id(held) not in left_out)
        own = (p for p in self.parameters() if p.requires_grad and id(p) not in left_out)
        return sum(parameter.numel() for parameter in own)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights, and of buffers."""
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
        """A mask (B, L) or (B, L, S) as what is added to scores: (B, 1, 1 or L, S), 0 or the least.

        Of a decoder, no token sees those after it. For scripts with layers of their own: `forward`
        takes the mask itself. Raises InputError for other shapes.
        """
        dtype = dtype or self.dtype
        if attention_mask.ndim not in (2, 3):
            raise InputError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; give (B, L) or (B, L, S)"
            )
        seen = attention_mask[:, None]
        if attention_mask.ndim == 2:
            seen = seen[:, :, None]
            if self.config.is_decoder:  # type: ignore[union-attr]
                length, keys = input_shape[1], attention_mask.shape[1]
                causal = seen.new_ones(length, keys).tril(keys - length)
                seen = seen * causal
        return (1.0 - seen.to(dtype)) * torch.finfo(dtype).min

    def get_head_mask(
        self, head_mask: Tensor | None, num_hidden_layers: int, is_attention_chunked: bool = False
    ) -> Any:
        """(H,) or (n, H) → (n, 1 or B, H, 1, 1), one more with chunks; a list of None for None.

        For scripts with layers of their own: `forward` takes the mask itself.
        """
        if head_mask is None:
            return [None] * num_hidden_layers
        if head_mask.ndim == 1:
            head_mask = head_mask.expand(num_hidden_layers, -1)
        spread = head_mask[:, None, :, None, None].to(self.dtype)
        return spread.unsqueeze(-1) if is_attention_chunked else spread

    # what a fast copy refuses

    def require_original(self, what: str) -> None:
        """Raise InputError for what a model that `optimize_for_inference` made cannot do."""
        if self.optimized:
            self.refuse(what)

    def refuse(self, what: str) -> NoReturn:
        """Raise InputError: this is a copy for inference."""
        raise InputError(
            f"{what}: a model optimized for inference has no gradients, and its weights are in "
            "another form; take the original, and optimize that again"
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As PyTorch's. Raises InputError for an optimized model, whose layers are fused."""
        self.require_original("state_dict")
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As PyTorch's. Raises InputError for an optimized model."""
        self.require_original("load_state_dict")
        return super().load_state_dict(state_dict, *args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """As PyTorch's. Raises InputError for an optimized model, but for `train(False)`."""
        if mode:
            self.require_original("train")
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As PyTorch's. Raises InputError for an optimized model, but for False."""
        if requires_grad:
            self.require_original("requires_grad_")
        return super().requires_grad_(requires_grad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `.to()`, `.half()` and the like come to.

        Raises InputError for another precision of an optimized model, and for another device if its
        weights are packed for the CPU.
        """
        if self.optimized:
            self.require_same_form(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def require_same_form(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Raise InputError if `fn` makes of an optimized model's weights what they cannot be."""
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
    """Each weight once, those in a packed form too; without the steps of 8-bit layers."""
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, Packed):
            yield module.packed
        for name, held in module._parameters.items():
            if held is not None and id(held) not in seen and name != "steps":
                seen.add(id(held))
                yield held
