"""Relative positions: a learned vector for each distance (Shaw et al. 2018, Huang et al. 2020).

Peer: transformers 4.37.2, `relative_key` and `relative_key_query`. Only on the explicit path.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esm_pipeline.errors import CapacityError
from esm_pipeline.model.config import EsmConfig

RELATIVE_TYPES = ("relative_key", "relative_key_query")


def distance_embedding(config: EsmConfig) -> DistanceEmbedding | None:
    """The distance embedding of one layer; None for models without relative positions."""
    return DistanceEmbedding(config) if config.position_embedding_type in RELATIVE_TYPES else None


class DistanceEmbedding(nn.Embedding):
    """Vectors e (2 M − 1, K) for the distances from a key to a query, 1 − M to M − 1.

    Here M is `max_position_embeddings`. To a score, q·e is added, and with `relative_key_query` k·e
    as well; q is scaled by K^−½ as in the score itself, k is not.
    """

    def __init__(self, config: EsmConfig) -> None:
        self.most = config.max_position_embeddings - 1
        self.with_keys = config.position_embedding_type == "relative_key_query"
        super().__init__(2 * self.most + 1, config.hidden_size // config.num_attention_heads)

    def scores(
        self, q: Tensor, k: Tensor, query_positions: Tensor, key_positions: Tensor
    ) -> Tensor:
        """Scaled q (N, H, L, K), k (N, H, S, K) and positions (N, L), (N, S) → (N, H, L, S).

        Raises CapacityError for a distance that the table lacks.
        """
        distances = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)  # (N, L, S)
        reach = int(distances.abs().max())
        if reach > self.most:
            raise CapacityError(
                f"a sequence needs the distance {reach}, but the model's table of distances ends "
                f"at {self.most}; shorten the sequence, or use a rotary model (ESM-2)"
            )
        numbers = torch.arange(self.most - reach, self.most + reach + 1, device=q.device)
        band = self(numbers).to(q.dtype)  # (2 * reach + 1, K)
        rows = (distances + reach).unsqueeze(1)  # (N, 1, L, S)
        scores = gather_scores(q @ band.T, rows)
        if self.with_keys:
            scores = scores + gather_scores(k @ band.T, rows.transpose(-1, -2)).transpose(-1, -2)
        return scores


def gather_scores(products: Tensor, rows: Tensor) -> Tensor:
    """Products with all vectors (N, H, A, …) → for each pair the one in `rows` (N, 1, A, B):
    (N, H, A, B)."""
    return torch.gather(products, -1, rows.expand(-1, products.shape[1], -1, -1))
