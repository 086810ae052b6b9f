"""Representations of the residues by the language model, for the folding trunk.

They are weighted sums of the states of all layers, with learned weights, accumulated layer by
layer: (n + 1) × tokens × width numbers are never held. Attention maps, if the model was trained
with them, are. Peer: fair-esm esmfold.py `_compute_language_model_representations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from esm_pipeline.model.encoder import EncoderInputs, Step
from esm_pipeline.model.esm import EsmModel
from esm_pipeline.model.explicit_attention import unpack_maps
from esm_pipeline.model.layout import PackedLayout


def represent(
    model: EsmModel, ids: Tensor, shares: Tensor, *, with_maps: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Token ids (B, R) without BOS and EOS → (B, R, D) in the precision of `shares` (n + 1,).

    Padding follows the sequences; values there are meaningless. With `with_maps`, also
    (B, R, R, n * H): the attention of residue j to residue i, at [i, j]. The language model gets no
    gradients.
    """
    tokens, layout = add_special_tokens(model, ids)
    steps = steps_without_gradients(model, layout.pack(tokens), layout, with_maps)
    total: Tensor | None = None
    maps: list[Tensor] = []
    for share, step in zip(shares, steps, strict=True):
        part = share * step.x.to(shares.dtype)
        total = part if total is None else total + part
        if step.outputs.maps is not None:
            padded = unpack_maps(step.outputs.maps, layout, tokens.shape[1])
            maps.append(padded[:, :, 1:-1, 1:-1].permute(0, 3, 2, 1))
    assert total is not None, "the embedding is the first step"
    states = layout.unpack(total, tokens.shape[1])[:, 1:-1]
    return states, torch.cat(maps, dim=-1).to(shares.dtype) if maps else None


def add_special_tokens(model: EsmModel, ids: Tensor) -> tuple[Tensor, PackedLayout]:
    """Ids (B, R) with BOS and EOS added, (B, R + 2), and the layout of their tokens."""
    vocabulary, pad = model.config.vocab_list, model.config.pad_token_id
    assert vocabulary is not None, "a folding model's config has one"
    assert pad is not None, "require_supported() was called"
    first = ids.new_full((len(ids), 1), vocabulary.index("<cls>"))
    tokens = torch.cat([first, ids, ids.new_full((len(ids), 1), pad)], dim=1)
    ends = torch.ne(tokens, pad).sum(1, keepdim=True)
    tokens = tokens.scatter(1, ends, vocabulary.index("<eos>"))
    return tokens, PackedLayout.from_mask(torch.ne(tokens, pad))


def steps_without_gradients(
    model: EsmModel, tokens: Tensor, layout: PackedLayout, with_maps: bool
) -> Iterator[Step]:
    """The steps of the model, computed without gradients."""
    with torch.no_grad():
        x = model.embeddings(tokens, layout)
        steps: Iterable[Step] = model.encoder.steps(x, layout, EncoderInputs(with_maps))
    iterator = iter(steps)
    while True:
        with torch.no_grad():  # only around the step, not around what the caller does with it
            step = next(iterator, None)
        if step is None:
            return
        yield step
