"""Aligned errors as files: what viewers read, what numpy reads, what comes back."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import gemmi
import numpy as np
import pytest

from esm_pipeline.structure.pae import (
    MOST,
    cif_bytes,
    json_bytes,
    npz_bytes,
    to_angstrom,
    to_steps,
)
from tests.folded import made_up, read_pae

KINDS = {"json": json_bytes, "npz": npz_bytes}
ALPHAFOLD_DB = ["predicted_aligned_error", "max_predicted_aligned_error"]
"""The keys of its files, version 4: https://alphafold.ebi.ac.uk/faq."""


@pytest.fixture
def structure():
    """Errors that are not symmetric, with the smallest and the largest that can be."""
    found = made_up("MKVLATG")
    found.pae[0, 1], found.pae[1, 0] = 2, 254
    return found


@pytest.fixture
def steps(structure):
    return structure.pae


def test_steps_are_the_nearest_eighth():
    error = np.linspace(0.25, MOST, 10_000).astype(np.float32)
    assert np.abs(to_angstrom(to_steps(error)) - error).max() <= 0.0625 + 1e-6
    assert to_angstrom(to_steps(np.float32([0.25, MOST]))).tolist() == [0.25, MOST]
    assert to_steps(np.array([-1.0, 1e9, np.nan])).tolist() == [0, 255, 255]


def test_json_has_the_layout_of_the_alphafold_database(structure, steps):
    (found,) = json.loads(json_bytes(structure))
    assert list(found) == [*ALPHAFOLD_DB, "token_chain_ids", "token_res_ids"]
    assert found["max_predicted_aligned_error"] == 31.75
    rows = found["predicted_aligned_error"]
    assert np.abs(np.array(rows) - to_angstrom(steps)).max() <= 0.05 + 1e-6
    assert rows[0][1] < 1 < 31 < rows[1][0]


def test_npz_is_compact_and_says_what_a_step_is(structure, steps, tmp_path):
    (tmp_path / "a.npz").write_bytes(npz_bytes(structure))
    with np.load(tmp_path / "a.npz") as file:
        assert file["pae"].dtype == np.uint8
        np.testing.assert_array_equal(file["pae"] * file["step"], to_angstrom(steps))
    large = replace(made_up("M" * 500), pae=np.full((500, 500), 20, np.uint8))
    assert len(npz_bytes(large)) < 5_000


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_read_back(structure, steps, tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(KINDS[kind](structure))
    found = read_pae(path)
    assert found.dtype == np.float32
    assert np.abs(found - to_angstrom(steps)).max() <= (0.0501 if kind == "json" else 0)
    assert path.read_bytes() == KINDS[kind](structure)


def test_residues_without_atoms_have_no_row():
    """As many rows as residues in the structure, each with its chain and its number."""
    structure = made_up("XMXK", "UBV")
    there = [1, 3, 4, 6]
    wanted = to_angstrom(structure.pae[np.ix_(there, there)])
    (found,) = json.loads(json_bytes(structure))
    assert np.abs(np.array(found["predicted_aligned_error"]) - wanted).max() <= 0.0501
    assert found["token_chain_ids"] == ["A", "A", "B", "B"]
    assert found["token_res_ids"] == [2, 4, 1, 3]
    with np.load(io.BytesIO(npz_bytes(structure))) as file:
        np.testing.assert_array_equal(file["pae"] * file["step"], wanted)
        assert (file["chain"].tolist(), file["residue"].tolist()) == (
            ["A", "A", "B", "B"],
            [2, 4, 1, 3],
        )
    block = gemmi.cif.read_string(cif_bytes(structure, "0_a").decode()).sole_block()
    items = [f"{name}_{one}" for one in (1, 2) for name in ("label_asym_id", "label_seq_id")]
    rows = [[*row] for row in block.find("_ma_qa_metric_local_pairwise.", [*items, "metric_value"])]
    names = [("A", "2"), ("A", "4"), ("B", "1"), ("B", "3")]
    assert [tuple(row[:4]) for row in rows] == [(*a, *b) for a in names for b in names]
    assert [float(row[4]) for row in rows] == wanted.ravel().tolist()
    metric = block.find("_ma_qa_metric.", ["id", "mode", "type"])[0]
    assert [*metric][1:] == ["local-pairwise", "PAE"]
    used = {*block.find_values("_ma_qa_metric_local_pairwise.metric_id")}
    assert used == {metric[0]}
