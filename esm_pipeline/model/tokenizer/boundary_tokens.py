"""The special tokens around a sequence or a pair of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import InputError
from esm_pipeline.model.tokenizer.vocabulary import Ids


class BoundaryTokens(NamedTuple):
    """Ids before a sequence (`<cls>`) and after it (`<eos>`); empty if there is no such token."""

    before: Ids
    after: Ids

    def around(self, first: Ids, second: Ids | None = None) -> Ids:
        """`<cls>` first `<eos>`, and for a pair second `<eos>`. Raises InputError."""
        if second is None:
            return [*self.before, *first, *self.after]
        if not self.after:
            raise InputError("a pair of sequences needs an eos_token between them; set one")
        return [*self.before, *first, *self.after, *second, *self.after]

    def mask(self, first: Sequence[int], second: Sequence[int] | None = None) -> Ids:
        """1 at the special tokens that `around` adds, 0 at the others."""
        before, after = [1] * len(self.before), [1] * len(self.after)
        mask = [*before, *[0] * len(first), *after]
        return mask if second is None else [*mask, *[0] * len(second), *after]

    def array_around(self, residues: bytes | Ids) -> Int64:
        """(L,) ids of a sequence with its special tokens; `residues` may have one id a byte."""
        start, stop = len(self.before), len(self.before) + len(residues)
        ids = np.empty(stop + len(self.after), dtype=np.int64)
        ids[:start], ids[stop:] = self.before, self.after
        if isinstance(residues, bytes):
            ids[start:stop] = np.frombuffer(residues, np.uint8)
        else:
            ids[start:stop] = residues
        return ids
