"""Files of structures as other programs read them: DSSP, gemmi, Biopython, biotite, dictionaries.

Chains have ideal geometry, so that what DSSP and TM-align find is known.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import Bio.PDB
import gemmi
import ihm.dictionary
import numpy as np
import pytest
from biotite.structure.io.pdb import PDBFile
from biotite.structure.io.pdbx import CIFFile, get_structure
from numpy.typing import NDArray
from tmtools import tm_align

from esm_pipeline.structure.modelcif import ErrorFile, cif_text
from esm_pipeline.structure.pae import cif_bytes
from esm_pipeline.structure.pdb import pdb_text
from esm_pipeline.structure.structure import Structure, terminal_oxygens
from tests.folded import FACTS, built
from tests.oracles.peptides import STRAND

HELIX = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
CASES = {
    "one chain": built(HELIX),
    "strand": built("VTVEVKVTVEVKI", angles=STRAND),
    "complex": built(HELIX, "GAVLIWKLMAAKELGAK", HELIX),
    "unusual residues": built("AEKUAKOLMXAELBZKAALEAK"),
    "2,700 residues": built("AEKLAKRLEKAL" * 225),
}
DICTIONARIES = Path("/usr/share/libcifpp")
"""Where Debian's `libcifpp-data` has the dictionaries of PDBx and ModelCIF."""

each_case = pytest.mark.parametrize("name", CASES)
each_kind = pytest.mark.parametrize("kind", ["pdb", "cif"])


def text_of(structure: Structure, kind: str, errors: ErrorFile | None = None) -> str:
    facts = FACTS | structure.facts
    if kind == "pdb":
        return pdb_text(structure, "title", facts)
    return cif_text(structure, "0_name", "title", facts, errors=errors)


def states(structure: Structure, kind: str, folder: Path) -> dict[tuple[str, int], str]:
    """What DSSP says of each residue: chain and number → H, E, …, or a space."""
    file, out = folder / f"in.{kind}", folder / "out.dssp"
    file.write_text(text_of(structure, kind))
    command = ["mkdssp", "--output-format", "dssp", str(file), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert (done.returncode, said.strip()) == (0, ""), said
    lines = out.read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("  #  RESIDUE"))
    found = [line for line in lines[begin + 1 :] if line[13] != "!"]
    return {(line[11], int(line[5:10])): line[16] for line in found}


@pytest.mark.skipif(not shutil.which("mkdssp"), reason="no mkdssp here")
@each_case
@each_kind
def test_dssp_gives_every_residue_a_state(kind: str, name: str, tmp_path: Path):
    structure = CASES[name]
    found = states(structure, kind, tmp_path)
    there = np.flatnonzero(structure.present)
    chains = structure.chains[there]
    assert list(found) == [
        ("ABC"[chain], int(number))
        for chain, number in zip(chains, structure.numbers[there], strict=True)
    ]
    helical = [state for state in found.values() if state == "H"]
    if name == "strand":
        assert helical == []
    elif name != "unusual residues":
        assert len(helical) == len(there) - 2 * len(structure.ends), "all but both ends"


@pytest.mark.skipif(not shutil.which("mkdssp"), reason="no mkdssp here")
def test_dssp_refuses_a_file_without_a_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The twin: what DSSP says is seen."""
    monkeypatch.setattr("esm_pipeline.structure.pdb.HEADER", "REMARK   1")
    with pytest.raises(AssertionError):
        states(CASES["one chain"], "pdb", tmp_path)


def validator(*names: str) -> ihm.dictionary.Dictionary:
    """Dictionaries as one."""
    found = ihm.dictionary.Dictionary()
    for name in names:
        with open(DICTIONARIES / f"mmcif_{name}.dic") as file:
            found += ihm.dictionary.read(file)
    return found


with_dictionaries = pytest.mark.skipif(
    not (DICTIONARIES / "mmcif_ma.dic").exists(), reason="no dictionaries of mmCIF here"
)


@with_dictionaries
@pytest.mark.parametrize("names", [("ma",), ("pdbx", "ma")], ids="+".join)
@pytest.mark.parametrize("errors", [None, ErrorFile("../a.cif"), ErrorFile("../a.zip", "a.cif")])
def test_mmcif_is_as_the_dictionaries_say(names: tuple[str, ...], errors: ErrorFile | None):
    dictionary = validator(*names)
    for name, structure in CASES.items():
        if name != "2,700 residues":
            text = text_of(structure, "cif", errors)
            if errors:
                text += cif_bytes(structure, "0_name").decode().partition("\n")[2]
            dictionary.validate(io.StringIO(text))
    for old, new in (("Ab initio model", "Guess"), ("_atom_type.symbol", "_atom_type.name")):
        with pytest.raises(ihm.dictionary.ValidatorError):
            dictionary.validate(io.StringIO(text.replace(old, new, 1)))


def alpha_carbons(text: str, kind: str, reader: str) -> tuple[NDArray[np.float64], list[str]]:
    """(N, 3) Å, and chain, number and name of each."""
    if reader == "gemmi":
        read = gemmi.read_pdb_string(text) if kind == "pdb" else None
        if read is None:
            read = gemmi.make_structure_from_block(gemmi.cif.read_string(text).sole_block())
        read.setup_entities()
        atoms = [
            (atom.pos.tolist(), f"{chain.name}{residue.seqid.num}{residue.name}")
            for chain in read[0]
            for residue in chain
            for atom in residue
            if atom.name == "CA"
        ]
    elif reader == "biopython":
        parser = {"pdb": Bio.PDB.PDBParser, "cif": Bio.PDB.MMCIFParser}[kind](QUIET=True)
        atoms = [
            (atom.coord.tolist(), f"{chain.id}{residue.id[1]}{residue.resname}")
            for chain in parser.get_structure("x", io.StringIO(text))[0]
            for residue in chain
            for atom in residue
            if atom.name == "CA"
        ]
    else:
        if kind == "pdb":
            found = PDBFile.read(io.StringIO(text)).get_structure(model=1)
        else:
            found = get_structure(CIFFile.read(io.StringIO(text)), model=1)
        atoms = [
            (atom.coord.tolist(), f"{atom.chain_id}{atom.res_id}{atom.res_name}")
            for atom in found[found.atom_name == "CA"]
        ]
    places, names = zip(*atoms, strict=True)
    return np.array(places, float), list(names)


@each_case
def test_all_readers_find_the_same_in_both_files(name: str):
    structure = CASES[name]
    texts = {kind: text_of(structure, kind) for kind in ("pdb", "cif")}
    found = [
        alpha_carbons(text, kind, reader)
        for kind, text in texts.items()
        for reader in ("gemmi", "biopython", "biotite")
    ]
    wanted = structure.positions[structure.present, 1]
    names = [
        f"{'ABC'[structure.chains[place]]}{structure.numbers[place]}{structure.names[place]}"
        for place in np.flatnonzero(structure.present)
    ]
    for places, found_names in found:
        assert found_names == names
        assert np.abs(places - wanted).max() <= 0.00051
    most = 300  # of the alignment, whose time grows with the square
    letters = "A" * min(len(names), most)
    one = tm_align(found[0][0][:most], found[-1][0][:most], letters, letters)
    assert one.tm_norm_chain1 == pytest.approx(1, abs=1e-4)


def test_another_fold_has_another_tm_score():
    letters = "A" * 33
    one = built(HELIX).positions[:, 1].astype(float)
    other = built(HELIX, angles=STRAND).positions[:, 1].astype(float)
    assert tm_align(one, other, letters, letters).tm_norm_chain1 < 0.6


def test_the_second_oxygen_has_ideal_geometry():
    """In the plane of CA, C and O, on the other side of O."""
    structure = CASES["complex"]
    last, placed = terminal_oxygens(structure)
    assert last.tolist() == [end - 1 for end in structure.ends]
    _, alpha, carbon, oxygen = structure.positions[last, :4].astype(float).swapaxes(0, 1)
    bond = placed - carbon
    np.testing.assert_allclose(np.linalg.norm(bond, axis=-1), 1.25, atol=1e-5)

    def angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        return np.degrees(np.arccos((a * b).sum(-1) / scale))

    np.testing.assert_allclose(angle(bond, alpha - carbon), 117.5, atol=1e-2)
    between = angle(bond, oxygen - carbon)
    assert ((between > 118) & (between < 125)).all()
    normal = np.cross(alpha - carbon, oxygen - carbon)
    assert np.abs((bond * normal).sum(-1)).max() < 1e-4


def test_no_second_oxygen_where_there_is_no_place_for_it():
    assert terminal_oxygens(built("AKX"))[0].tolist() == []
    line = built("AK")
    line.positions[1, 3] = 2 * line.positions[1, 2] - line.positions[1, 1]  # O in line with CA–C
    assert terminal_oxygens(line)[0].tolist() == []
    assert "OXT" not in pdb_text(line, "title", {})


def test_residues_without_atoms_are_gaps_that_both_files_list():
    structure = CASES["unusual residues"]  # AEKUAKOLMXAELBZKAALEAK
    assert structure.sequences == ["AEKCAKKLMXAELBZKAALEAK"]
    assert {name: structure.places(one) for name, one in structure.replaced.items()} == {
        "O": "A7",
        "U": "A4",
    }
    assert {name: structure.places(one) for name, one in structure.omitted.items()} == {
        "B": "A14",
        "X": "A10",
        "Z": "A15",
    }
    listed = " ".join(
        line[19:].strip()
        for line in text_of(structure, "pdb").splitlines()
        if line.startswith("SEQRES")
    ).split()
    assert len(listed) == 22
    assert (listed[3], listed[6], listed[9], listed[13], listed[14]) == (
        *("CYS", "LYS"),
        *("UNK", "ASX", "GLX"),
    )
    block = gemmi.cif.read_string(text_of(structure, "cif")).sole_block()
    items = ["seq_id", "mon_id", "pdb_seq_num", "auth_seq_num", "pdb_mon_id"]
    rows = [[*row] for row in block.find("_pdbx_poly_seq_scheme.", items)]
    assert [row[1] for row in rows] == listed
    assert rows[13:16] == [
        ["14", "ASX", "14", "?", "?"],
        ["15", "GLX", "15", "?", "?"],
        ["16", "LYS", "16", "16", "LYS"],
    ]
    code = gemmi.cif.as_string(block.find_value("_entity_poly.pdbx_seq_one_letter_code"))
    assert code == "AEKCAKKLM(UNK)AEL(ASX)(GLX)KAALEAK"
    for kind in ("pdb", "cif"):
        text = " ".join(text_of(structure, kind).replace("REMARK 220", "").split())
        assert "folded U as C" in text
        assert "no atoms for X" in text


def test_places_name_chains_and_ranges():
    structure = built("AAAA", "AAA")
    assert structure.places([]) == ""
    assert structure.places([0]) == "A1"
    assert structure.places([0, 1, 3, 4, 6]) == "A1-2,A4,B1,B3"
    assert structure.places([2, 3, 4, 5, 6]) == "A3-4,B1-3"


def test_a_file_without_settings():
    text = cif_text(CASES["one chain"], "n", "title", {})
    assert "_ma_software_parameter" not in text
    assert len(alpha_carbons(text, "cif", "gemmi")[1]) == len(HELIX)


def test_what_is_in_which_entity():
    text = text_of(replace(CASES["complex"]), "cif")
    block = gemmi.cif.read_string(text).sole_block()
    found = [gemmi.cif.as_string(one) for one in block.find_values("_entity.pdbx_description")]
    assert found == ["title, chain A,C", "title, chain B"]
    assert [*block.find_values("_atom_type.symbol")] == ["C", "N", "O", "S"]
