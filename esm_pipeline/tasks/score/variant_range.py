"""The rows of a range of a variant bundle, as a table, and their wild types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.errors import InputError
from esm_pipeline.formats.bundles import REMOVE_FOLDER, Range
from esm_pipeline.formats.tables.base import ROWS_AT_ONCE, Block, Table
from esm_pipeline.formats.variant_bundles import VARIANT_COLUMNS, VariantBundle
from esm_pipeline.settings.sections import AS_VALIDATED, CleaningSettings
from esm_pipeline.tasks.common.sequences import SequenceSet, read_entries
from esm_pipeline.tasks.score.work import VARIANTS_WORK


class RangeBlock(Block):
    """Rows with all their cells, of which `places` are wanted."""

    def __init__(self, rows: list[list[str]], places: list[int]) -> None:
        self._rows, self.count = rows, len(rows)
        self.cells = [[row[place] for place in places] for row in rows]

    def rows(self) -> Iterator[list[str]]:
        """All cells of each row."""
        return iter(self._rows)


class RangeTable(Table):
    """The rows of a range, in the order of the table that was split. Takes 60 bytes a row.

    `numbers` (n,) are their places there. Raises InputError for lines that `split` does not write.
    """

    def __init__(self, path: str, lines: bytes) -> None:
        super().__init__(path, [*VARIANT_COLUMNS])
        self._text = lines
        ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))
        starts = np.append(0, ends + 1)[: len(ends)]
        try:
            numbers = [int(lines[start : lines.index(b"\t", start)]) for start in starts.tolist()]
        except ValueError:
            raise self.malformed() from None
        order = np.argsort(numbers, kind="stable")
        self.numbers: Int64 = np.array(numbers, np.int64)[order]
        self._starts, self._ends = starts[order], ends[order]

    def blocks(self, wanted: Sequence[str]) -> Iterator[RangeBlock]:
        """All rows, with the cells of the columns `wanted`."""
        places = self.places(wanted)
        for first in range(0, len(self.numbers), ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            spans = zip(self._starts[part].tolist(), self._ends[part].tolist(), strict=True)
            rows = [self._text[start:end].decode("ascii").split("\t") for start, end in spans]
            if any(len(row) != len(self.columns) for row in rows):
                raise self.malformed()
            yield RangeBlock(rows, places)

    def malformed(self) -> InputError:
        """The error that the rows are not as `split` writes them."""
        return InputError(f"{self.path}: not the rows of a variant table; {REMOVE_FOLDER}")


@dataclass(frozen=True)
class VariantPart:
    """The range `part` of a variant bundle: which groups it has."""

    bundle: VariantBundle
    part: Range
    span: slice

    @classmethod
    def open(cls, rows: Path, fasta: Path, part: Range) -> VariantPart:
        """Find the range. Raises InputError if the bundle is missing or damaged."""
        bundle = VariantBundle.open(rows, fasta)
        return cls(bundle, part, bundle.span(VARIANTS_WORK, part))

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to score, and the first range tells of the models."""
        return self.span.start == self.span.stop and self.part.number > 1

    @property
    def attributes(self) -> dict[str, str]:
        """What identifies the range, in the file of its scores."""
        return {
            "bundle": self.bundle.sha256,
            "range": self.part.name,
            "first": str(self.span.start),
            "stop": str(self.span.stop),
        }

    def table(self) -> RangeTable:
        """The rows. Raises InputError if they are damaged."""
        return RangeTable(str(self.bundle.table), self.bundle.lines(self.span))

    def sequences(self, cleaning: CleaningSettings, spool_dir: Path) -> SequenceSet:
        """The wild types. Raises InputError if they are damaged."""
        entries = [(0, name, text) for name, text in self.bundle.wild_types(self.span)]
        return read_entries([entries], cleaning.model_copy(update=AS_VALIDATED), spool_dir)
