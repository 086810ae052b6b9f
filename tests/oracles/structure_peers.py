"""The peer's structure module with lively random weights, and the same weights in ours.

The peer's frames are in float32 whatever the rest is; `full_precision` lifts that, so that the two
can be compared in float64. Peer: transformers modeling_esmfold.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.esm.configuration_esm import StructureModuleConfig
from transformers.models.esm.modeling_esmfold import EsmFoldStructureModule
from transformers.models.esm.openfold_utils import rigid_utils

from esm_pipeline.model.folding.structure_module import StructureModule
from tests.oracles.peers import enliven

SMALL = {
    "sequence_dim": 24,
    "pairwise_dim": 16,
    "ipa_dim": 8,
    "resnet_dim": 12,
    "num_heads_ipa": 3,
    "num_qk_points": 4,
    "num_v_points": 5,
    "num_blocks": 3,
    "dropout_rate": 0.0,
}


class Torch64:
    """`torch`, but that its float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def full_precision() -> Iterator[None]:
    """Within, the peer's frames are float64."""
    with mock.patch.object(rigid_utils, "torch", Torch64()):
        yield


def structure_modules(
    dtype: torch.dtype = torch.float64, seed: int = 0, **settings: Any
) -> tuple[nn.Module, StructureModule]:
    """The peer and ours with one set of weights, none of them zero or at its default."""
    config = StructureModuleConfig(**{**SMALL, **settings})
    peer = enliven(EsmFoldStructureModule(config), seed).to(dtype)
    ours = StructureModule(config).to(dtype).eval()
    ours.load_state_dict(peer.state_dict())
    return peer, ours


def inputs(
    lengths: list[int], seed: int = 0, dtype: torch.dtype = torch.float64, **settings: Any
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Random representations, residues (X among them) and mask of a padded batch."""
    sizes = {**SMALL, **settings}
    generator = torch.Generator().manual_seed(seed)
    batch, longest = len(lengths), max(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    representations = {
        "single": normal(batch, longest, sizes["sequence_dim"]),
        "pair": normal(batch, longest, longest, sizes["pairwise_dim"]),
    }
    aatype = torch.randint(0, 21, (batch, longest), generator=generator)
    aatype[:, 0] = 0  # one at least has atoms
    mask = (torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)).to(dtype)
    return representations, aatype, mask


class Largest(TorchDispatchMode):
    """Within, remembers the size of the largest tensor that an operation made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, Tensor):
                self.numbers = max(self.numbers, made.untyped_storage().nbytes() // made.itemsize)
        return result
