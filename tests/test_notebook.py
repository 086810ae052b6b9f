"""The notebook of the first hour runs from top to bottom, and is committed without its results."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "workflow" / "docs" / "first_hour.ipynb"
SECONDS = 300
"""Of one cell, on a busy machine."""


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def run(notebook: nbformat.NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run all cells in a folder. Raises CellExecutionError."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [one for cell in notebook.cells for one in cell.get("outputs", [])]


def test_it_runs_and_shows_what_it_says(tmp_path, monkeypatch):
    notebook = read()
    run(notebook, tmp_path, monkeypatch)
    shown = outputs(notebook)
    pictures = [one for one in shown if "image/png" in one.get("data", {})]
    texts = "\n".join(one.get("data", {}).get("text/plain", one.get("text", "")) for one in shown)
    assert len(pictures) == 3
    for expected in (
        "62 records",
        "(62, 192)",
        "61 records",
        "similarity",
        "residue 99 does not exist",
        "plddt",
    ):
        assert expected in texts
    near = re.findall(r"^\d +(\S+\|\S+) +\d+ +[\d.]+ +[\d.]+$", texts, re.M)
    assert len(near) == 10
    assert near[:5] == near[5:]  # in memory and in the file
    assert (tmp_path / "P84927.pdb").read_text().startswith("HEADER")


def test_a_cell_that_fails_is_seen(tmp_path, monkeypatch):
    notebook = read()
    notebook.cells = [*notebook.cells[:2], nbformat.v4.new_code_cell("embed(['MKT'], 'nowhere')")]
    with pytest.raises(CellExecutionError, match="WeightsError"):
        run(notebook, tmp_path, monkeypatch)


def test_it_is_committed_without_results():
    notebook = read()
    assert outputs(notebook) == []
    assert {cell.get("execution_count") for cell in notebook.cells} == {None}
    assert not re.search(r"/(home|root|Users|tmp)/", NOTEBOOK.read_text())
