"""What the tests of the workflow share: a model and one whole run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.workflow.tools import GOLDEN, Run, config, snakemake


@pytest.fixture(scope="session")
def model() -> Path:
    return GOLDEN / "model"


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, model) -> Run:
    """Two shards of one file, in a folder whose name needs quoting."""
    folder = tmp_path_factory.mktemp("it's a run")
    shutil.copy(GOLDEN / "my proteins.fasta", folder)
    return snakemake(folder, *config(model))
