"""The table of variants with the scores behind: which columns, and what stands in every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Float64
from esm_pipeline.errors import InputError
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome
from esm_pipeline.formats.tables.base import Block, Column, Table, Writer
from esm_pipeline.tasks.score.variant_rows import LIKELIHOOD, Reader

if TYPE_CHECKING:
    from esm_pipeline.tasks.score.strategies import Strategy


def score_names(strategy: str) -> list[str]:
    """The values that a strategy gives each row."""
    return [strategy, f"{strategy}_ratio"] if strategy == LIKELIHOOD else [strategy]


def added_columns(strategy: str, labels: Sequence[str]) -> list[Column]:
    """Status, reason, the values (means over the models), those of each of several models."""
    names = score_names(strategy)
    each = [f"{name}.{label}" for name in names for label in labels] if len(labels) > 1 else []
    return [Column("status", "text"), Column("reason", "text"), *map(Column, [*names, *each])]


class Scores:
    """What the models say of the N rows: `values` has an (N,) for each added column of numbers."""

    def __init__(self, strategy: Strategy, by_model: Sequence[Sequence[Float64]]) -> None:
        self.strategy = strategy
        columns = list(zip(*by_model, strict=True))
        self.values = [sum(column) / len(column) for column in columns]
        if len(by_model) > 1:
            self.values += [value for column in columns for value in column]
        self.failed = strategy.ready & np.isnan(sum(self.values))

    def write(self, writer: Writer, table: Table, reader: Reader) -> Counter[str]:
        """Write every row of `table`; returns the number of each status."""
        counts: Counter[str] = Counter()
        done, total = 0, len(self.failed)
        for block in table.blocks(reader.columns):
            outcomes = self._outcomes(block, reader, done)
            counts.update(outcome.status for outcome in outcomes)
            part = slice(done, done + len(outcomes))
            statuses, reasons = zip(*outcomes, strict=True)
            writer.write(block, [statuses, reasons, *(value[part] for value in self.values)])
            done += len(outcomes)
        if done != total:
            raise InputError(f"{table.path}: was changed while it was read; run again")
        return counts

    def _outcomes(self, block: Block, reader: Reader, first: int) -> list[Outcome]:
        """What became of the rows of a block."""
        found = []
        for row, cells in enumerate(block.cells, first):
            if row < len(self.failed) and self.strategy.rows.protein[row] >= 0:
                found.append(self.strategy.outcome(row, bool(self.failed[row])))
            else:
                found.append(Outcome(SKIPPED, reader.reason(cells)))
        return found


def told(counts: Counter[str], unit: str) -> str:
    """How many of what became of what, for a summary."""
    each = ", ".join(f"{counts[status]:,} {status}" for status in (OK, SKIPPED, FAILED))
    return f"{counts.total():,} {unit}: {each}"
