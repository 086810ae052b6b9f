"""PDB and mmCIF read back by gemmi and by Biopython: atoms, chains, numbers, B-factors."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import replace

import Bio.PDB
import gemmi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from esm_pipeline.errors import InputError
from esm_pipeline.structure import modelcif, residues
from esm_pipeline.structure import structure as structures
from esm_pipeline.structure.modelcif import cif_text
from esm_pipeline.structure.pdb import B_FACTORS, heading, pdb_problem, pdb_text
from esm_pipeline.structure.structure import MEANINGLESS, PLACED_OXYGEN, Structure, chain_name
from tests.folded import EVERY, FACTS, made_up

Atom = tuple[str, int, str, str, str]
Read = dict[Atom, tuple[float, ...]]

CASES = {
    "every residue": made_up(EVERY),
    "complex": made_up("MKX", "GAVLIW", "MKX", seed=1),
    "unknown first and last": made_up("XXMKVX", "XG", seed=2),
    "one residue": made_up("W", seed=3),
}


def expected(structure: Structure) -> Read:
    """(chain, number, residue, atom, element) → x, y, z, B, from the arrays alone."""
    found: Read = {}
    starts = {chain: list(structure.chains).index(chain) for chain in set(structure.chains)}
    for place, number in enumerate(structure.aatype):
        chain = structure.chains[place]
        if number == residues.UNKNOWN:
            continue
        residue = residues.RESIDUES[number]
        for atom, name in enumerate(residue.atoms):
            key = ("ABCDEFG"[chain], int(place - starts[chain] + 1), residue.name, name, name[0])
            found[key] = (*structure.positions[place, atom], structure.plddt[place, atom])
        if place + 1 in structure.ends:
            key = ("ABCDEFG"[chain], int(place - starts[chain] + 1), residue.name, "OXT", "O")
            found[key] = (*second_oxygen(structure.positions[place]), structure.plddt[place, 2])
    return found


def second_oxygen(atoms: NDArray[np.float32]) -> NDArray[np.float64]:
    """OXT beside N, CA, C, O: the bond from C to CA, turned by 117.5 degrees away from O."""
    _, alpha, carbon, oxygen = atoms[:4].astype(float)
    bond = (alpha - carbon) / np.linalg.norm(alpha - carbon)
    axis = np.cross(bond, oxygen - carbon)
    turned = np.cross(axis / np.linalg.norm(axis), bond)
    angle = np.radians(-117.5)
    return carbon + 1.25 * (np.cos(angle) * bond + np.sin(angle) * turned)


def by_gemmi(text: str, kind: str) -> Read:
    if kind == "pdb":
        read = gemmi.read_pdb_string(text)
    else:
        read = gemmi.make_structure_from_block(gemmi.cif.read_string(text).sole_block())
    (model,) = read
    return {
        (chain.name, residue.seqid.num, residue.name, atom.name, atom.element.name): (
            *atom.pos.tolist(),
            atom.b_iso,
        )
        for chain in model
        for residue in chain
        for atom in residue
    }


def by_biopython(text: str, kind: str) -> Read:
    parser = {"pdb": Bio.PDB.PDBParser, "cif": Bio.PDB.MMCIFParser}[kind](QUIET=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (model,) = parser.get_structure("x", io.StringIO(text))
    return {
        (chain.id, residue.id[1], residue.resname, atom.name, atom.element): (
            *atom.coord.tolist(),
            atom.bfactor,
        )
        for chain in model
        for residue in chain
        for atom in residue
    }


def text_of(structure: Structure, kind: str, title: str = "title") -> str:
    if kind == "pdb":
        return pdb_text(structure, title, FACTS)
    return cif_text(structure, "0_name", title, FACTS)


def assert_same(found: Read, wanted: Read) -> None:
    assert list(found) == list(wanted)
    assert wanted
    gaps = np.abs(np.array([*found.values()]) - np.array([*wanted.values()]))
    assert gaps[:, :3].max() <= 0.00051  # Å
    assert gaps[:, 3].max() <= 0.0051


READERS = {"gemmi": by_gemmi, "biopython": by_biopython}
each = pytest.mark.parametrize
each_kind = each("kind", ["pdb", "cif"])
each_reader = each("reader", READERS.values(), ids=READERS)


@each("name", CASES)
@each_kind
@each_reader
def test_what_readers_find(reader: Callable[[str, str], Read], kind: str, name: str) -> None:
    structure = CASES[name]
    assert_same(reader(text_of(structure, kind), kind), expected(structure))


@each_kind
@each_reader
def test_a_mistake_would_show(
    reader: Callable[[str, str], Read], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: B-factors of the neighbour, and numbers that go on over chains."""
    structure = CASES["complex"]
    shifted = replace(structure, plddt=np.roll(structure.plddt, 1, axis=0))
    with pytest.raises(AssertionError):
        assert_same(reader(text_of(shifted, kind), kind), expected(structure))
    size = len(structure.aatype)
    monkeypatch.setattr(Structure, "numbers", property(lambda _: np.arange(1, size + 1)))
    with pytest.raises(AssertionError):
        assert_same(reader(text_of(structure, kind), kind), expected(structure))


def test_pdb_lines_are_as_the_format_has_them():
    structure = CASES["complex"]
    lines = text_of(structure, "pdb").splitlines()
    assert {len(line) for line in lines} == {80}
    assert lines[-1].strip() == "END"
    numbered = [line for line in lines if line[:6].strip() in ("ATOM", "TER")]
    assert [int(line[6:11]) for line in numbered] == [*range(1, len(numbered) + 1)]
    ends = [line for line in numbered if line.startswith("TER")]
    assert [line[17:26] for line in ends] == ["LYS A   2", "TRP B   6", "LYS C   2"]
    told = [line.split()[2:] for line in lines if line.startswith("SEQRES")]
    assert told == [
        ["A", "3", "MET", "LYS", "UNK"],
        ["B", "6", "GLY", "ALA", "VAL", "LEU", "ILE", "TRP"],
        ["C", "3", "MET", "LYS", "UNK"],
    ]
    long = pdb_text(made_up("G" * 30), "title", {}).splitlines()
    numbers = [(line[7:10], len(line.split()) - 4) for line in long if line.startswith("SEQRES")]
    assert numbers == [("  1", 13), ("  2", 13), ("  3", 4)]
    assert "EXPDTA    THEORETICAL MODEL" in {line.strip() for line in lines}
    remarks = [line[11:].strip() for line in lines if line.startswith("REMARK 220")]
    told = [f"{name}: {value}" for name, value in FACTS.items()]
    assert remarks[: len(told) + 1] == ["", *told]
    assert " ".join(remarks[len(told) + 1 :]) == f"{B_FACTORS} {PLACED_OXYGEN}"
    assert lines[0] == f"{'HEADER    PREDICTED STRUCTURE':<62}XXXX{'':<14}"
    cell = "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1"
    assert cell in {line.strip() for line in lines}
    order = ["HEADER", "TITLE", "EXPDTA", "REMARK", "SEQRES", "CRYST1", "ATOM", "TER", "END"]
    assert list(dict.fromkeys(line[:6].strip() for line in lines)) == order


def test_a_long_title_goes_on():
    title = " ".join(["word"] * 40)
    lines = [line for line in heading(title, []) if line.startswith("TITLE")]
    assert [line[8:10] for line in lines] == ["  ", " 2", " 3", " 4"]
    assert all(len(line) <= 80 for line in lines)
    read = gemmi.read_pdb_string(pdb_text(CASES["one residue"], title, {}))
    assert read.info["_struct.title"].split() == title.split()


@given(st.text(max_size=200))
def test_any_title_can_be_read_back(title):
    structure = CASES["one residue"]
    for kind in ("pdb", "cif"):
        text = text_of(structure, kind, title)
        assert text.isascii()
        assert_same(by_gemmi(text, kind), expected(structure))
    told = gemmi.cif.read_string(text).sole_block().find_value("_struct.title")
    told = gemmi.cif.as_string(told)
    assert told.split() == structures.ascii_text(title).split()


def test_random_weights_are_reported():
    facts = {"": MEANINGLESS, **FACTS}
    structure = CASES["one residue"]
    text = pdb_text(structure, "title", facts)
    remarks = [line[11:].strip() for line in text.splitlines() if line.startswith("REMARK 220")]
    assert " ".join(remarks[1:3]) == MEANINGLESS
    block = gemmi.cif.read_string(cif_text(structure, "n", "title", facts)).sole_block()
    told = block.find("_ma_software_parameter.", ["name", "value"])
    assert [gemmi.cif.as_string(row[1]) for row in told if row[0] == "remark"] == [MEANINGLESS]


def column(block: gemmi.cif.Block, tag: str) -> list[str]:
    return [gemmi.cif.as_string(value) for value in block.find_values(tag)]


def test_plddt_is_the_local_quality():
    structure = CASES["complex"]
    block = gemmi.cif.read_string(text_of(structure, "cif")).sole_block()
    metrics = {
        (row.str(1), row.str(2)): row.str(0)
        for row in block.find("_ma_qa_metric.", ["id", "mode", "type"])
    }
    assert set(metrics) == {
        ("global", "pLDDT"),
        ("global", "pTM"),
        ("global", "ipTM"),
        ("local", "pLDDT"),
    }
    values = dict(
        zip(
            column(block, "_ma_qa_metric_global.metric_id"),
            column(block, "_ma_qa_metric_global.metric_value"),
            strict=True,
        )
    )
    assert float(values[metrics["global", "pLDDT"]]) == pytest.approx(
        structure.mean_plddt, abs=0.005
    )
    assert float(values[metrics["global", "pTM"]]) == pytest.approx(structure.ptm, abs=5e-5)
    assert float(values[metrics["global", "ipTM"]]) == pytest.approx(structure.iptm, abs=5e-5)
    alpha = {key[:3]: value[3] for key, value in expected(structure).items() if key[3] == "CA"}
    names = ["label_asym_id", "label_seq_id", "label_comp_id", "metric_value", "metric_id"]
    local = block.find("_ma_qa_metric_local.", names)
    assert [(row[0], int(row[1]), row[2]) for row in local] == list(alpha)
    assert {row[4] for row in local} == {metrics["local", "pLDDT"]}
    gaps = [abs(float(row[3]) - b) for row, b in zip(local, alpha.values(), strict=True)]
    assert max(gaps) <= 0.0051


def test_entities_are_the_different_chains():
    block = gemmi.cif.read_string(text_of(CASES["complex"], "cif")).sole_block()
    assert column(block, "_entity_poly.pdbx_strand_id") == ["A,C", "B"]
    assert column(block, "_entity_poly.pdbx_seq_one_letter_code") == ["MK(UNK)", "GAVLIW"]
    assert column(block, "_entity_poly.pdbx_seq_one_letter_code_can") == ["MKX", "GAVLIW"]
    assert column(block, "_struct_asym.entity_id") == ["1", "2", "1"]
    assert column(block, "_entity_poly_seq.mon_id")[:3] == ["MET", "LYS", "UNK"]
    atoms = block.find("_atom_site.", ["label_asym_id", "label_entity_id"])
    assert {tuple(row) for row in atoms} == {("A", "1"), ("B", "2"), ("C", "1")}


def test_every_reference_leads_somewhere():
    """Identifiers that items of one category take from another are there."""
    block = gemmi.cif.read_string(text_of(CASES["complex"], "cif")).sole_block()
    keys = {
        "_ma_model_list.data_id": "_ma_data.id",
        "_ma_data_group.data_id": "_ma_data.id",
        "_ma_target_entity.data_id": "_ma_data.id",
        "_ma_protocol_step.input_data_group_id": "_ma_data_group.group_id",
        "_ma_protocol_step.output_data_group_id": "_ma_data_group.group_id",
        "_ma_protocol_step.software_group_id": "_ma_software_group.group_id",
        "_ma_qa_metric.software_group_id": "_ma_software_group.group_id",
        "_ma_software_group.software_id": "_software.pdbx_ordinal",
        "_ma_software_group.parameter_group_id": "_ma_software_parameter.group_id",
        "_ma_qa_metric_local.model_id": "_ma_model_list.model_id",
        "_atom_site.type_symbol": "_atom_type.symbol",
        "_pdbx_poly_seq_scheme.asym_id": "_struct_asym.id",
        "_pdbx_poly_seq_scheme.entity_id": "_entity.id",
        "_atom_site.pdbx_PDB_model_num": "_ma_model_list.ordinal_id",
        "_atom_site.label_asym_id": "_struct_asym.id",
        "_atom_site.label_comp_id": "_chem_comp.id",
        "_struct_asym.entity_id": "_entity.id",
        "_struct.entry_id": "_entry.id",
    }
    for tag, other in keys.items():
        assert column(block, tag), tag
        assert {*column(block, tag)} <= {*column(block, other)}, tag
    assert column(block, "_entry.id") == [block.name]


def test_a_structure_without_x_has_no_iptm_and_no_unknown():
    block = gemmi.cif.read_string(text_of(CASES["every residue"], "cif")).sole_block()
    assert "ipTM" not in column(block, "_ma_qa_metric.type")
    assert "UNK" not in column(block, "_chem_comp.id")


@each(
    ("number", "name"),
    [(0, "A"), (25, "Z"), (26, "a"), (52, "0"), (61, "9"), (62, "AA"), (63, "AB"), (88, "BA")],
)
def test_names_of_chains(number, name):
    assert chain_name(number) == name


def test_chains_are_all_named_differently():
    assert len({chain_name(number) for number in range(30_000)}) == 30_000


LARGE = {
    "10,000 residues in a chain, a PDB file has numbers for 9,999": ("G" * 10_000,),
    "63 chains, a PDB file has names for 62": ("G",) * 63,
    "105,040 atoms, a PDB file has numbers for 99,999": ("W" * 375,) * 20,
}


@each("problem", LARGE)
def test_what_does_not_fit_into_pdb_is_reported_and_fits_into_mmcif(problem):
    structure = made_up(*LARGE[problem])
    with pytest.raises(InputError) as error:
        text_of(structure, "pdb")
    assert str(error.value) == f"title: {problem}; write it as mmCIF"


def test_mmcif_takes_what_pdb_does_not():
    structure = made_up(*LARGE["63 chains, a PDB file has names for 62"])
    read = by_gemmi(text_of(structure, "cif"), "cif")
    assert len(read) == 63 * 5
    assert len({key[0] for key in read}) == 63


def test_the_largest_that_fits():
    chains = made_up(*["G"] * 62)
    assert pdb_problem(chains) is None
    assert len({key[0] for key in by_gemmi(text_of(chains, "pdb"), "pdb")}) == 62
    assert pdb_problem(made_up("G" * 9_999)) is None


@each(("place", "fits"), [(-999.9, True), (-1000.0, False), (9999.9, True), (10_000.0, False)])
def test_coordinates_that_a_pdb_file_can_tell(place, fits):
    structure = made_up("MKV")
    structure.positions[1, 2, 0] = place
    assert (pdb_problem(structure) is None) is fits
    if fits:
        assert_same(by_gemmi(text_of(structure, "pdb"), "pdb"), expected(structure))


def test_places_without_an_atom_do_not_count():
    structure = made_up("G")
    structure.positions[0, 5] = np.nan
    assert pdb_problem(structure) is None


@each_kind
def test_nothing_but_unknown_residues(kind):
    with pytest.raises(InputError, match="a structure without atoms"):
        text_of(made_up("XX"), kind)


def test_the_same_structure_gives_the_same_bytes():
    for kind in ("pdb", "cif"):
        assert text_of(made_up("MKV"), kind) == text_of(made_up("MKV"), kind)
    assert modelcif.in_lines("A" * 81) == "A" * 80 + "\nA"
