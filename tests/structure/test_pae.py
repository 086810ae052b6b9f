"""Aligned errors as files: what viewers read, what numpy reads, what comes back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from esm_pipeline.structure.pae import MOST, json_bytes, npz_bytes, to_angstrom, to_steps
from tests.folded import read_pae

KINDS = {"json": json_bytes, "npz": npz_bytes}


@pytest.fixture
def steps():
    """Not symmetric, with the smallest and the largest that can be."""
    values = np.random.default_rng(0).integers(2, 255, size=(7, 7), dtype=np.uint8)
    values[0, 1], values[1, 0] = 2, 254
    return values


def test_steps_are_the_nearest_eighth():
    error = np.linspace(0.25, MOST, 10_000).astype(np.float32)
    assert np.abs(to_angstrom(to_steps(error)) - error).max() <= 0.0625 + 1e-6
    assert to_angstrom(to_steps(np.float32([0.25, MOST]))).tolist() == [0.25, MOST]
    assert to_steps(np.array([-1.0, 1e9, np.nan])).tolist() == [0, 255, 255]


def test_json_has_the_layout_of_the_alphafold_database(steps):
    (found,) = json.loads(json_bytes(steps))
    assert list(found) == ["predicted_aligned_error", "max_predicted_aligned_error"]
    assert found["max_predicted_aligned_error"] == 31.75
    rows = found["predicted_aligned_error"]
    assert np.abs(np.array(rows) - to_angstrom(steps)).max() <= 0.05 + 1e-6
    assert rows[0][1] < 1 < 31 < rows[1][0]


def test_npz_is_compact_and_says_what_a_step_is(steps, tmp_path):
    (tmp_path / "a.npz").write_bytes(npz_bytes(steps))
    with np.load(tmp_path / "a.npz") as file:
        assert file["pae"].dtype == np.uint8
        np.testing.assert_array_equal(file["pae"] * file["step"], to_angstrom(steps))
    large = np.full((500, 500), 20, np.uint8)
    assert len(npz_bytes(large)) < 5_000


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_read_back(steps, tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(KINDS[kind](steps))
    found = read_pae(path)
    assert found.dtype == np.float32
    assert np.abs(found - to_angstrom(steps)).max() <= (0.0501 if kind == "json" else 0)
    assert path.read_bytes() == KINDS[kind](steps)
