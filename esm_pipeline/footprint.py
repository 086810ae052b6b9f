"""How much memory folding takes, from the widths of a model.

The formula sums what is held at once in each phase of `infer(compact=True)`, without gradients and
without the weights; tests/benchmarks/bench_fold_memory.py compares it with measurements. No torch:
the workflow computes with it what a job asks for.
"""

from __future__ import annotations

from typing import NamedTuple

OVERHEAD = 2**22
"""Bytes for tables, indices and everything else that is small."""

ELEMENTS = 2**17
"""Elements of z processed at a time by default: half a MiB in float32 for each thread of a CPU,
which fits into its cache with the intermediate results."""

PRODUCTS = 2**17
"""Elements of triangle products computed at a time, a few channels each: half a MiB in float32 for
each thread of a CPU, which fits into its cache."""

BINS = 64
"""Of the predicted aligned error of a pair of residues."""

LOGITS_AT_ONCE = 2**24
"""Logits of the aligned error computed at a time by default."""

FLOAT32 = 4
"""Bytes of a number."""

LINKER_RESIDUES = 25
"""Between the chains of a complex, which is folded as one sequence."""


class FoldShape(NamedTuple):
    """The widths of a folding model that its memory and its time depend on."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    """Of the language model, as the three before."""
    runs_language_model: bool
    uses_maps: bool
    """Whether the trunk gets the attention maps of the language model."""
    blocks: int
    """Of the trunk."""
    sequence_width: int
    sequence_heads: int
    pair_width: int
    pair_heads: int
    structure_blocks: int
    structure_width: int
    structure_pair_width: int
    structure_heads: int


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


def fold_footprint(
    shape: FoldShape,
    batch: int,
    residues: int,
    rows: int,
    *,
    shares: bool,
    products: int,
    stem_bytes: int = FLOAT32,
    trunk_bytes: int = FLOAT32,
) -> FoldMemory:
    """Bytes that folding a batch takes at the peak of each phase, in addition to the weights.

    residues: of the longest sequence, linkers included. rows: of z processed at a time. shares:
    whether the blocks share a buffer. products: elements of products computed at a time. stem_bytes
    and trunk_bytes: of a number in the language model and in the trunk.
    """
    width, size = shape.pair_width, trunk_bytes
    tokens, pairs = batch * residues, batch * residues**2
    chunk = rows * tokens * width * size  # one tensor as wide as z
    z = pairs * width * size
    bins = pairs * 8
    singles = tokens * size * (3 * shape.sequence_width + 2 * shape.hidden_size)
    held = z + bins + singles + OVERHEAD
    product = min(max(products, residues**2), pairs * width)
    by_residue = shape.structure_blocks * (3 * shape.structure_width + 8 * 16 * 4 + 14 * 3 * 8)
    of_structure = tokens * by_residue * FLOAT32
    logits = min(pairs, max(LOGITS_AT_ONCE // BINS, tokens)) * BINS
    return FoldMemory(
        language_model=language_model_footprint(shape, batch, residues, stem_bytes)
        + singles
        + OVERHEAD,
        products=held + 2 * z + max(5 * chunk, product * size),
        attention=held + 8 * chunk + (2 * z if shares else 2 * pairs * shape.pair_heads * size),
        bias=held + (2 * z if shares else 2 * pairs * shape.sequence_heads * size),
        distances=held + of_structure + pairs * (2 * 3 * 4 + 4 + 8),
        structure=held
        + of_structure
        + pairs * shape.structure_pair_width * size
        + 4 * pairs * shape.structure_heads * FLOAT32,
        confidences=held + of_structure + 3 * logits * FLOAT32 + 4 * pairs * FLOAT32,
    )


def language_model_footprint(shape: FoldShape, batch: int, residues: int, size: int) -> int:
    """Bytes of the states of one layer of the language model, and of its maps for the trunk."""
    if not shape.runs_language_model:
        return 0
    tokens = batch * (residues + 2)
    wide = 6 * shape.hidden_size + 2 * shape.intermediate_size
    total = tokens * (wide * size + 2 * shape.hidden_size * FLOAT32)
    if shape.uses_maps:
        total += 2 * batch * (residues + 2) ** 2 * shape.layers * shape.heads * FLOAT32
    return total
