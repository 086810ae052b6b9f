"""Complexes: several chains as one sequence, with a flexible linker between them.

Peer: fair-esm esmfold `encode_sequence`: the linker is folded with the chains and removed from the
result, and residue numbers jump between chains. Here the linker is removed from every output and
every confidence, and each chain is numbered from 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from esm_pipeline.errors import InputError
from esm_pipeline.footprint import LINKER_RESIDUES
from esm_pipeline.nucleotides import KEEP_NUCLEOTIDES, NUCLEOTIDES, nucleotides_among
from esm_pipeline.structure import residues

BREAK = ":"
LINKER = "G" * LINKER_RESIDUES
CHAIN_GAP = 512
"""Jump of residue numbers between chains, so that the model sees a large distance."""


@dataclass
class FoldInputs:
    """Sequences as input of the model, padded to R residues, linkers included.

    aatype, position_ids (with the jumps), residue_index (from 0 in each chain), chain_index,
    attention_mask (1 for residues and linkers), own (1 for residues of chains): (B, R) each.
    """

    aatype: Tensor
    position_ids: Tensor
    residue_index: Tensor
    chain_index: Tensor
    attention_mask: Tensor
    own: Tensor

    @property
    def has_complexes(self) -> bool:
        """Whether any sequence has several chains."""
        return bool(self.chain_index.any())

    @property
    def has_linkers(self) -> bool:
        """Whether any sequence has a linker between its chains."""
        return bool((self.own != self.attention_mask).any())

    def kept(self) -> tuple[Tensor, Tensor]:
        """Places (B, R') of the residues of chains, and (B, R') bool, false at padding."""
        counts = self.own.sum(1)
        order = torch.argsort(1 - self.own, dim=1, stable=True)
        width = int(counts.max())
        present = torch.arange(width, device=order.device) < counts.unsqueeze(1)
        return order[:, :width], present


def encode_sequences(
    sequences: Sequence[str],
    linker: str = LINKER,
    gap: int = CHAIN_GAP,
    device: torch.device | str = "cpu",
    *,
    nucleotides: str = "refuse",
) -> FoldInputs:
    """Sequences, chains separated by ":", as input of the model; unknown letters become X.

    White space and a `*` at the end of a chain are removed. Raises InputError without sequences,
    for an empty chain, for characters that are not letters, and for nucleotides unless they are
    kept.
    """
    if nucleotides not in NUCLEOTIDES:
        raise InputError(f"infer: nucleotides {nucleotides!r} is not 'refuse' or 'keep'")
    if not sequences:
        raise InputError("infer: no sequences; give at least one")
    rows = []
    for place, sequence in enumerate(sequences):
        try:
            text = letters(sequence)
            if nucleotides == "refuse" and (kind := nucleotides_among(text.encode())):
                raise InputError(f"looks like {kind}; {KEEP_NUCLEOTIDES}")
            rows.append(encode_sequence(text, linker, gap))
        except InputError as error:
            raise InputError(f"infer: sequence {place}: {error}") from None
    width = max(row.shape[1] for row in rows)
    padded = torch.zeros(len(rows), len(fields(FoldInputs)), width, dtype=torch.int64)
    for place, row in zip(padded, rows, strict=True):
        place[:, : row.shape[1]] = row
    return FoldInputs(*padded.to(device).unbind(1))


def encode_sequence(sequence: str, linker: str, gap: int) -> Tensor:
    """(6, R): the fields of `FoldInputs` for one sequence, cleaned by `letters`."""
    chains = sequence.split(BREAK)
    if not all(chains):
        raise InputError(f"{sequence[:40]!r} has a chain without residues")
    columns: list[Tensor] = []
    start = 0
    for number, chain in enumerate(chains):
        text = chain + (linker.upper() if number < len(chains) - 1 else "")
        inside = torch.arange(len(text))
        aatype = torch.from_numpy(residues.encode(text))
        chain_index, one = torch.full_like(inside, number), torch.ones_like(inside)
        own = (inside < len(chain)).long()
        places = start + inside + number * gap
        columns.append(torch.stack([aatype, places, inside, chain_index, one, own]))
        start += len(text)
    return torch.cat(columns, dim=1)


def letters(sequence: str) -> str:
    """A sequence in upper case, without white space and without `*` at the ends of chains.

    Raises InputError for characters that are not letters.
    """
    if not isinstance(sequence, str):
        raise InputError(f"{sequence!r:.40} is not a sequence; give text")
    text = re.sub(rf"\*+(?={BREAK}|\Z)", "", "".join(sequence.split()).upper())
    if wrong := re.search(f"[^A-Z{BREAK}]", text):
        remedy = f"write {BREAK!r} between chains" if wrong[0] in "/|" else "remove it, or write X"
        raise InputError(
            f"{wrong[0]!r} at place {wrong.start() + 1} of {text[:40]!r} is not a residue; {remedy}"
        )
    return text
