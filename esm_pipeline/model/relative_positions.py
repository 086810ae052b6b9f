"""Relative positions: a learned vector for each distance (Shaw et al. 2018, Huang et al. 2020).

Peer: transformers 4.37.2, `relative_key` and `relative_key_query`. For the explicit path alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esm_pipeline.errors import CapacityError
from esm_pipeline.model.config import EsmConfig

RELATIVE = ("relative_key", "relative_key_query")


def distance_embedding(config: EsmConfig) -> DistanceEmbedding | None:
    """The distances' vectors of one layer, None for the other types of positions."""
    return DistanceEmbedding(config) if config.position_embedding_type in RELATIVE else None


class DistanceEmbedding(nn.Embedding):
    """Vectors e (2M − 1, K) of the distances from a key to a query, 1 − M to M − 1.

    M is `max_position_embeddings`. A score gains q·e, and with `relative_key_query` k·e as well; q
    is scaled by K^−½ as in the score itself, k is not.
    """

    def __init__(self, config: EsmConfig) -> None:
        self.most = config.max_position_embeddings - 1
        self.with_keys = config.position_embedding_type == "relative_key_query"
        super().__init__(2 * self.most + 1, config.hidden_size // config.num_attention_heads)

    def scores(self, q: Tensor, k: Tensor, query_places: Tensor, key_places: Tensor) -> Tensor:
        """Scaled q (N, H, L, K), k (N, H, S, K), and their places (N, L), (N, S) → (N, H, L, S).

        Raises CapacityError for a distance that the table lacks.
        """
        distances = query_places.unsqueeze(-1) - key_places.unsqueeze(-2)  # (N, L, S)
        reach = int(distances.abs().max())
        if reach > self.most:
            raise CapacityError(
                f"a sequence needs the distance {reach}, but the model's table of distances ends "
                f"at {self.most}; shorten the sequence, or use a rotary model (ESM-2)"
            )
        places = torch.arange(self.most - reach, self.most + reach + 1, device=q.device)
        band = self(places).to(q.dtype)  # (2 * reach + 1, K)
        rows = (distances + reach).unsqueeze(1)  # (N, 1, L, S)
        scores = chosen(q @ band.T, rows)
        if self.with_keys:
            scores = scores + chosen(k @ band.T, rows.transpose(-1, -2)).transpose(-1, -2)
        return scores


def chosen(products: Tensor, rows: Tensor) -> Tensor:
    """Products with all vectors (N, H, A, …), and which of them each pair takes (N, 1, A, B) →
    (N, H, A, B)."""
    return torch.gather(products, -1, rows.expand(-1, products.shape[1], -1, -1))
