"""The standard alphabet: the 33 tokens of ESM-1b, ESM-1v and ESM-2."""

from __future__ import annotations

ALPHABET = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
"""In the order of their ids."""

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
