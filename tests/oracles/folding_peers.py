"""The peer's folding model with lively random weights, the same weights in ours, and both compared.

The peer counts some things in float32 whatever the rest is; `all_double` lifts that, so that the
two can be compared in float64. Peer: transformers modeling_esmfold.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor, nn
from transformers.models.esm import modeling_esmfold
from transformers.models.esm.configuration_esm import TrunkConfig as PeerTrunkConfig
from transformers.models.esm.configuration_esm import get_default_vocab_list

from esm_pipeline import EsmConfig, EsmForProteinFolding
from esm_pipeline.model.folding.config import TrunkConfig
from esm_pipeline.model.folding.output import PER_BLOCK, PER_PAIR, PER_RESIDUE
from esm_pipeline.model.folding.trunk import FoldingTrunk
from tests.oracles.peers import ESM2, enliven
from tests.oracles.peers import SMALL as SMALL_STEM
from tests.oracles.structure_peers import full_precision

STRUCTURE = {
    "sequence_dim": 24,
    "pairwise_dim": 12,
    "ipa_dim": 4,
    "resnet_dim": 16,
    "num_heads_ipa": 3,
    "num_blocks": 3,
}
TRUNK = {
    "num_blocks": 2,
    "sequence_state_dim": 32,
    "pairwise_state_dim": 16,
    "sequence_head_width": 8,
    "pairwise_head_width": 8,
    "position_bins": 5,
    "chunk_size": None,
    "structure_module": STRUCTURE,
}
STEM = {**SMALL_STEM, **ESM2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
UNITS = {"plddt": 100.0}
"""What the peer's values are multiplied by: its pLDDT is 0–1."""

PEERS = {field.name for field in fields(modeling_esmfold.EsmForProteinFoldingOutput)}


def settings(trunk: Mapping[str, Any] | None = None, **fold: Any) -> dict[str, Any]:
    """A small folding config, as a dict; `trunk` and `fold` change settings of those parts."""
    parts = {"fp16_esm": False, "lddt_head_hid_dim": 16, "trunk": {**TRUNK, **(trunk or {})}}
    return {
        **STEM,
        "is_folding_model": True,
        "esmfold_config": {**parts, **fold},
        "vocab_list": list(get_default_vocab_list()),
    }


def folding_models(
    dtype: torch.dtype = torch.float64, trunk: Mapping[str, Any] | None = None, **fold: Any
) -> tuple[nn.Module, EsmForProteinFolding]:
    """The peer and ours with one set of weights, none of them zero or at its default."""
    given = settings(trunk, **fold)
    peer = enliven(transformers.EsmForProteinFolding(transformers.EsmConfig(**given))).to(dtype)
    ours = EsmForProteinFolding(EsmConfig(**given)).to(dtype).eval()
    ours.load_state_dict(peer.state_dict())
    return peer, ours


def trunks(seed: int = 0, **changes: Any) -> tuple[nn.Module, FoldingTrunk]:
    """The peer's trunk and ours in float64, with one set of weights."""
    given = {**TRUNK, **changes}
    peer = enliven(modeling_esmfold.EsmFoldingTrunk(PeerTrunkConfig(**given)), seed).double()
    ours = FoldingTrunk(TrunkConfig(**given)).double().eval()
    ours.load_state_dict(peer.state_dict())
    return peer, ours


@contextmanager
def all_double() -> Iterator[None]:
    """Within, what the peer asks to be float32 is float64."""
    with full_precision(), mock.patch.object(Tensor, "float", Tensor.double):
        yield


def proteins(lengths: Iterable[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random residues (B, R), X among them, and their mask; padding is residue 0."""
    lengths = list(lengths)
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    aatype = torch.randint(0, 21, mask.shape, generator=generator)
    aatype[:, 0] = 4  # one at least has atoms
    if max(lengths) > 2:
        aatype[0, 2] = 20
    return aatype * mask, mask


def gapped(mask: Tensor) -> Tensor:
    """Numbers of residues (B, R) that jump in the middle, more than the bins reach."""
    numbers = torch.arange(mask.shape[1]).expand_as(mask).clone()
    numbers[:, mask.shape[1] // 2 :] += 9
    return numbers


def alone(output: Any, place: int, length: int) -> dict[str, Tensor]:
    """What an output says of the sequence at `place` of its batch, padding cut off."""
    found = {}
    for name, value in output.items():
        if name in PER_BLOCK:
            found[name] = value[:, place, :length]
        elif name in PER_PAIR:
            found[name] = value[place, :length, :length]
        elif name in PER_RESIDUE:
            found[name] = value[place, :length]
        elif name == "chain_iptm":
            count = int(output["chain_index"][place].max()) + 1
            found[name] = value[place, :count, :count]
        elif value.ndim == 1:
            found[name] = value[place]
        else:
            found[name] = value
    return found


def of_peer(peer: nn.Module, aatype: Tensor, **arguments: Any) -> dict[str, Tensor]:
    """What the peer says of one sequence (R,), run without padding, in our units."""
    row = {name: v[None] if isinstance(v, Tensor) else v for name, v in arguments.items()}
    with torch.no_grad(), all_double():
        output = peer(aatype[None], torch.ones_like(aatype)[None], **row)
    scaled = {name: value * UNITS.get(name, 1) for name, value in output.items()}
    scaled["ptm"] = scaled["ptm"].reshape(1)
    return alone(scaled, 0, len(aatype))


def apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference in each field of `wanted`, in the field's own unit."""
    off = {}
    for name, expected in wanted.items():
        assert found[name].shape == expected.shape, name
        assert expected.numel() > 0, "a comparison of nothing proves nothing"
        off[name] = float((found[name].double() - expected.double()).abs().max())
    return off


def whole_model_apart(
    models: tuple[nn.Module, EsmForProteinFolding],
    lengths: list[int],
    *,
    numbers: Tensor | None = None,
    seen: Tensor | None = None,
    num_recycles: int | None = 0,
) -> dict[str, float]:
    """Ours on a padded batch beside the peer on each of its sequences alone: by field, the worst.

    numbers: of the residues (B, R); `seen` are those that ours gets instead.
    """
    peer, ours = models
    aatype, mask = proteins(lengths, seed=sum(lengths))
    numbers = torch.arange(max(lengths)).expand_as(mask) if numbers is None else numbers
    with torch.no_grad():
        output = ours(
            aatype,
            mask,
            position_ids=numbers if seen is None else seen,
            num_recycles=num_recycles,
        )
    worst: dict[str, float] = {}
    for place, length in enumerate(lengths):
        wanted = of_peer(
            peer,
            aatype[place, :length],
            position_ids=numbers[place, :length],
            num_recycles=num_recycles,
        )
        assert wanted.keys() == PEERS
        for name, off in apart(alone(output, place, length), wanted).items():
            worst[name] = max(worst.get(name, 0.0), off)
    return worst
