"""The keys of a checkpoint's tensors: how they are spelled, and which head they belong to.

The spelling is that of transformers 4.37.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BASE_PREFIX = "esm."
"""What the keys of the encoder begin with in the checkpoint of a model with a head."""

CROSS_DISTANCES = "crossattention.self.distance_embedding.weight"
FREQUENCIES = re.compile(r".*rotary_embeddings\.inv_freq")
"""Keys of the rotary frequencies: one for each layer, one with `*` for all layers, or one alone."""

RESIDUE_TABLES = (
    r"af2_to_esm|trunk\.structure_module\.(default_frames|group_idx|atom_mask|lit_positions)"
)
IGNORED = re.compile(
    rf".*position_ids|.*{re.escape(CROSS_DISTANCES)}|{FREQUENCIES.pattern}|{RESIDUE_TABLES}"
)
"""Tables in checkpoints that a model computes itself, does not need, or keeps elsewhere."""

POSITIONS = "embeddings.position_embeddings.weight"
TIED, EMBEDDING = "lm_head.decoder.weight", "esm.embeddings.word_embeddings.weight"
"""The output weight of the language model head, and the token embedding that it usually shares."""

HEADS = ("lm_head.", "classifier.", "pooler.")
"""Heads that a checkpoint may have and the class being loaded may lack."""

CLASSES = {
    "trunk.": "EsmForProteinFolding",
    "lm_head.": "EsmForMaskedLM",
    "classifier.out_proj.": "EsmForSequenceClassification",
    "classifier.": "EsmForTokenClassification",
}
"""Beginning of the keys of a head → the class that has this head."""


def modern_key(key: str) -> str:
    """`key` with the LayerNorm names of old checkpoints (gamma, beta) replaced by today's."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", key))


def class_of(keys: Iterable[str]) -> str:
    """Name of the class whose head is among the keys of a checkpoint."""
    for head, name in CLASSES.items():
        if any(key.startswith(head) for key in keys):
            return name
    return "EsmModel"
