"""The variant table as `score` and `split` read it: twice, without a change in between."""

from __future__ import annotations

import numpy as np
import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats.tables.open import open_table
from esm_pipeline.settings.sections import CleaningSettings, VariantSettings
from esm_pipeline.tasks.score.variant_table import VariantTable
from esm_pipeline.tasks.score.wild_types import open_wild_types
from tests.tasks.score.scoring import WILD_TYPE


@pytest.fixture
def variants(tmp_path):
    """A table with a row that can be scored and one that cannot, in the file `in.csv`."""
    (tmp_path / "wt.fasta").write_text(f">a\n{WILD_TYPE}\n")
    path = tmp_path / "in.csv"
    path.write_text("mutant\nK2L\nL2K\n")
    settings, cleaning = VariantSettings(), CleaningSettings()
    table = open_table(path)
    with open_wild_types(
        [str(tmp_path / "wt.fasta")], table, settings, cleaning, tmp_path
    ) as found:
        yield VariantTable(table, found, settings, cleaning, substitutions_only=True)


def test_rows_and_reasons(variants):
    row, none = variants.rows()
    assert none is None
    assert (row.protein, row.substitutions, row.wild_type) == (0, [(1, "L")], WILD_TYPE)
    assert row.sequence == f"ML{WILD_TYPE[2:]}"
    ((first, block, reasons),) = variants.blocks_with_reasons(np.array([True, False]))
    assert (first, block.count, reasons) == (0, 2, [None, "residue 2 is K, not L"])


@pytest.mark.parametrize("rows", ["K2L\n", "K2L\nL2K\nK2S\n", "K2L\nK2S\n"])
def test_a_table_that_changes_in_between_is_refused(tmp_path, variants, rows):
    usable = np.array([row is not None for row in variants.rows()])
    (tmp_path / "in.csv").write_text(f"mutant\n{rows}")
    with pytest.raises(InputError, match=r"in\.csv: was changed while it was read; run again"):
        list(variants.blocks_with_reasons(usable))
