"""From angles to atoms: beside the peer, and beside textbooks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers.models.esm.modeling_esmfold import EsmFoldAngleResnet
from transformers.models.esm.openfold_utils import feats
from transformers.models.esm.openfold_utils.data_transforms import make_atom14_masks
from transformers.models.esm.openfold_utils.rigid_utils import Rigid, Rotation

from esm_pipeline.model.folding import torsions
from esm_pipeline.model.folding.rigid import Frames, from_quaternions
from esm_pipeline.model.folding.torsions import (
    AngleResnet,
    atom14_positions,
    atom_maps,
    group_frames,
    residue_tables,
)
from esm_pipeline.structure import residues
from tests.oracles.peers import enliven
from tests.oracles.peptides import (
    CHIS,
    HELIX,
    PROLINE_CHIS,
    STRAND,
    dihedral,
    peptide,
    sines_and_cosines,
)
from tests.oracles.structure_peers import SMALL, StructureModuleConfig, full_precision

TOLERANCE = 1e-12
EVERY = torch.arange(21)

BONDS = """
ARG CG-CD CD-NE NE-CZ CZ-NH1 CZ-NH2
ASN CG-OD1 CG-ND2
ASP CG-OD1 CG-OD2
GLN CG-CD CD-OE1 CD-NE2
GLU CG-CD CD-OE1 CD-OE2
HIS CG-ND1 CG-CD2 ND1-CE1 CD2-NE2 CE1-NE2
ILE CB-CG1 CB-CG2 CG1-CD1
LEU CG-CD1 CG-CD2
LYS CG-CD CD-CE CE-NZ
MET CG-SD SD-CE
PHE CG-CD1 CG-CD2 CD1-CE1 CD2-CE2 CE1-CZ CE2-CZ
PRO CG-CD CD-N
SER CB-OG
THR CB-OG1 CB-CG2
TRP CG-CD1 CG-CD2 CD1-NE1 NE1-CE2 CD2-CE2 CD2-CE3 CE2-CZ2 CE3-CZ3 CZ2-CH2 CZ3-CH2
TYR CG-CD1 CG-CD2 CD1-CE1 CD2-CE2 CE1-CZ CE2-CZ CZ-OH
VAL CB-CG1 CB-CG2
CYS CB-SG
"""
"""Bonds of the side chains beyond those that several share: N-CA, CA-C, C-O, CA-CB and CB-CG."""

LENGTHS = {"CC": (1.34, 1.56), "CN": (1.29, 1.52), "CO": (1.20, 1.45), "CS": (1.77, 1.84)}
"""Å, shortest and longest bond between two elements in the amino acids (Engh and Huber 2001)."""

BACKBONE = {
    "N-CA": (1.459, 0.02),
    "CA-C": (1.525, 0.02),
    "C-O": (1.229, 0.02),
    "CA-CB": (1.53, 0.03),
}
"""Å and deviation."""

ANGLES = {
    "N-CA-C": (111.0, 3.0),
    "CA-C-O": (120.1, 2.0),
    "N-CA-CB": (110.1, 2.5),
    "C-CA-CB": (110.5, 2.5),
}
"""Degrees and deviation (Engh and Huber 2001); proline's ring bends N-CA-CB to 103°."""


def backbones(*shape: int, seed: int = 0) -> Frames:
    generator = torch.Generator().manual_seed(seed)
    quaternions = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    translation = 20 * torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    return from_quaternions(torch.nn.functional.normalize(quaternions, dim=-1), translation)


def random_degrees(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 360 * torch.rand(*shape, 7, generator=generator, dtype=torch.float64) - 180


def built(degrees: Tensor, aatype: Tensor) -> dict[str, Tensor]:
    """Atom name → its position (N, 3) in residues (N,) of one kind."""
    groups = group_frames(backbones(len(aatype)), sines_and_cosines(degrees), aatype)
    atoms = residues.RESIDUES[int(aatype[0])].atoms
    return dict(zip(atoms, atom14_positions(groups, aatype).unbind(1), strict=False))


def one_kind(residue: residues.Residue, count: int = 8) -> dict[str, Tensor]:
    aatype = torch.full((count,), residues.LETTERS.index(residue.letter))
    degrees = random_degrees(count)
    usual = PROLINE_CHIS if residue.letter == "P" else CHIS  # at some others, atoms meet
    degrees[:, 3:] = torch.tensor(usual) + degrees[:, 3:] / 90  # by up to 2° off
    return built(degrees, aatype)


def peer_frames(backbone: Frames, angles: Tensor, aatype: Tensor) -> Rigid:
    theirs = Rigid(Rotation(rot_mats=backbone.rotation), backbone.translation)
    default = torch.tensor(residues.DEFAULT_FRAMES, dtype=torch.float64)
    return feats.torsion_angles_to_frames(theirs, angles, aatype, default)


def peer_positions(groups: Rigid, aatype: Tensor) -> Tensor:
    table = residue_tables(torch.device("cpu"), torch.float64)
    return feats.frames_and_literature_positions_to_atom14_pos(
        groups, aatype, table.default_frames, table.group, table.atom14_mask, table.position
    )


def differences() -> tuple[float, float]:
    """Of frames and of positions in Å, for all residues, at random angles (not of length 1 too)."""
    aatype = EVERY.repeat(4).view(2, 42)
    backbone, angles = backbones(3, 2, 42), 1.1 * sines_and_cosines(random_degrees(3, 2, 42))
    ours = group_frames(backbone, angles, aatype)
    with full_precision():
        theirs = peer_frames(backbone, angles, aatype.expand(3, 2, 42))
        positions = peer_positions(theirs, aatype.expand(3, 2, 42))
    return (
        (ours.matrices() - theirs.to_tensor_4x4()).abs().max().item(),
        (atom14_positions(ours, aatype) - positions).abs().max().item(),
    )


def test_frames_and_atoms_are_the_peers():
    assert max(differences()) <= TOLERANCE * 100  # Å, of coordinates up to 80


TWINS = {
    "angles turn the other way": lambda t: dataclasses.replace(
        t, default_frames=t.default_frames * torch.tensor([1.0, 1, -1, 1]).double()
    ),
    "O turns with the backbone": lambda t: dataclasses.replace(t, group=t.group * (t.group != 3)),
    "a Å more": lambda t: dataclasses.replace(t, position=t.position + 1.0),
    "atoms of no residue": lambda t: dataclasses.replace(t, atom14_mask=t.atom14_mask * 0 + 1),
}


@pytest.mark.parametrize("mistake", TWINS)
def test_a_twin_with_one_mistake_differs(mistake: str, monkeypatch: pytest.MonkeyPatch):
    wrong = TWINS[mistake](residue_tables(torch.device("cpu"), torch.float64))
    with monkeypatch.context() as patched:
        patched.setattr(torsions, "residue_tables", lambda device, dtype: wrong)
        ours = atom14_positions(
            group_frames(backbones(21), sines_and_cosines(random_degrees(21)), EVERY), EVERY
        )
    right = atom14_positions(
        group_frames(backbones(21), sines_and_cosines(random_degrees(21)), EVERY), EVERY
    )
    assert (ours - right).abs().max() > 0.1


def test_angles_of_the_network_are_the_peers():
    config = StructureModuleConfig(**SMALL)
    peer = enliven(EsmFoldAngleResnet(config)).double()
    ours = AngleResnet(config).double()
    ours.load_state_dict(peer.state_dict())
    s, initial = torch.randn(2, 2, 9, SMALL["sequence_dim"], dtype=torch.float64)
    for found, wanted in zip(ours(s, initial), peer(s, initial), strict=True):
        assert found.shape == (2, 9, 7, 2)
        assert (found - wanted).abs().max() <= TOLERANCE


def test_atom_maps_are_the_peers():
    aatype = EVERY.view(3, 7)
    mask = torch.ones(3, 7, dtype=torch.int64)
    theirs = make_atom14_masks({"aatype": aatype})
    ours = atom_maps(aatype, mask)
    for name, found in ours.items():
        assert found.dtype == theirs[name].dtype
        assert torch.equal(found, theirs[name]), name


def test_padding_has_no_atoms():
    aatype, mask = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[1, 1, 0], [1, 0, 0]])
    maps = atom_maps(aatype, mask)
    assert torch.equal(maps["atom14_atom_exists"].sum(-1), 5.0 * mask)
    assert torch.equal(maps["atom37_atom_exists"].sum(-1), 5.0 * mask)


def bonds_of(residue: residues.Residue) -> set[frozenset[str]]:
    shared = ["N-CA", "CA-C", "C-O", "CA-CB", "CB-CG"]
    own = [line.split()[1:] for line in BONDS.split("\n") if line.startswith(residue.name)]
    pairs = [frozenset(bond.split("-")) for bond in [*shared, *(own[0] if own else [])]]
    return {pair for pair in pairs if pair <= set(residue.atoms)}


@pytest.mark.parametrize("residue", residues.RESIDUES, ids=lambda one: one.name)
def test_bonds_are_those_of_the_textbook(residue: residues.Residue):
    atoms = one_kind(residue)
    names = list(atoms)
    found = {}
    for place, one in enumerate(names):
        for other in names[:place]:
            apart = (atoms[one] - atoms[other]).norm(dim=-1)
            if apart.min() < 2.0:
                found[frozenset({one, other})] = apart
    assert found.keys() == bonds_of(residue)
    for pair, apart in found.items():
        low, high = LENGTHS["".join(sorted(name[0] for name in pair))]
        assert low < apart.min(), pair
        assert apart.max() < high, pair
    for bond, (wanted, deviation) in BACKBONE.items():
        if frozenset(bond.split("-")) in found:
            assert (found[frozenset(bond.split("-"))] - wanted).abs().max() < deviation, bond


@pytest.mark.parametrize("residue", residues.RESIDUES, ids=lambda one: one.name)
def test_angles_of_the_backbone_are_those_of_the_textbook(residue: residues.Residue):
    atoms = one_kind(residue)
    for names, (wanted, deviation) in ANGLES.items():
        if "CB" in names and residue.letter in "GP":
            continue
        one, middle, other = (atoms[name] for name in names.split("-"))
        cosine = torch.cosine_similarity(one - middle, other - middle, dim=-1)
        assert (torch.rad2deg(cosine.acos()) - wanted).abs().max() < deviation, names


@pytest.mark.parametrize("residue", residues.RESIDUES, ids=lambda one: one.name)
def test_chi_angles_measured_on_the_atoms_are_those_asked_for(residue: residues.Residue):
    aatype = torch.full((8,), residues.LETTERS.index(residue.letter))
    degrees = random_degrees(8)
    atoms = built(degrees, aatype)
    for chi in range(residue.chi_angles):
        found = dihedral(*(atoms[name] for name in residue.chain[chi : chi + 4]))
        off = (found - degrees[:, 3 + chi] + 180) % 360 - 180
        assert off.abs().max() < 0.2, chi
    psi = dihedral(*(atoms[name] for name in ("N", "CA", "C", "O")))
    assert ((psi - degrees[:, 2]) % 360 - 180).abs().max() < 0.2  # opposite the next N


def handedness(centre: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Positive where a centre with these three neighbours, in order of rank, is S (Cahn et al.)."""
    return (torch.linalg.cross(first - centre, second - centre) * (third - centre)).sum(-1)


def test_residues_are_l():
    """S at the alpha carbon by N, C, CB (cysteine is R by rank, the same in space)."""
    for residue in residues.RESIDUES:
        atoms = one_kind(residue)
        if residue.letter != "G":
            assert (handedness(*(atoms[name] for name in ("CA", "N", "C", "CB"))) > 2).all()
    isoleucine, threonine = (one_kind(residues.RESIDUES[residues.LETTERS.index(x)]) for x in "IT")
    assert (handedness(*(isoleucine[name] for name in ("CB", "CA", "CG1", "CG2"))) > 2).all()  # S
    assert (handedness(*(threonine[name] for name in ("CB", "OG1", "CA", "CG2"))) < -2).all()  # R
    mirrored = {name: position * torch.tensor([1, 1, -1]) for name, position in atoms.items()}
    assert (handedness(*(mirrored[name] for name in ("CA", "N", "C", "CB"))) < -2).all()


@pytest.mark.parametrize(("angles", "rise"), [(HELIX, 1.5), (STRAND, 3.3)], ids=["helix", "strand"])
def test_peptides_span_what_they_do_in_nature(angles: tuple[float, float], rise: float):
    positions, _ = peptide("ACDEFGHIKLMNPQRSTVWY" * 2, *angles)
    alpha = positions[:, 1]
    assert ((alpha[1:] - alpha[:-1]).norm(dim=-1) - residues.CA_CA).abs().max() < 0.05
    along = (alpha[18:36].mean(0) - alpha[:18].mean(0)).norm() / 18  # Å a residue
    assert along == pytest.approx(rise, abs=0.2)


def test_positions_follow_the_backbone():
    """Turning and moving all backbones turns and moves all atoms, and does nothing else."""
    angles, backbone, motion = sines_and_cosines(random_degrees(21)), backbones(21), backbones(1)
    before = atom14_positions(group_frames(backbone, angles, EVERY), EVERY)
    after = atom14_positions(group_frames(motion.compose(backbone), angles, EVERY), EVERY)
    there = residue_tables(before.device, before.dtype).atom14_mask[EVERY].bool()
    assert 0 < there.sum() < there.numel()
    assert (after - motion[..., None].apply(before))[there].abs().max() <= TOLERANCE * 100
    assert not after[~there].any()


def test_tables_serve_training_after_inference_mode():
    residue_tables.cache_clear()
    with torch.inference_mode():
        atom_maps(EVERY, torch.ones(21))
        group_frames(backbones(21), sines_and_cosines(random_degrees(21)), EVERY)
    angles = sines_and_cosines(random_degrees(21)).requires_grad_()
    atom14_positions(group_frames(backbones(21), angles, EVERY), EVERY).sum().backward()
    assert angles.grad is not None
    assert angles.grad.abs().max() > 0
