"""Structures through Foldcomp and back: good geometry returns, anything else is refused."""

from __future__ import annotations

import builtins
import resource
import sys
from dataclasses import replace

import numpy as np
import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.structure import foldcomp_codec
from esm_pipeline.structure.foldcomp_codec import (
    decompressed,
    difference,
    foldcomp_entry,
    require_foldcomp,
)
from esm_pipeline.structure.pdb import pdb_text
from esm_pipeline.structure.residues import UNKNOWN, encode
from esm_pipeline.structure.structure import Structure
from tests.folded import EVERY, made_up
from tests.ideal_chains import backbone, ideal_chain

pytest.importorskip("foldcomp", reason="no foldcomp here")


def entry(structure: Structure, name: str = "P1") -> tuple[bytes, str]:
    return foldcomp_entry(structure, name, pdb_text(structure, "title", {}))


def distances(structure: Structure, text: str) -> np.ndarray:
    """Å between each atom of a structure and of a PDB text, by biotite."""
    import io

    from biotite.structure.io.pdb import PDBFile

    read = PDBFile.read(io.StringIO(text)).get_structure(1, extra_fields=["b_factor"])
    own = PDBFile.read(io.StringIO(pdb_text(structure, "", {}))).get_structure(1)
    assert len(read) == len(own)
    orders = [np.lexsort((one.atom_name, one.res_id)) for one in (read, own)]
    one, other = (array[order] for array, order in zip((read, own), orders, strict=True))
    assert (one.res_name == other.res_name).all()
    assert (one.atom_name == other.atom_name).all()
    return np.linalg.norm(one.coord - other.coord, axis=1)


def test_the_chains_of_these_tests_are_ideal():
    atoms = backbone(np.full(40, -60.0), np.full(40, -45.0)).reshape(-1, 3)
    lengths = np.linalg.norm(np.diff(atoms, axis=0), axis=1)
    np.testing.assert_allclose(lengths[:3], [1.458, 1.525, 1.329], atol=1e-6)
    rise = np.linalg.norm(atoms[3 * 36 + 1] - atoms[1]) / 36
    assert rise == pytest.approx(1.5, abs=0.1), "an alpha helix rises 1.5 Å a residue"


@pytest.mark.parametrize("size", [50, 300, 1_000])
@pytest.mark.parametrize("shape", ["helix", "strand", "loop"])
def test_good_geometry_returns(shape, size):
    structure = ideal_chain(shape, size, seed=size)
    data, why = entry(structure)
    assert why == ""
    assert len(data) < 20 * size
    found = distances(structure, decompressed(data)[1])
    assert np.sqrt((found**2).mean()) < 0.2
    assert found.max() < 1


def test_every_amino_acid_and_short_chains_return():
    for sequence in (EVERY, EVERY[::-1], "MK", "GG", "GAP"):
        structure = ideal_chain("helix", len(sequence), sequence=sequence)
        data, why = entry(structure)
        assert why == ""
        assert distances(structure, decompressed(data)[1]).max() < 1


def test_unknown_residues_at_the_ends_return_without_atoms():
    structure = ideal_chain("loop", 40)
    structure.aatype[[0, -1]] = UNKNOWN
    data, why = entry(structure)
    assert why == ""
    assert distances(structure, decompressed(data)[1]).max() < 1


def test_confidences_are_kept():
    structure = ideal_chain("helix", 60, seed=2)
    text = decompressed(entry(structure)[0])[1]
    found = [float(line[60:66]) for line in text.splitlines() if line[12:16] == " CA "]
    np.testing.assert_allclose(found, structure.plddt[:, 1], atol=0.3)


@pytest.mark.parametrize("spread", [2.0, 30.0])
def test_random_atoms_are_refused_with_the_difference(spread):
    data, why = entry(made_up("ACDEFGHIKLMNPQRSTVWY" * 3, seed=1, spread=spread))
    assert data == b""
    assert why.startswith("its atoms differ by ")
    assert why.endswith(" Å (RMSD) after decompression")
    assert float(why.split()[4]) > 1


def test_atoms_in_one_place_are_refused():
    structure = made_up("ACDEFGHIKL", spread=0.0)
    assert entry(structure) == (b"", "its atoms or residues are others after decompression")


def test_one_bond_that_is_not_ideal_is_not_given_back_elsewhere():
    """Whatever Foldcomp does with it, the atoms are where they were, or it is refused."""
    structure = ideal_chain("helix", 100, seed=5)
    for step in (0.1, 1.0, 10.0):
        moved = structure.positions.copy()
        moved[50:] += step
        broken = replace(structure, positions=moved)
        data, why = entry(broken)
        assert bool(data) != bool(why)
        if data:
            assert np.sqrt((distances(broken, decompressed(data)[1]) ** 2).mean()) < 0.2
    assert why


def test_what_foldcomp_cannot_hold_is_refused():
    chain = ideal_chain("helix", 60)
    gap, alone = chain.aatype.copy(), chain.aatype.copy()
    gap[30] = UNKNOWN
    alone[1:] = UNKNOWN
    cases = {
        "a gap after residue 30, Foldcomp has entries of chains without": {"aatype": gap},
        "1 residues with atoms, Foldcomp needs 2": {"aatype": alone},
        "2 chains, Foldcomp has entries of one": {"chains": np.repeat([0, 1], 30)},
    }
    for wanted, change in cases.items():
        assert entry(replace(chain, **change)) == (b"", wanted)


def test_other_atoms_are_a_difference():
    text = pdb_text(ideal_chain("helix", 20, sequence="A" * 20), "", {})
    assert difference(text, text) == ""
    lines = text.splitlines(keepends=True)
    atoms = [number for number, line in enumerate(lines) if line.startswith("ATOM")]
    without = "".join(lines[: atoms[-1]] + lines[atoms[-1] + 1 :])
    for other in (without, text.replace("ALA A   7", "SER A   7"), text.replace(" CB ", " CX ")):
        assert difference(text, other) == "its atoms or residues are others after decompression"
    moved = "".join(
        f"{line[:30]}{float(line[30:38]) + 0.25:8.3f}{line[38:]}" if place in atoms else line
        for place, line in enumerate(lines)
    )
    assert difference(text, moved) == "its atoms differ by 0.25 Å (RMSD) after decompression"


def test_a_changed_check_would_be_noticed(monkeypatch):
    """The twin of the test with random atoms: without the check they would be stored."""
    monkeypatch.setattr(foldcomp_codec, "difference", lambda *_: "")
    assert entry(made_up("ACDEFGHIKL" * 5, seed=1))[0]


def test_names_of_any_kind(capfd):
    structure = ideal_chain("helix", 20, sequence=EVERY)
    for name in ("sp|P1|A", "é ü", "\t", "x" * 3_000, ""):
        data, why = entry(structure, name)
        assert (bool(data), why) == (True, "")
        decompressed(data)[1]
    assert capfd.readouterr() == ("", ""), "foldcomp prints nothing"


def test_reading_back_takes_no_memory():
    """foldcomp 1.0.0 never frees a text that it returned: 0.2 MB each here, 80 MB together."""
    data = entry(ideal_chain("helix", 300))[0]
    for _ in range(20):
        decompressed(data)[1]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(400):
        text = decompressed(data)[1]
    assert len(text)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_a_damaged_entry_is_an_error():
    for damaged in (b"", b"FCM", b"\xff" * 300):
        with pytest.raises(ValueError, match="Error decompressing"):
            decompressed(damaged)


def test_without_the_package_there_is_one_line(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "foldcomp":
            raise ImportError("No module named 'foldcomp'")
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "foldcomp", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError) as error:
        require_foldcomp()
    assert "pip install 'esm-pipeline[foldcomp]'" in str(error.value)
    assert "\n" not in str(error.value)


def test_letters_of_ideal_chains_are_those_asked_for():
    assert (ideal_chain("helix", 3, sequence="MKV").aatype == encode("MKV")).all()
