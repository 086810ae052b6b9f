"""Which checkpoints `classify` takes, and which labels; what the settings know of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esm_pipeline import (
    EsmConfig,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmModel,
    EsmTokenizer,
    open_results,
)
from esm_pipeline.cli import main
from esm_pipeline.errors import InputError
from esm_pipeline.settings import load_settings
from tests.oracles.peers import ESM2, SMALL
from tests.tasks.classify.classifying import (
    FASTA,
    MULTI,
    RESIDUE,
    SEQUENCE,
    change_config,
    classify,
    refused,
    rows,
    save,
)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(FASTA)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "m"


@pytest.mark.parametrize(
    "architectures", [None, ["MyOwnClassifier"], "EsmForTokenClassification", [7]]
)
@pytest.mark.parametrize("name", [SEQUENCE, RESIDUE])
def test_the_head_tells_where_the_config_does_not(
    name: str, architectures: Any, model: Path, fasta: Path, tmp_path: Path
) -> None:
    save(model, name)
    change_config(model, lambda config: config.update(architectures=architectures))
    assert classify(model, fasta, tmp_path / "o.h5") == 0
    with open_results(tmp_path / "o.h5") as results:
        assert results["a"].p.shape == ((3,) if name == SEQUENCE else (22, 3))


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (
            "EsmForMaskedLM",
            (),
            "has no classifier, it is an EsmForMaskedLM; give a checkpoint",
        ),
        (
            "EsmModel",
            (),
            "has no classifier, it is an EsmModel; give a checkpoint",
        ),
        (RESIDUE, ("--of=sequences",), "--of is 'sequences', but "),
        (SEQUENCE, ("--of=residues",), "(tmp); set --of to sequences"),
    ],
)
def test_checkpoints_of_other_heads(
    name: str, flags: tuple[str, ...], message: str, model: Path, fasta: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save(model, name)
    message = message.replace("(tmp)", f"{model} is an {name}")
    assert message in refused(capsys, model, fasta, tmp_path / "o.tsv", *flags)
    assert main(["download", f"--model={model}", "classify", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_classifier_is_not_made_up(
    model: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    EsmModel(EsmConfig(**SMALL, **ESM2), add_pooling_layer=False).save_pretrained(model)
    EsmTokenizer.standard().save_pretrained(model)
    change_config(model, lambda config: config.update(architectures=[SEQUENCE]))
    said = refused(capsys, model, fasta, tmp_path / "o.tsv")
    assert "no 'classifier.dense.bias' among its weights, the classifier was never trained" in said
    assert main(["download", f"--model={model}", "classify"]) == 2


@pytest.mark.parametrize(
    ("labels", "problem", "message"),
    [
        ({0: "a\tb", 1: "c"}, None, r"label 'a\tb' in id2label cannot name a column; rename it"),
        ({0: "a\nb", 1: "c"}, None, r"label 'a\nb' in id2label cannot name a column"),
        ({0: "\ud800", 1: "c"}, None, r"label '\ud800' in id2label cannot name a column"),
        ({0: " ", 1: "b"}, None, "label ' ' in id2label cannot name a column"),
        (
            {0: "a"},
            "single_label_classification",
            "whose probability is always 1; set problem_type",
        ),
        ({0: "a", 1: "a"}, None, "label 'a' appears twice in id2label; rename one"),
        ({0: "a;b", 1: "c"}, MULTI, "label 'a;b' in id2label has a ';', which separates several"),
        ({1: "a", 2: "b"}, None, "has 2 labels, but not for the numbers from 0 to 1; give each"),
    ],
)
def test_labels_that_no_table_can_have(
    labels: dict[int, str], problem: str | None, message: str, model: Path, fasta: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save(model, SEQUENCE, problem_type=problem, id2label={0: "x", 1: "y"})
    change_config(model, lambda config: config.update(id2label=labels, label2id={}))
    assert message in refused(capsys, model, fasta, tmp_path / "o.tsv")


def test_odd_labels_that_a_table_can_have(model: Path, fasta: Path, tmp_path: Path) -> None:
    labels = {0: 'say "a;b", or', 1: "µ $x$", 2: 7}
    save(model, SEQUENCE, id2label={0: "x", 1: "y", 2: "z"})
    change_config(model, lambda config: config.update(id2label=labels, label2id={}))
    for name in ("o.tsv", "o.csv"):
        assert classify(model, fasta, tmp_path / name) == 0
        table = rows(tmp_path / name)
        assert list(table["a"])[-3:] == ['p.say "a;b", or', "p.µ $x$", "p.7"]
        assert {row["label"] for row in table.values()} <= {"", *map(str, labels.values())}


@pytest.mark.parametrize(
    ("out", "flags", "message"),
    [
        (
            "o.txt",
            (),
            "o.txt: cannot be written; let its name end in .h5, .hdf5, .tsv, .csv, .parquet",
        ),
        ("in.fasta.tsv", ("--threshold=2",), "--threshold = '2': should be a number from 0 to 1"),
        ("o.tsv", ("--of=both",), "--of = 'both': should be 'auto', 'sequences' or 'residues'"),
        ("o.tsv", ("--provenance=in.fasta",), "in.fasta: the input itself"),
    ],
)
def test_unusable_arguments_are_one_line(
    out: str, flags: tuple[str, ...], message: str, model: Path, fasta: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save(model, SEQUENCE)
    assert message in refused(capsys, model, fasta, tmp_path / out, *flags)


# What the workflow knows before any job.


@pytest.mark.parametrize(("name", "of"), [(SEQUENCE, "sequences"), (RESIDUE, "residues")])
def test_the_settings_know_what_a_local_model_classifies(
    name: str, of: str, model: Path, fasta: Path
) -> None:
    models = {SEQUENCE: EsmForSequenceClassification, RESIDUE: EsmForTokenClassification}
    models[name](EsmConfig(**SMALL, **ESM2)).save_pretrained(model)
    config = {"fasta": str(fasta), "tasks": ["embed", "classify"], "revision": "abc"}
    own = load_settings({**config, "classify": {"model": str(model)}})
    assert own.classified() == of
    assert [own.models()[key].tasks for key in ("model.json", "classify_model.json")] == [
        ["embed"],
        ["classify"],
    ]
    assert own.models()["classify_model.json"].revision is None
    shared = load_settings({**config, "model": str(model)})
    assert shared.classified() == of
    assert shared.models()["model.json"] == (str(model), "abc", ["embed", "classify"])
    hub = load_settings({**config, "classify": {"model": "someone/model"}})
    with pytest.raises(InputError, match="what model 'someone/model' classifies; set it to seq"):
        hub.classified()
    settings = {"model": "someone/model", "revision": "def", "of": "residues"}
    hub = load_settings({**config, "classify": settings})
    assert hub.classified() == "residues"
    assert hub.models()["classify_model.json"].revision == "def"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"revision": "abc"}, "'revision' is that of 'model'; name one, or leave it out"),
        ({"threshold": True}, "'classify.threshold' = True: should be a number"),
        ({"threshold": "half"}, "'classify.threshold' = 'half': should be a number from 0 to 1"),
    ],
)
def test_settings_that_cannot_be(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_settings({"fasta": "x", "classify": section})
