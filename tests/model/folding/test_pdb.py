"""PDB text of the model's own methods, compared with transformers' and read back by Biopython."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from Bio.PDB import PDBParser
from Bio.PDB.Structure import Structure
from numpy.typing import NDArray
from torch import nn

from esm_pipeline import EsmForProteinFolding
from esm_pipeline.errors import InputError
from esm_pipeline.model.folding.structures import structures_of
from esm_pipeline.structure import residues
from esm_pipeline.structure.structure import MEANINGLESS
from tests.oracles.folding_peers import folding_models

Models = tuple[nn.Module, EsmForProteinFolding]
SEQUENCE = "MKTWYX" + residues.LETTERS[:20]


@pytest.fixture(scope="module")
def models() -> Models:
    return folding_models(torch.float32)


def read(text: str) -> Structure:
    return PDBParser(QUIET=True).get_structure("one", io.StringIO(text))


def numbers(text: str) -> tuple[list[tuple[int, str, str]], NDArray, NDArray]:
    """Residue, its name, and atom's name; coordinates; B-factors."""
    atoms = sorted(
        read(text).get_atoms(), key=lambda atom: (atom.get_parent().id[1], atom.get_name())
    )
    names = [(a.get_parent().id[1], a.get_parent().get_resname(), a.get_name()) for a in atoms]
    return names, np.array([a.coord for a in atoms]), np.array([a.bfactor for a in atoms])


def test_a_file_is_the_peers_but_for_the_scale_of_plddt(models: Models):
    with torch.no_grad():
        wanted = numbers(models[0].infer_pdb(SEQUENCE))
    found = numbers(models[1].infer_pdb(SEQUENCE))
    oxygen = found[0].index((26, "VAL", "OXT"))  # which the peer does not place
    found = (found[0], *(np.delete(values, oxygen, axis=0) for values in found[1:]))
    del found[0][oxygen]
    assert found[0] == wanted[0]
    assert len(found[0]) > 150
    assert {number for number, *_ in found[0]} == set(range(1, 27)) - {6}  # X has no atoms
    assert np.abs(found[1] - wanted[1]).max() <= 0.0021  # Å; a file has three decimals
    assert np.abs(found[2] - 100 * wanted[2]).max() <= 0.6  # the peer's have two, of 0–1
    assert 1 < found[2].min() < found[2].max() < 100


def test_files_hold_the_output(models: Models):
    ours = models[1]
    output = ours.infer(["MKTAY:GAV", "WX"], num_recycles=1)
    texts = ours.output_to_pdb(output)
    assert len(texts) == 2
    assert texts == ours.infer_pdbs(["MKTAY:GAV", "WX"], num_recycles=1)
    assert texts[1] == ours.output_to_pdb(dict(output.items()))[1]
    chains = list(read(texts[0]).get_chains())
    assert [chain.id for chain in chains] == ["A", "B"]
    assert [[r.id[1] for r in chain] for chain in chains] == [[1, 2, 3, 4, 5], [1, 2, 3]]
    for place, (chain, number) in enumerate([(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 1)]):
        atom = chains[chain][number]["CA"]
        assert np.abs(atom.coord - output.positions[-1, 0, place, 1].numpy()).max() <= 6e-4
        assert atom.bfactor == pytest.approx(float(output.plddt[0, place, 1]), abs=6e-3)
    assert [r.get_resname() for r in read(texts[1]).get_residues()] == ["TRP"]
    assert f"ptm: {float(output.ptm[0]):.4f}" in texts[0]
    assert f"iptm: {float(output.iptm[0]):.4f}" in texts[0]
    assert "iptm" not in texts[1]


def test_one_file_is_that_of_a_batch(models: Models):
    ours = models[1]
    assert ours.infer_pdb("GAV", num_recycles=0) == ours.infer_pdbs(["GAV"], num_recycles=0)[0]
    assert ours.infer_pdb("GAV", num_recycles=0) != ours.infer_pdb("GAV", num_recycles=1)


def test_random_weights_are_told(models: Models):
    ours = models[1]
    remark = MEANINGLESS.split(":")[0]
    assert remark not in ours.infer_pdb("GAV")
    ours.config.random_weights = True
    try:
        assert remark in ours.infer_pdb("GAV")
    finally:
        del ours.config.random_weights


def test_structures_have_no_padding(models: Models):
    output = models[1].infer(["MKTAY", "GA"], num_recycles=0)
    first, second = structures_of(output)
    assert [len(one.aatype) for one in (first, second)] == [5, 2]
    assert second.pae.shape == (2, 2)
    assert second.sequences == ["GA"]
    assert np.array_equal(second.positions, output.positions[-1, 1, :2].numpy())
    assert np.allclose(second.pae / 8, output.predicted_aligned_error[1, :2, :2], atol=0.0626)
    assert second.iptm is None
    assert second.ptm == pytest.approx(float(output.ptm[1]))


def test_places_without_an_atom_are_zeros(models: Models):
    output = models[1].infer("GXW", num_recycles=0)
    output.positions = output.positions + 1
    (one,) = structures_of(output)
    there = residues.ATOM14_MASK[one.aatype]
    assert 0 < there.sum() < there.size
    assert not one.positions[~there].any()
    assert not one.plddt[~there].any()
    assert one.positions[there].all()
    assert one.plddt[there].all()


def test_a_linker_that_a_script_masks_is_left_out(models: Models):
    """As the reference's users fold two chains, with its methods."""
    ours = models[1]
    text = ours.output_to_pdb(ours.infer("MKXGGGAV", num_recycles=0))[0]
    assert len(list(read(text).get_residues())) == 7  # X has no atoms
    output = ours.infer("MKXGGGAV", num_recycles=0)
    shown = torch.tensor([1, 1, 1, 0, 0, 0, 1, 1])[None, :, None]
    output["atom37_atom_exists"] = output["atom37_atom_exists"] * shown
    (one,) = structures_of(output)
    assert one.sequences == ["MKXAV"]
    assert one.pae.shape == (5, 5)
    text = ours.output_to_pdb(output)[0]
    names = [residue.get_resname() for residue in read(text).get_residues()]
    assert names == ["MET", "LYS", "ALA", "VAL"]


def test_outputs_with_gradients_and_in_16_bits(models: Models):
    output = models[1](torch.tensor([[0, 4, 7]]), num_recycles=0)
    assert output.positions.requires_grad
    assert models[1].output_to_pdb(output)[0].count("ATOM") >= 15
    output.positions = output.positions.bfloat16()
    assert models[1].output_to_pdb(output)[0].count("ATOM") >= 15


def test_what_makes_no_file_is_told(models: Models):
    with pytest.raises(InputError, match="use infer_pdbs for several"):
        models[1].infer_pdb(["GAV"])
    with pytest.raises(InputError, match="without atoms"):
        models[1].infer_pdb("XXX")
