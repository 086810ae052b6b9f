"""How much memory folding takes, and the chunk size with which a batch fits.

The formula sums what is held at once in each phase of `infer(compact=True)`, without gradients and
without the weights; tests/benchmarks/bench_fold_memory.py compares it with measurements.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from esm_pipeline.errors import CapacityError, WeightsError
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.folding import confidence
from esm_pipeline.model.folding.triangle import products_at_once
from esm_pipeline.model.folding.trunk import rows_at_once

CHUNK_SIZES = (128, 64, 32, 16, 8, 4, 2, 1)
"""Chunk sizes to choose from if None does not fit, the fastest first."""

CPU = torch.device("cpu")
OVERHEAD = 2**22
"""Bytes for tables, indices and everything else that is small."""


class FoldMemory(NamedTuple):
    """Bytes held at the peak of each phase of folding one batch."""

    language_model: int
    """The language model: states of a layer, its feed-forward, attention maps if they are used."""

    products: int
    """Triangle products: z, two projections of its size, a chunk of intermediate results."""

    attention: int
    """Triangle attention: z, its bias, a chunk of queries, keys, values, gates and results.

    If the blocks share a buffer, it includes the bias."""

    bias: int
    """The bias of the sequence attention: z, and H numbers for each pair, twice with a mask."""

    distances: int
    """Between two passes: z, distances in space and their bins."""

    structure: int
    """The structure module: z, its own pair representation, biases, scores and weights."""

    confidences: int
    """Aligned errors: z, 64 bins for each pair of a few rows, and their means."""

    @property
    def total(self) -> int:
        """Bytes at the highest peak."""
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
    """Bytes that folding a batch takes at the peak of each phase, in addition to the weights.

    residues: of the longest sequence, linkers included. chunk_size: None for the fastest. The
    number of CPU threads is PyTorch's current one. Raises WeightsError for a config without folding
    part.
    """
    if config.esmfold_config is None:
        raise WeightsError("config: is_folding_model is not set; this is not a folding model")
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
    held = z + bins + singles + OVERHEAD
    shares = device.type == "cpu" and chunk_size is None
    sequence_heads = trunk.sequence_state_dim // trunk.sequence_head_width
    pair_heads = width // trunk.pairwise_head_width
    product = min(max(products_at_once(device), residues**2), pairs * width)
    by_residue = module.num_blocks * (3 * module.sequence_dim + 8 * 16 * 4 + 14 * 3 * 8)
    of_structure = tokens * by_residue * 4
    logits = min(pairs, max(confidence.LOGITS_AT_ONCE // confidence.BINS, tokens)) * confidence.BINS
    return FoldMemory(
        language_model=language_model_memory(config, batch, residues, stem_dtype)
        + singles
        + OVERHEAD,
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


def language_model_memory(config: EsmConfig, batch: int, residues: int, dtype: torch.dtype) -> int:
    """Bytes of the states of one layer of the language model, and of its maps for the trunk."""
    folding = config.esmfold_config
    assert folding is not None, "fold_memory requires one"
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
    """The fastest chunk size, which may be None, with which a batch fits into `available` bytes.

    Raises CapacityError if it fits with none.
    """
    needed = 0
    for size in (None, *CHUNK_SIZES):
        found = fold_memory(config, batch, residues, size, device=device, stem_dtype=stem_dtype)
        if found.total <= available:
            return size
        needed = found.total
    raise CapacityError(
        f"{batch} sequences of {residues} residues take {needed / 1e9:.1f} GB to fold, in addition "
        f"to the weights, and {available / 1e9:.1f} GB are free; fold fewer at once, or on a "
        "device with more memory"
    )
