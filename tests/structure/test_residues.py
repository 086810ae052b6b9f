"""The amino acids compared with the peer's tables, and properties that must hold in any case."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from transformers.models.esm.openfold_utils import residue_constants as peer

from esm_pipeline.structure import residues

PEER_TABLES = {
    "ATOM14_MASK": peer.restype_atom14_mask,
    "ATOM37_MASK": peer.restype_atom37_mask,
    "ATOM14_GROUP": peer.restype_atom14_to_rigid_group,
    "ATOM14_POSITION": peer.restype_atom14_rigid_group_positions,
    "DEFAULT_FRAMES": peer.restype_rigid_group_default_frame,
    "CHI_MASK": [*peer.chi_angles_mask, [0] * 4],
    "CHI_PI_PERIODIC": peer.chi_pi_periodic,
    "CHI_ATOMS": [
        *([*atoms, *[[0] * 4] * (4 - len(atoms))] for atoms in peer.chi_angles_atom_indices_ours),
        [[0] * 4] * 4,
    ],
}


def names_of(number: int) -> list[str]:
    return peer.restype_name_to_atom14_names[peer.resnames[number]]


@pytest.mark.parametrize("name", PEER_TABLES)
def test_tables_are_the_peers(name):
    assert_array_equal(getattr(residues, name), np.asarray(PEER_TABLES[name]))


def test_names_and_orders_are_the_peers():
    assert "".join(peer.restypes_with_x) == residues.LETTERS
    assert tuple(peer.resnames) == residues.RESIDUE_NAMES
    assert tuple(peer.atom_types) == residues.ATOM37
    assert peer.van_der_waals_radius == residues.VAN_DER_WAALS
    assert round(peer.ca_ca, 2) == residues.CA_CA
    for number, residue in enumerate(residues.RESIDUES):
        assert list(residue.atoms) == [name for name in names_of(number) if name]
        assert sorted(residue.atoms) == sorted(peer.residue_atoms[residue.name])


@pytest.mark.parametrize("number", range(21))
def test_maps_lead_there_and_back(number):
    for place, name in enumerate(names_of(number)):
        assert residues.ATOM14_MASK[number, place] == bool(name)
        if name:
            there = residues.ATOM14_TO_ATOM37[number, place]
            assert residues.ATOM37[there] == name
            assert residues.ATOM37_TO_ATOM14[number, there] == place
            assert residues.ATOM14_RADIUS[number, place] == np.float32(
                residues.VAN_DER_WAALS[name[0]]
            )
    assert residues.ATOM37_MASK[number].sum() == residues.ATOM14_MASK[number].sum()
    for table in (residues.ATOM14_TO_ATOM37, residues.ATOM37_TO_ATOM14, residues.ATOM14_RADIUS):
        full = residues.ATOM14_MASK if table.shape[1] == 14 else residues.ATOM37_MASK
        assert not table[number][~full[number]].any()


def test_frames_turn_and_do_not_mirror():
    """Each frame of a group that exists is a rotation; the others are zero."""
    frames = residues.DEFAULT_FRAMES.astype(np.float64)
    for number, residue in enumerate(residues.RESIDUES):
        for group, frame in enumerate(frames[number]):
            exists = group < 4 or group - 4 < residue.chi_angles
            assert frame.any() == exists
            if exists:
                turn = frame[:3, :3]
                assert np.abs(turn @ turn.T - np.eye(3)).max() < 1e-6
                assert np.linalg.det(turn) == pytest.approx(1, abs=1e-6)


def test_letters_and_numbers():
    assert residues.encode("ARNX").tolist() == [0, 1, 2, 20]
    assert residues.encode("BZUOxa-").tolist() == [20] * 7
    assert residues.encode("").shape == (0,)
    assert residues.decode(residues.encode(residues.LETTERS)) == residues.LETTERS
