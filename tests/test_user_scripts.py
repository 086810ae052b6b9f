"""Scripts as users write them: they pass `mypy --strict`, and run with the packaged models."""

from __future__ import annotations

import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from esm_pipeline import EsmForTokenClassification, EsmTokenizer
from esm_pipeline.cli import main

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "tests" / "typing").glob("*.py"))
PROTEINS = ROOT / "esm_pipeline" / "data" / "demo.fasta"
FIRST = 4
"""Proteins that the slower commands are run with."""

MISTAKES = {
    "from esm_pipeline import embed\nembed(['MKT'], 'demo').maen": "has no attribute",
    "from esm_pipeline import embed\nembed(['MKT'], 'demo', layer=3)": "Unexpected keyword",
    "from esm_pipeline import embed\nembed(['MKT'], 'demo', include='means')": "incompatible type",
    "from esm_pipeline import score\nscore(['M1A'], 'demo', sequence=3)": "No overload",
    "from esm_pipeline import open_results\n"
    "open_results('a', 'saturation')['x'].mean": "has no attribute",
    "from esm_pipeline import open_results\nopen_results('a')[0].mean": "has no attribute",
    "from esm_pipeline import open_results\nopen_results('a', 'embedding')": "No overload",
    "from esm_pipeline import fold\nfold(['MKT'], 'demo')[0].pdb + 1": "Unsupported operand",
    "from esm_pipeline import EsmModel\nEsmModel.from_pretrained('demo')('MKT')": "No overload",
    "from esm_pipeline import EsmForMaskedLM, EsmTokenizer\n"
    "m, t = EsmForMaskedLM.from_pretrained('demo'), EsmTokenizer.standard()\n"
    "m(**t('MKT', return_tensors='pt')).logit": "has no attribute",
    "from esm_pipeline import EsmTokenizer\n"
    "EsmTokenizer.standard()(['MKT'])['input_ids'].shape": "has no attribute",
    "from esm_pipeline import optimize_for_inference\noptimize_for_inference(3)": "cannot be",
}
"""Scripts with a mistake, and what mypy says of it: were the types `Any`, it would say nothing."""


def strictly_checked(*paths: Path) -> list[str]:
    """What `mypy --strict`, as the project is checked, says of files."""
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *map(str, paths)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stderr == ""
    return found.stdout.splitlines()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What mypy says of all scripts, and of those with mistakes."""
    folder = tmp_path_factory.mktemp("mistakes")
    for number, text in enumerate(MISTAKES):
        (folder / f"mistake_{number:02d}.py").write_text(text + "\n")
    return strictly_checked(*SCRIPTS, *sorted(folder.iterdir()))


def test_scripts_pass_mypy(said):
    assert len(SCRIPTS) >= 10
    assert [line for line in said if "mistake_" not in line.split(":")[0]] == []


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_is_seen(said, number):
    own = [line for line in said if f"mistake_{number:02d}.py:" in line and ": error:" in line]
    assert any([*MISTAKES.values()][number] in line for line in own), own


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a result of each kind that the scripts read."""
    folder = tmp_path_factory.mktemp("results")
    few = "".join(f">{one}" for one in PROTEINS.read_text().split(">")[1 : FIRST + 1])
    (folder / "few.fasta").write_text(few)
    (folder / "short.fasta").write_text(">sp|P1|A_B\nMKTAYIAK\n>P2\nMKV\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        EsmForTokenClassification.from_pretrained("demo", num_labels=2).save_pretrained(
            folder / "c"
        )
    EsmTokenizer.standard().save_pretrained(folder / "c")
    for arguments in (
        ("embed", "--model=demo", PROTEINS, folder / "embeddings.h5"),
        ("score", "--model=demo", "--saturation", folder / "short.fasta", folder / "saturation.h5"),
        (
            "classify",
            f"--model={folder / 'c'}",
            folder / "few.fasta",
            folder / "residue_classes.h5",
        ),
        (
            "fold",
            "--model=demo",
            "--num-recycles=0",
            folder / "short.fasta",
            folder / "structures.h5",
        ),
    ):
        assert main([*map(str, arguments), "--quiet"]) == 0
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs(script, results, monkeypatch, capsys):
    monkeypatch.chdir(results)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out
