"""What is flagged and what is not, and clashes compared with a count over all pairs."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from esm_pipeline.structure import quality, residues
from esm_pipeline.structure.quality import (
    FLAGS,
    Limits,
    chain_breaks,
    close_pairs,
    details,
    examine,
    examine_structure,
    find_clashes,
)
from tests.folded import built
from tests.oracles.peptides import HELIX, STRAND, peptide

ALL = "ACDEFGHIKLMNQRSTVWYA"
"""Every residue but proline, which helices do not take."""

Structure = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]


def structure(sequence: str = ALL, angles: tuple[float, float] = HELIX, *bond: float) -> Structure:
    """Positions, residues and chains of a sound peptide of one chain."""
    positions, aatype = peptide(sequence, *angles, *bond)
    return positions.numpy(), aatype.numpy(), np.zeros(len(sequence), dtype=np.int64)


def clash_count(
    positions: NDArray[np.float64], aatype: NDArray[np.int64], chains: NDArray[np.int64], by: float
) -> int:
    return find_clashes(positions, aatype, chains, by)[0]


def flags(found: Structure, plddt: float = 90.0, ptm: float = 0.8) -> tuple[str, ...]:
    return examine(*found, plddt, ptm).flags


@pytest.mark.parametrize("angles", [HELIX, STRAND], ids=["helix", "strand"])
def test_a_sound_peptide_has_no_flag(angles: tuple[float, float]):
    sequence = ALL * 3 if angles is HELIX else (ALL + "P") * 3
    found = examine(*structure(sequence, angles), 90.0, 0.8)
    assert (found.clashes, found.breaks, found.flags) == (0, (), ())


def test_a_cis_bond_is_no_break():
    positions, aatype, chains = structure("AAAP", STRAND, 0.0)
    apart = np.linalg.norm(np.diff(positions[:, 1], axis=0), axis=-1)
    assert abs(apart - quality.CIS_CA_CA).max() < 0.2
    assert chain_breaks(positions, aatype, chains, Limits().spacing) == ()


@pytest.mark.parametrize(
    ("shift", "broken"), [(0.3, False), (0.6, True), (4.0, True), (-0.9, True)]
)
def test_a_chain_that_is_pulled_apart_or_pushed_together(shift: float, broken: bool):
    positions, aatype, chains = structure(angles=STRAND)
    way = positions[10, 1] - positions[9, 1]
    positions[10:] += shift * way / np.linalg.norm(way)
    if shift == -0.9:
        positions[10:] -= 0.6 * way / np.linalg.norm(way)  # past a cis bond's 2.95 Å
    assert chain_breaks(positions, aatype, chains, Limits().spacing) == ((9,) if broken else ())
    assert ("broken_chain" in flags((positions, aatype, chains))) == broken


def test_chains_need_not_touch_and_unknown_residues_have_no_say():
    positions, aatype, chains = structure()
    positions[10:] += 50.0
    assert flags((positions, aatype, chains)) == ("broken_chain",)
    assert flags((positions, aatype, (np.arange(20) >= 10).astype(np.int64))) == ()
    aatype[10], positions[10] = residues.UNKNOWN, 0.0
    assert flags((positions, aatype, chains)) == ()


def test_chains_that_lie_in_each_other_clash():
    positions, aatype, _ = structure("AAAAAA", STRAND)
    twice = np.concatenate([positions, positions + 0.4])
    both = np.concatenate([aatype, aatype])
    found = examine(twice, both, np.repeat([0, 1], 6), 90.0, 0.8)
    assert found.clashes >= 30
    assert found.flags == ("clashes",)
    apart = np.concatenate([positions, positions + 40.0])
    assert examine(apart, both, np.repeat([0, 1], 6), 90.0, 0.8).flags == ()


def test_disulphides_and_peptide_bonds_are_no_clashes_but_others_as_short_are():
    positions = np.full((2, 14, 3), 500.0)
    positions[1] += 100
    positions += np.arange(14)[:, None] * 5.0  # no atom near another
    for pair, letters, clash in [
        ((5, 5), "CC", 0),  # SG, SG: a disulphide
        ((2, 0), "AA", 0),  # C, N of the next: the peptide bond
        ((0, 2), "AA", 1),  # N, C of the next
        ((5, 5), "CS", 1),  # SG, OG
        ((1, 1), "GG", 1),
    ]:
        near = positions.copy()
        near[1, pair[1]] = near[0, pair[0]] + [0, 0, 1.4]
        aatype = residues.encode(letters)
        assert clash_count(near, aatype, np.zeros(2), 1.5) == clash, letters
        assert clash_count(near, aatype, np.array([0, 1]), 1.5) == clash + (pair == (2, 0))


def test_the_largest_atoms_clash_at_their_full_reach():
    """Two sulphurs of methionines, 2.1 Å, wherever they lie among the cubes that are searched."""
    place = residues.RESIDUES[residues.LETTERS.index("M")].atoms.index("SD")
    aatype = residues.encode("GMM")
    for offset in np.linspace(0, 4.2, 43):
        positions = np.zeros((3, 14, 3)) + np.arange(14)[:, None] * [100.0, 0, 0]
        positions[1:, :, 1] = [[40.0], [80.0]]
        positions[1, place] = [50.0 + offset, 0, 0]
        for apart, clash in [(2.09, 1), (2.11, 0)]:
            positions[2, place] = positions[1, place] + [apart, 0, 0]
            assert clash_count(positions, aatype, np.zeros(3), 1.5) == clash, offset


def brute_force(positions: NDArray, aatype: NDArray, chains: NDArray, overlap: float) -> int:
    """The definition, atom by atom."""
    atoms = [
        (number, name, positions[number, place])
        for number, kind in enumerate(aatype)
        if kind != residues.UNKNOWN
        for place, name in enumerate(residues.RESIDUES[kind].atoms)
    ]
    count = 0
    for one, (first, name, at) in enumerate(atoms):
        for second, other, there in atoms[one + 1 :]:
            radii = residues.VAN_DER_WAALS[name[0]] + residues.VAN_DER_WAALS[other[0]]
            bonded = (name, other, second) == ("C", "N", first + 1)
            bonded = (bonded and chains[first] == chains[second]) or name == other == "SG"
            near = np.linalg.norm(at - there) < radii - overlap
            count += first != second and near and not bonded
    return count


@given(
    letters=st.text(alphabet=residues.LETTERS, max_size=12),
    spread=st.sampled_from([0.5, 3.0, 9.0]),
    overlap=st.sampled_from([0.4, 1.5]),
    seed=st.integers(0, 2**20),
)
def test_clashes_are_those_of_every_pair(letters: str, spread: float, overlap: float, seed: int):
    random = np.random.default_rng(seed)
    positions = random.normal(scale=spread, size=(len(letters), 14, 3))
    chains = np.sort(random.integers(0, 2, len(letters)))
    aatype = residues.encode(letters)
    found = clash_count(positions, aatype, chains, overlap)
    assert found == brute_force(positions, aatype, chains, overlap)


@given(
    seed=st.integers(0, 2**20),
    count=st.integers(0, 60),
    reach=st.floats(0.2, 3),
    at_once=st.sampled_from([1, 7, 1000]),
)
def test_every_close_pair_comes_once(seed: int, count: int, reach: float, at_once: int):
    points = np.random.default_rng(seed).uniform(-3, 3, (count, 3)).round(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "POINTS_AT_ONCE", at_once)
        found = [
            frozenset(pair) for one in close_pairs(points, reach) for pair in zip(*one, strict=True)
        ]
    assert len(set(found)) == len(found)
    assert all(len(pair) == 2 for pair in found)
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    close = {frozenset((i, j)) for i in range(count) for j in range(i) if apart[i, j] < reach}
    assert close <= set(found)


def test_atoms_far_apart_take_no_memory_for_the_space_between():
    """Two clashing residues, and one as far away as a coordinate may be."""
    aatype = np.zeros(3, dtype=np.int64)
    positions = np.random.default_rng(0).normal(scale=0.1, size=(3, 14, 3))
    positions[2] += quality.EXTENT - 1
    for shift in (0, -quality.EXTENT):
        positions[:2] += shift
        tracemalloc.start()
        assert clash_count(positions, aatype, np.zeros(3), 1.5) == 24  # one pair is bonded
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**26


def test_a_heap_of_atoms_takes_no_memory_for_all_its_pairs():
    """800 residues in one place: 8 million pairs, 128 MB of indices."""
    aatype = np.zeros(800, dtype=np.int64)
    positions = np.random.default_rng(0).normal(scale=0.1, size=(800, 14, 3))
    tracemalloc.start()
    found = clash_count(positions, aatype, np.zeros(800), 1.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    atoms = 5 * 800
    assert found > 0.9 * atoms**2 / 2
    assert peak < 2**26


@pytest.mark.parametrize(
    ("plddt", "ptm", "wanted"),
    [
        (90.0, 0.8, ()),
        (70.0, 0.5, ()),
        (69.9, 0.5, ("low_plddt",)),
        (50.0, 0.95, ("low_plddt",)),
        (49.9, 0.89, ("very_low_plddt",)),
        (30.0, 0.999, ("contradictory_confidence", "very_low_plddt")),
        (90.0, 0.49, ("low_ptm",)),
        (30.0, 0.2, ("very_low_plddt", "low_ptm")),
    ],
)
def test_confidences_are_flagged(plddt: float, ptm: float, wanted: tuple[str, ...]):
    assert flags(structure(), plddt, ptm) == wanted


def test_long_sequences_are_flagged():
    limits = Limits(trained=19)
    assert examine(*structure(), 90.0, 0.8, limits).flags == ("long",)
    assert examine(*structure(ALL[:19]), 90.0, 0.8, limits).flags == ()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -2e4])
def test_coordinates_that_are_not_numbers(wrong: float):
    positions, aatype, chains = structure()
    positions[3, 2, 1] = wrong
    assert flags((positions, aatype, chains)) == ("bad_coordinates",)
    positions, aatype, chains = structure()
    positions[0, 13] = wrong  # alanine has no such atom
    assert flags((positions, aatype, chains)) == ()


@pytest.mark.parametrize("letters", ["", "X", "XX", "A"])
def test_hardly_any_residues(letters: str):
    assert flags(structure(letters or "A") if letters else tuple(x[:0] for x in structure())) == ()


def test_flags_come_in_order_and_each_is_explained():
    positions, aatype, chains = structure()
    positions[10:] = positions[:10] + 0.3
    found = examine(positions, aatype, chains, 10.0, 0.99, Limits(trained=5)).flags
    assert list(found) == [flag for flag in FLAGS if flag in found]
    assert len(found) >= 4
    assert all(flag.meaning for flag in FLAGS.values())


def test_details_name_the_residues_of_each_flag():
    """Two residues on top of each other, and what follows is 3 Å farther."""
    found = built("AEKLAKRLEKAL")
    found.positions[5] += found.positions[4, 1] - found.positions[5, 1] + 0.1
    found.positions[9:] += 3.0
    found = replace(found, ptm=0.25)
    raised = ("clashes", "broken_chain", "low_ptm", "long")
    assert set(raised[:3]) <= {*examine_structure(found).flags}
    rows = {row.flag: row[1:] for row in details(found, raised)}
    assert list(rows) == list(raised)
    assert rows["clashes"][0] == "A2,A4-6"
    assert int(rows["clashes"][1]) == examine_structure(found).clashes
    assert rows["broken_chain"][0].endswith("A9-10")
    assert rows["low_ptm"] == ("", "0.2500")
    assert rows["long"] == ("", "12")


def test_far_atoms_are_named():
    found = built("AEK", "AA")
    found.positions[3, 1] = 2e4
    (row,) = details(found, examine_structure(found).flags[:1])
    assert row == ("bad_coordinates", "B1", "1")


def test_float32_will_do():
    positions, aatype, chains = structure(ALL * 2)
    assert flags((positions.astype(np.float32), aatype, chains)) == ()


def test_needs_no_torch():
    source = Path(quality.__file__).read_text()
    assert "torch" not in source
