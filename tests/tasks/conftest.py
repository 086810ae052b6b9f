"""Small checkpoints with random weights, and the command line, for the tests of the tasks."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from esm_pipeline.cli import main
from esm_pipeline.model import EsmConfig, EsmForMaskedLM, EsmTokenizer
from esm_pipeline.tasks.common import progress

SHAPE = {
    "vocab_size": 33,
    "mask_token_id": 32,
    "pad_token_id": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,  # so that context matters, and a mistake shows
}
TABLE = 30
"""Residues that the position table of the absolute checkpoint holds."""


def save_model(folder: Path, seed: int = 0, **config: object) -> Path:
    """Write a checkpoint with random weights into `folder`, the same each time."""
    torch.manual_seed(seed)
    model = EsmForMaskedLM(EsmConfig(**SHAPE, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    EsmTokenizer.standard().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rotary(tmp_path_factory):
    """A checkpoint as ESM-2: rotary positions, token dropout."""
    folder = tmp_path_factory.mktemp("rotary")
    return save_model(folder, position_embedding_type="rotary", token_dropout=True)


@pytest.fixture(scope="session")
def absolute(tmp_path_factory):
    """A checkpoint as ESM-1b: a table with positions for `TABLE` residues."""
    folder = tmp_path_factory.mktemp("absolute")
    return save_model(folder, position_embedding_type="absolute", max_position_embeddings=TABLE + 4)


@pytest.fixture(autouse=True)
def no_step_is_long(monkeypatch):
    """Steps that take some seconds on a busy machine say nothing."""
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 3600.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Models this small are slower with more; every task takes its number from here."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture
def esm(capsys):
    """Run the command line; gives (exit code, lines on standard error)."""

    def run(*arguments: object) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err.splitlines()

    return run


@pytest.fixture
def files(tmp_path):
    """Write FASTA records and a table of rows; gives their paths and that of the output."""

    def write(records: dict[str, str], rows: list[dict[str, str]], suffix: str = "csv"):
        fasta, table = tmp_path / "wt.fasta", tmp_path / f"in.{suffix}"
        fasta.write_text("".join(f">{name}\n{one}\n" for name, one in records.items()))
        pd.DataFrame(rows).to_csv(table, sep="\t" if suffix == "tsv" else ",", index=False)
        return fasta, table, tmp_path / f"out.{suffix}"

    return write
