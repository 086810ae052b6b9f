"""The language model in a precision of its own, from loading on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from esm_pipeline import EsmConfig, EsmForProteinFolding
from esm_pipeline.model.checkpoints import loading
from esm_pipeline.model.folding.demo import LANGUAGE_MODEL, TRUNK, write_demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"), EsmForProteinFolding)


def dtypes(model: EsmForProteinFolding) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Those of the language model, and those of the rest."""
    own = {parameter.dtype for parameter in model.esm.parameters()}
    names = (name for name, _ in model.named_parameters() if not name.startswith("esm."))
    return own, {model.get_parameter(name).dtype for name in names}


def test_the_language_model_is_read_straight_into_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = {}
    right = loading.read_state

    def spy(*arguments: object) -> dict[str, torch.Tensor]:
        read.update(right(*arguments))  # type: ignore[arg-type]
        return dict(read)

    monkeypatch.setattr(loading, "read_state", spy)
    model = EsmForProteinFolding.from_pretrained(folder, stem_dtype=torch.bfloat16)
    assert dtypes(model) == ({torch.bfloat16}, {torch.float32})
    assert {x.dtype for name, x in read.items() if name.startswith("esm.")} == {torch.bfloat16}


def test_it_folds_as_one_that_is_converted(folder: Path) -> None:
    model = EsmForProteinFolding.from_pretrained(folder, stem_dtype=torch.bfloat16)
    converted = EsmForProteinFolding.from_pretrained(folder)
    before = converted.infer("MKTAYIA").positions
    converted.esm.to(torch.bfloat16)
    assert torch.equal(model.infer("MKTAYIA").positions, converted.infer("MKTAYIA").positions)
    assert not torch.equal(model.infer("MKTAYIA").positions, before)


def test_left_out_it_is_that_of_the_rest(folder: Path) -> None:
    for dtype in (torch.float32, torch.float64):
        model = EsmForProteinFolding.from_pretrained(folder, dtype=dtype)
        assert dtypes(model) == ({dtype}, {dtype})


def test_a_new_model_has_it_too() -> None:
    config = EsmConfig(is_folding_model=True, esmfold_config={"trunk": TRUNK}, **LANGUAGE_MODEL)
    model = EsmForProteinFolding(config, stem_dtype=torch.bfloat16)
    assert dtypes(model) == ({torch.bfloat16}, {torch.float32})
