"""Where each sequence of a packed batch lies: all that attention knows about the batch.

Padded input (`from_mask`) and packed input (`from_lengths`) go through the same encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, groupby

import torch
from torch import Tensor

from esm_pipeline.errors import InputError


class PackedLayout:
    """The tokens of B sequences laid end to end: (B, L, …) with padding becomes (T, …) without.

    Attributes: `lengths`, B ints, BOS and EOS counted; `offsets`, B + 1 ints, the first token of
    each sequence; `positions` (T,) int64, each token's position in its sequence, from 0; `width`,
    L of the padded batch.
    """

    def __init__(
        self, lengths: Sequence[int], positions: Tensor, width: int, columns: Tensor | None = None
    ) -> None:
        self.lengths = list(lengths)
        self.offsets = [0, *accumulate(self.lengths)]
        self.positions = positions
        self.width = width
        self._columns = columns

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[int], device: torch.device | str = "cpu"
    ) -> PackedLayout:
        """The layout of sequences that are already packed; BOS and EOS count in `lengths`."""
        places = [torch.arange(length, device=device) for length in lengths]
        positions = torch.cat(places) if places else torch.empty(0, dtype=torch.int64)
        return cls(lengths, positions, max(lengths, default=0))

    @classmethod
    def from_mask(cls, mask: Tensor) -> PackedLayout:
        """The layout of the tokens where `mask` (B, L) is not zero.

        As in the reference, positions are columns of the padded batch: gaps in the mask and padding
        on the left shift what follows. Raises InputError for a mask without any token.
        """
        keep = mask.bool()
        columns = keep.flatten().nonzero().squeeze(1)
        if not len(columns):
            raise InputError("the attention mask is zero everywhere; give at least one token")
        return cls(keep.sum(1).tolist(), columns % mask.shape[1], mask.shape[1], columns)

    @property
    def tokens(self) -> int:
        """T, the packed tokens of all sequences."""
        return self.offsets[-1]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence; 0 without sequences."""
        return max(self.lengths, default=0)

    @cached_property
    def groups(self) -> list[tuple[int, int, int]]:
        """Runs of neighbours of equal length: (first token, sequences, tokens of each)."""
        runs, start = [], 0
        for length, run in groupby(self.lengths):
            count = len(list(run))
            if length:
                runs.append((start, count, length))
            start += count * length
        return runs

    @cached_property
    def group_sequences(self) -> list[slice]:
        """The sequences of each group, as slices of the batch."""
        slices, first = [], 0
        for length, run in groupby(self.lengths):
            count = len(list(run))
            if length:
                slices.append(slice(first, first + count))
            first += count
        return slices

    @cached_property
    def sequence(self) -> Tensor:
        """(T,) int64: the number of the sequence of each token."""
        device = self.positions.device
        lengths = torch.tensor(self.lengths, device=device, dtype=torch.int64)
        places = torch.arange(len(self.lengths), device=device)
        return places.repeat_interleave(lengths, output_size=self.tokens)

    @cached_property
    def cumulative(self) -> Tensor:
        """(B + 1,) int32: `offsets` on the device, as kernels for variable lengths take them."""
        return torch.tensor(self.offsets, dtype=torch.int32, device=self.positions.device)

    @cached_property
    def firsts(self) -> Tensor:
        """(B,) int64: the first token of each sequence."""
        return self.cumulative[:-1].long()

    @property
    def columns(self) -> Tensor:
        """(T,) int64: the index of each token in the flattened padded batch (B * width)."""
        if self._columns is None:
            self._columns = self.sequence * self.width + self.positions
        return self._columns

    def first(self, packed: Tensor) -> Tensor:
        """(T, …) → (B, …): the first token of each sequence, zeros for an empty one."""
        if all(self.lengths):
            return packed.index_select(0, self.firsts)
        device = packed.device
        present = torch.tensor([length > 0 for length in self.lengths], device=device)
        found = packed.new_zeros(len(self.lengths), *packed.shape[1:])
        return found.index_copy(0, present.nonzero()[:, 0], packed[self.firsts[present]])

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, …) → (T, …): the attended tokens of a padded batch."""
        flat = padded.flatten(0, 1)
        return flat if len(flat) == self.tokens else flat.index_select(0, self.columns)

    def unpack(self, packed: Tensor, width: int) -> Tensor:
        """(T, …) → (B, width, …): zeros where the mask is zero; a view if it is zero nowhere."""
        shape = (len(self.lengths), width, *packed.shape[1:])
        if self.tokens == shape[0] * width:
            return packed.view(shape)
        padded = packed.new_zeros(shape[0] * width, *packed.shape[1:])
        return padded.index_copy(0, self.columns, packed).view(shape)
