"""Contact prediction from attention maps, accumulated layer by layer (Rao et al. 2021).

Only the maps of one layer are held at a time, never layers × heads × L² numbers. A pruned head adds
nothing and the others keep their weights, so that contacts of a pruned model are approximate until
the regression is trained again. Peers: fair-esm modules.py `ContactPredictionHead`, transformers
`EsmContactPredictionHead`, which fails for pruned models.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.linears import weight_and_bias


class EsmContactPredictionHead(nn.Module):
    """Logistic regression over the symmetrised, corrected attention maps of all layers."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.regression = nn.Linear(config.num_hidden_layers * self.heads, 1)

    def layer_logits(self, maps: Tensor, layer: int, heads: list[int]) -> Tensor:
        """The part of layer `layer` (from 1): maps (sequences, H, L, L) of `heads` → (…, R, R).

        In the precision of the regression, not that of the maps.
        """
        weights = weight_and_bias(self.regression)[0].view(-1, self.heads)[layer - 1, heads]
        residues = maps[..., 1:-1, 1:-1].to(weights.dtype)  # without BOS and EOS
        corrected = average_product_corrected(residues + residues.transpose(-1, -2))
        return torch.einsum("nhij,h->nij", corrected, weights)

    def forward(self, logits: Tensor) -> Tensor:
        """Probabilities from the sum of all layers' logits."""
        return torch.sigmoid(logits + self.bias)

    @property
    def bias(self) -> Tensor:
        """(1,): the logit of a pair without any attention."""
        bias = weight_and_bias(self.regression)[1]
        assert bias is not None, "the regression has one"
        return bias


def average_product_corrected(maps: Tensor) -> Tensor:
    """Subtract from each entry (row mean × column mean / overall mean)."""
    rows = maps.sum(-1, keepdim=True)
    columns = maps.sum(-2, keepdim=True)
    total = maps.sum((-1, -2), keepdim=True)
    return maps - rows * columns / total
