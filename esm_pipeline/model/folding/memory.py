"""How much memory folding takes, and the chunk size with which it fits.

The formula counts what exists at once in each phase of `infer(compact=True)`, without gradients;
tests/benchmarks/bench_fold_memory.py measures beside it. Weights are not counted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from esm_pipeline.errors import CapacityError, WeightsError
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.folding import confidence
from esm_pipeline.model.folding.triangle import products_at_once
from esm_pipeline.model.folding.trunk import rows_at_once

CHUNKS = (128, 64, 32, 16, 8, 4, 2, 1)
"""Chunk sizes to choose from, the fastest of those that save memory first."""

CPU = torch.device("cpu")
BASE = 2**22
"""Bytes for tables, indices and what is of no size worth a term."""


class FoldMemory(NamedTuple):
    """Bytes at the peak of each phase of folding one batch, all that is held then counted."""

    stem: int
    """The language model: states of a layer, its feed-forward, attention maps if it is asked."""

    products: int
    """Products of triangles: z, two projections of its size, a chunk of what makes them."""

    attention: int
    """Triangle attention: z, its bias, a chunk with queries, keys, values, gates and results.

    Where the blocks share a room, that of the products, which holds the bias then."""

    bias: int
    """The bias of the sequence attention: z, and H numbers for each pair, once more with a mask."""

    distances: int
    """Between two passes: z, distances in space and their bins."""

    structure: int
    """The structure module: z and the pair it looks at, biases, scores and weights of its heads."""

    confidences: int
    """Aligned errors: z, 64 bins for each pair of some rows, and their means."""

    @property
    def total(self) -> int:
        """Bytes at the peak of all."""
        return max(self)


def fold_memory(
    config: EsmConfig,
    batch: int,
    residues: int,
    chunk_size: int | None,
    *,
    device: torch.device = CPU,
    stem_dtype: torch.dtype = torch.float32,
    trunk_dtype: torch.dtype = torch.float32,
) -> FoldMemory:
    """Bytes that folding a batch takes at its peak beside the weights.

    residues: of the longest sequence, linkers counted. chunk_size: None for what is fastest. The
    number of CPU threads is that of PyTorch now. Raises WeightsError for a config that folds not.
    """
    if config.esmfold_config is None:
        raise WeightsError("config: is_folding_model is not set; this is no folding model")
    trunk = config.esmfold_config.trunk
    module = trunk.structure_module
    width, size = trunk.pairwise_state_dim, trunk_dtype.itemsize
    tokens, pairs = batch * residues, batch * residues**2
    shape = (batch, residues, residues, width)
    rows = min(residues, chunk_size or rows_at_once(shape, device))
    chunk = rows * tokens * width * size  # one tensor as wide as z
    z = pairs * width * size
    bins = pairs * 8
    singles = tokens * size * (3 * trunk.sequence_state_dim + 2 * config.hidden_size)
    held = z + bins + singles + BASE
    shares = device.type == "cpu" and chunk_size is None
    sequence_heads = trunk.sequence_state_dim // trunk.sequence_head_width
    pair_heads = width // trunk.pairwise_head_width
    product = min(max(products_at_once(device), residues**2), pairs * width)
    by_residue = module.num_blocks * (3 * module.sequence_dim + 8 * 16 * 4 + 14 * 3 * 8)
    of_structure = tokens * by_residue * 4
    logits = min(pairs, max(confidence.AT_ONCE // confidence.BINS, tokens)) * confidence.BINS
    return FoldMemory(
        stem=stem_memory(config, batch, residues, stem_dtype) + singles + BASE,
        products=held + 2 * z + max(5 * chunk, product * size),
        attention=held + 8 * chunk + (2 * z if shares else 2 * pairs * pair_heads * size),
        bias=held + (2 * z if shares else 2 * pairs * sequence_heads * size),
        distances=held + of_structure + pairs * (2 * 3 * 4 + 4 + 8),
        structure=held
        + of_structure
        + pairs * module.pairwise_dim * size
        + 4 * pairs * module.num_heads_ipa * 4,
        confidences=held + of_structure + 3 * logits * 4 + 4 * pairs * 4,
    )


def stem_memory(config: EsmConfig, batch: int, residues: int, dtype: torch.dtype) -> int:
    """Bytes of the language model's states in one layer, and of its maps for the trunk."""
    folding = config.esmfold_config
    assert folding is not None, "fold_memory asks for one"
    if folding.bypass_lm:
        return 0
    tokens = batch * (residues + 2)
    wide = 6 * config.hidden_size + 2 * config.intermediate_size
    total = tokens * (wide * dtype.itemsize + 2 * config.hidden_size * 4)
    if folding.use_esm_attn_map:
        maps = config.num_hidden_layers * config.num_attention_heads
        total += 2 * batch * (residues + 2) ** 2 * maps * 4
    return total


def choose_chunk_size(
    config: EsmConfig,
    batch: int,
    residues: int,
    available: int,
    *,
    device: torch.device = CPU,
    stem_dtype: torch.dtype = torch.float32,
) -> int | None:
    """The fastest chunk size with which a batch fits into `available` bytes, None among them.

    Raises CapacityError if it fits with none.
    """
    needed = 0
    for size in (None, *CHUNKS):
        found = fold_memory(config, batch, residues, size, device=device, stem_dtype=stem_dtype)
        if found.total <= available:
            return size
        needed = found.total
    raise CapacityError(
        f"{batch} sequences of {residues} residues take {needed / 1e9:.1f} GB to fold, beside the "
        f"weights, and {available / 1e9:.1f} GB are free; fold fewer at once, or on a device with "
        "more memory"
    )
