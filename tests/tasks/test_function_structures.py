"""`fold` and `classify` as functions: the structures and tables of the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from esm_pipeline import (
    EsmForProteinFolding,
    EsmForSequenceClassification,
    classify,
    fold,
    optimize_for_inference,
)
from esm_pipeline.errors import InputError
from tests.tasks.classify.classifying import MULTI, RESIDUE, SEQUENCE, save
from tests.tasks.function_inputs import (
    QUIET,
    SEQUENCES,
    SKIPPED,
    as_frame,
    write_fasta,
)

pytestmark = QUIET


@pytest.fixture
def fasta(tmp_path):
    return write_fasta(tmp_path / "in.fasta")


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """The command's files of structures, by the demo model."""
    from esm_pipeline.cli import main

    place = tmp_path_factory.mktemp("folded")
    fasta = write_fasta(place / "in.fasta")
    flags = ("--num-recycles=1", "--formats=pdb,cif", "--pae=npz")
    assert main(["fold", "--quiet", "--model=demo", *flags, str(fasta), str(place / "out")]) == 0
    return place / "out"


def atom_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("ATOM")]


def structure_differences(
    result, folder: Path, lines: Callable[[str], list[str]] = str.splitlines
) -> list[str]:
    """What of a `FoldResult` is not as in the command's files, of which `lines` count."""
    table = pd.read_csv(folder / "structures.tsv", sep="\t", keep_default_na=False, dtype=str)
    wrong = []
    for place, row in table.iterrows():
        ours = result.table.iloc[place]
        if (ours["id"], ours["status"]) != (row["id"], row["status"]):
            wrong.append(f"{row['id']}: outcome")
        if row["status"] != "ok":
            continue
        found = result[place]
        file = folder / row["file"]
        own = file.name.startswith(f"{place}_")  # of equal sequences, only the first has a file
        for text, suffix in ((found.pdb, ".pdb"), (found.cif, ".cif")) if own else ():
            if lines(text) != lines(file.with_suffix(suffix).read_text()):
                wrong.append(f"{row['id']}{suffix}")
        with np.load(folder / "pae" / file.parent.name / f"{file.stem}.npz") as arrays:
            with_atoms = ~np.isnan(found.plddt)  # the files leave out the others
            errors = found.pae[np.ix_(with_atoms, with_atoms)]
            if not np.array_equal(errors, arrays["pae"] * arrays["step"]):
                wrong.append(f"{row['id']}: PAE")
        shown = (f"{ours['plddt']:.2f}", f"{ours['ptm']:.4f}", ours["flags"])
        more = (str(ours["num_conf"]), ours["crc64"])
        if more != (row["num_conf"], row["crc64"]):
            wrong.append(f"{row['id']}: num_conf or crc64")
        if shown != (row["plddt"], row["ptm"], row["flags"]):
            wrong.append(f"{row['id']}: table")
        known = not np.isnan(found.plddt).any()  # an X has no atoms
        if known and abs(found.plddt.mean() - found.mean_plddt) > 1e-4:
            wrong.append(f"{row['id']}: pLDDT")
    return wrong


def test_fold_gives_the_files_of_the_command(folded):
    result = fold(SEQUENCES, "demo", num_recycles=1)
    assert structure_differences(result, folded) == []
    assert [one.id for one in result] == [
        name for name in SEQUENCES if name not in ("gap", "nothing")
    ]
    assert [*result.table.columns] == [
        name
        for name in (folded / "structures.tsv").read_text().splitlines()[0].split("\t")
        if name not in ("index", "file")
    ]
    assert result.keys() == [one.id for one in result]
    assert "gap" not in result
    assert "chains" in result
    assert result["chains"].sequence == "MKV:GAV"
    assert result["chains"].iptm is not None
    assert result["a"].iptm is None
    assert structure_differences(fold(SEQUENCES, "demo", num_recycles=0), folded) != []


def test_fold_of_a_frame_and_a_loaded_model(folded):
    with pytest.warns(UserWarning, match="demo model for folding has random weights") as caught:
        model = EsmForProteinFolding.from_pretrained("demo")
    assert caught[0].filename == __file__
    for given in (model, optimize_for_inference(model)):
        result = fold(as_frame(), given, num_recycles=1)
        assert structure_differences(result, folded, atom_lines) == []
        assert result.table.index.equals(as_frame().index)


def test_a_structure_is_saved(tmp_path):
    one = fold({"P1/2": "MKTAYIAK"}, "demo", num_recycles=0)["P1/2"]
    assert one.save(tmp_path / "x.pdb").read_text() == one.pdb
    assert one.save(str(tmp_path / "x.CIF")).read_text() == one.cif
    assert repr(one).startswith("<PredictedStructure 'P1/2': 8 residues, pLDDT")
    assert one.plddt.shape == (8,)
    assert one.pae.shape == (8, 8)
    with pytest.raises(InputError, match=r"x\.txt: let its name end in \.pdb or \.cif"):
        one.save(tmp_path / "x.txt")
    assert not (tmp_path / "x.txt").exists()


# classify


@pytest.mark.parametrize("problem", ["single_label_classification", MULTI, "regression"])
def test_classify_gives_the_table_of_the_command(esm, fasta, tmp_path, problem):
    save(tmp_path / "m", SEQUENCE, problem_type=problem)
    out, flags = tmp_path / "c.parquet", ("--model", tmp_path / "m", "--threshold", 0.4)
    assert esm("classify", "--quiet", *flags, fasta, out)[0] == 0
    theirs = pd.read_parquet(out)
    ours = classify(SEQUENCES, tmp_path / "m", threshold=0.4)
    assert ours.drop(columns="reason").equals(theirs.drop(columns="reason"))
    assert (ours["reason"] != "").tolist() == (theirs["reason"] != "").tolist()
    assert {*ours.loc[ours["status"] == "skipped", "id"]} == SKIPPED
    model = EsmForSequenceClassification.from_pretrained(tmp_path / "m")
    of_frame = classify(as_frame(), model, threshold=0.4)
    assert of_frame.index.equals(as_frame().index)
    assert of_frame.reset_index(drop=True).equals(ours.drop(columns=["index", "id"]))
    assert not classify(SEQUENCES, tmp_path / "m", threshold=0.4, dtype="bfloat16").equals(ours)
    if problem == MULTI:
        assert not classify(SEQUENCES, tmp_path / "m", threshold=0.9).equals(ours)


def test_classify_residues(esm, fasta, tmp_path):
    save(tmp_path / "m", RESIDUE)
    out = tmp_path / "c.parquet"
    assert esm("classify", "--quiet", "--model", tmp_path / "m", fasta, out)[0] == 0
    ours = classify(SEQUENCES, tmp_path / "m")
    assert ours.equals(pd.read_parquet(out))
    assert list(ours.columns[:5]) == ["id", "index", "position", "residue", "label"]
    with pytest.raises(InputError, match="set of to residues"):
        classify(SEQUENCES, tmp_path / "m", of="sequences")
