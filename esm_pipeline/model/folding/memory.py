"""How much memory folding takes on a device, and the chunk size with which a batch fits."""

from __future__ import annotations

import torch

from esm_pipeline.errors import CapacityError, WeightsError
from esm_pipeline.footprint import FoldMemory, FoldShape, fold_footprint
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.folding.triangle import products_at_once
from esm_pipeline.model.folding.trunk import rows_at_once

CHUNK_SIZES = (128, 64, 32, 16, 8, 4, 2, 1)
"""Chunk sizes to choose from if None does not fit, the fastest first."""

CPU = torch.device("cpu")


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
    shape = shape_of(config)
    of_pairs = (batch, residues, residues, shape.pair_width)
    return fold_footprint(
        shape,
        batch,
        residues,
        min(residues, chunk_size or rows_at_once(of_pairs, device)),
        shares=device.type == "cpu" and chunk_size is None,
        products=products_at_once(device),
        stem_bytes=stem_dtype.itemsize,
        trunk_bytes=trunk_dtype.itemsize,
    )


def shape_of(config: EsmConfig) -> FoldShape:
    """The widths of a folding model. Raises WeightsError for a config without folding part."""
    folding = config.esmfold_config
    if folding is None:
        raise WeightsError("config: is_folding_model is not set; this is not a folding model")
    trunk = folding.trunk
    module = trunk.structure_module
    return FoldShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        runs_language_model=not folding.bypass_lm,
        uses_maps=folding.use_esm_attn_map,
        blocks=trunk.num_blocks,
        sequence_width=trunk.sequence_state_dim,
        sequence_heads=trunk.sequence_state_dim // trunk.sequence_head_width,
        pair_width=trunk.pairwise_state_dim,
        pair_heads=trunk.pairwise_state_dim // trunk.pairwise_head_width,
        structure_blocks=module.num_blocks,
        structure_width=module.sequence_dim,
        structure_pair_width=module.pairwise_dim,
        structure_heads=module.num_heads_ipa,
    )


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
