"""What the language model says of the residues, for the folding trunk.

Every layer's states count, by weights that the model has learned; they are added up as the layers
are walked through: (n + 1) × tokens × width numbers need not exist. Attention maps, if the model
was trained with them, do. Peer: fair-esm esmfold.py `_compute_language_model_representations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from esm_pipeline.model.attention import unpack_maps
from esm_pipeline.model.encoder import Step
from esm_pipeline.model.esm import EsmModel
from esm_pipeline.model.layout import PackedLayout


def represent(
    model: EsmModel, ids: Tensor, shares: Tensor, *, with_maps: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Token ids (B, R) without BOS and EOS → (B, R, D) in the precision of `shares` (n + 1,).

    Padding is behind the sequences, and what stands there means nothing. With `with_maps`, also
    (B, R, R, n * H): how much residue j looks at residue i, at [i, j]. No gradient reaches the
    language model.
    """
    tokens, layout = framed(model, ids)
    steps = walk(model, layout.pack(tokens), layout, with_maps)
    total: Tensor | None = None
    maps: list[Tensor] = []
    for share, step in zip(shares, steps, strict=True):
        part = share * step.x.to(shares.dtype)
        total = part if total is None else total + part
        if step.seen.maps is not None:
            padded = unpack_maps(step.seen.maps, layout, tokens.shape[1])
            maps.append(padded[:, :, 1:-1, 1:-1].permute(0, 3, 2, 1))
    assert total is not None, "there is an embedding at least"
    states = layout.unpack(total, tokens.shape[1])[:, 1:-1]
    return states, torch.cat(maps, dim=-1).to(shares.dtype) if maps else None


def framed(model: EsmModel, ids: Tensor) -> tuple[Tensor, PackedLayout]:
    """(B, R + 2) ids between BOS and EOS, and where their tokens lie."""
    vocabulary, pad = model.config.vocab_list, model.config.pad_token_id
    assert vocabulary is not None, "the config of a folding model has one"
    assert pad is not None, "require_supported() comes first"
    first = ids.new_full((len(ids), 1), vocabulary.index("<cls>"))
    tokens = torch.cat([first, ids, ids.new_full((len(ids), 1), pad)], dim=1)
    ends = torch.ne(tokens, pad).sum(1, keepdim=True)
    tokens = tokens.scatter(1, ends, vocabulary.index("<eos>"))
    return tokens, PackedLayout.from_mask(torch.ne(tokens, pad))


def walk(model: EsmModel, tokens: Tensor, layout: PackedLayout, with_maps: bool) -> Iterator[Step]:
    """The steps through the model's layers, without gradients."""
    with torch.no_grad():
        x = model.embeddings(tokens, layout)
        steps: Iterable[Step] = model.encoder.steps(x, layout, with_maps=with_maps)
    iterator = iter(steps)
    while True:
        with torch.no_grad():  # around each step alone, not around what is done with it
            step = next(iterator, None)
        if step is None:
            return
        yield step
