"""Complexes: linkers folded with the chains, and gone from all that is returned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from esm_pipeline import EsmForProteinFolding
from esm_pipeline.errors import InputError
from esm_pipeline.model.folding import complexes
from esm_pipeline.model.folding.complexes import encode_sequences
from esm_pipeline.model.folding.output import EsmForProteinFoldingOutput
from esm_pipeline.structure import residues
from tests.oracles.folding_peers import alone, apart, folding_models, of_peer

TOLERANCE = 1e-11
"""In float64, ours compared with ours."""

OF_PEER = 1e-9
CHAINS = ("MKTAY", "GAV", "HWFR")


@pytest.fixture(scope="module")
def models() -> tuple[torch.nn.Module, EsmForProteinFolding]:
    return folding_models()


@pytest.fixture
def model(models: tuple[torch.nn.Module, EsmForProteinFolding]) -> EsmForProteinFolding:
    return models[1]


def linked(chains: tuple[str, ...], linker: str, gap: int) -> tuple[Tensor, Tensor, Tensor]:
    """By hand: residues (R,), their numbers, and which are of chains."""
    text = linker.join(chains)
    numbers, own, start = [], [], 0
    for place, chain in enumerate(chains):
        between = linker if place < len(chains) - 1 else ""
        numbers += [start + i + place * gap for i in range(len(chain + between))]
        own += [True] * len(chain) + [False] * len(between)
        start += len(chain + between)
    aatype = torch.from_numpy(residues.encode(text)).long()
    return aatype, torch.tensor(numbers), torch.tensor(own)


@pytest.mark.parametrize(
    ("linker", "gap"), [("G" * 25, 512), ("X" * 3, 7), ("", 0), ("", 512), ("GS", 0)], ids=str
)
def test_a_complex_is_the_peers_linked_sequence_without_the_linker(models, linker: str, gap: int):
    peer, ours = models
    aatype, numbers, own = linked(CHAINS, linker, gap)
    wanted = of_peer(peer, aatype, position_ids=numbers, num_recycles=1)
    found = ours.infer(":".join(CHAINS), num_recycles=1, linker=linker, chain_gap=gap)
    places = own.nonzero().squeeze(1)
    kept = {}
    for name, value in wanted.items():
        if value.ndim > 1 and value.shape[:2] == (len(own),) * 2:
            kept[name] = value[places][:, places]
        elif value.ndim and value.shape[0] == len(own):
            kept[name] = value[places]
        elif value.ndim > 1:
            kept[name] = value[:, places]
    assert len(kept) == len(wanted) - 2  # all but pTM and the largest error
    kept["residue_index"] = torch.cat([torch.arange(len(chain)) for chain in CHAINS])
    off = apart(alone(found, 0, int(own.sum())), kept)
    assert max(off.values()) <= OF_PEER, off
    assert max(off[name] for name in ("positions", "s_z")) <= TOLERANCE


def test_no_output_and_no_confidence_has_the_linker(model: EsmForProteinFolding):
    output = model.infer(":".join(CHAINS), num_recycles=0)
    count = sum(map(len, CHAINS))
    for name, value in output.items():
        assert 12 + 50 not in value.shape, name
        few = value.ndim == 0 or value.shape in ((1,), (1, len(CHAINS), len(CHAINS)))
        assert few or count in value.shape, name
    assert residues.decode(output.aatype[0].numpy()) == "".join(CHAINS)
    assert output.chain_index.tolist() == [[0] * 5 + [1] * 3 + [2] * 4]
    assert output.residue_index.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]]
    assert output.attention_mask.tolist() == [[1] * count]


def confidences_by_hand(output: EsmForProteinFoldingOutput) -> dict[str, float]:
    """pTM, ipTM, interchain error and mean pLDDT of one complex, from what is left of it."""
    probabilities, chains = output.ptm_logits[0].softmax(-1), output.chain_index[0]
    count = len(chains)
    scale = 1.24 * (max(count, 19) - 15) ** (1 / 3) - 1.8
    centres = torch.arange(64, dtype=torch.float64) * 0.5 + 0.25
    scores = (probabilities / (1 + (centres / scale) ** 2)).sum(-1)
    different = chains[:, None] != chains[None]
    between = [float(scores[i, different[i]].mean()) for i in range(count)]
    pairs = {
        f"chain_iptm {one}-{other}": max(
            float(scores[i, chains == b].mean())
            for a, b in ((one, other), (other, one))
            for i in torch.where(chains == a)[0].tolist()
        )
        for one in range(int(chains.max()) + 1)
        for other in range(one)
    }
    return {
        **pairs,
        "ptm": float(scores.mean(-1).max()),
        "iptm": max(between),
        "interchain_error": float(output.predicted_aligned_error[0][different].mean()),
        "mean_plddt": float(output.plddt[0, :, residues.ATOM37_INDEX["CA"]].mean()),
    }


def worst_confidence(model: EsmForProteinFolding) -> dict[str, float]:
    output = model.infer(":".join(CHAINS), num_recycles=0)
    wanted = confidences_by_hand(output)
    found = {name: output[name][0] for name in wanted if " " not in name}
    for name in wanted.keys() - found.keys():
        one, other = map(int, name.split()[1].split("-"))
        found[name] = output.chain_iptm[0, one, other]
        assert output.chain_iptm[0, other, one] == found[name]
    return {name: abs(float(found[name]) - value) for name, value in wanted.items()}


def test_confidences_count_residues_of_chains_alone(model: EsmForProteinFolding):
    assert max(worst_confidence(model).values()) <= TOLERANCE


def test_residues_that_are_not_own_have_no_atoms(model: EsmForProteinFolding):
    own = torch.tensor([[1, 1, 0, 1]])
    output = model(torch.tensor([[0, 4, 7, 17]]), num_recycles=0, own=own)
    assert output.atom14_atom_exists.any(-1).long().tolist() == own.tolist()
    assert output.atom37_atom_exists.any(-1).long().tolist() == own.tolist()


def test_a_twin_that_counts_the_linker_fails(
    model: EsmForProteinFolding, monkeypatch: pytest.MonkeyPatch
):
    original = EsmForProteinFolding.confidences
    monkeypatch.setattr(
        EsmForProteinFolding,
        "confidences",
        lambda self, structure, own, *more: original(self, structure, own * 0 + 1, *more),
    )
    off = worst_confidence(model)
    assert min(off["ptm"], off["iptm"], off["interchain_error"]) > 1e-6
    assert off["mean_plddt"] > 1e-6


def test_one_chain_is_the_way_without_chains(model: EsmForProteinFolding):
    plain = model.infer("MKTAY", num_recycles=1)
    for arguments in ({"linker": ""}, {"linker": "GGG", "chain_gap": 3}):
        other = model.infer("MKTAY", num_recycles=1, **arguments)
        for name, value in plain.items():
            assert torch.equal(value.nan_to_num(7), other[name].nan_to_num(7)), name
    assert not encode_sequences(["MKTAY", "GAV"]).has_linkers
    assert plain.iptm.isnan().all()


def test_a_batch_of_chains_and_complexes(model: EsmForProteinFolding):
    sequences = ["GAV:HW", "MKTAYIAKQRQIS", "M", ":".join(CHAINS)]
    both = model.infer(sequences, num_recycles=1)
    lengths = [len(sequence.replace(":", "")) for sequence in sequences]
    assert both.attention_mask.sum(1).tolist() == lengths
    assert both.aatype.shape[1] == max(lengths)
    for place, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        one = alone(model.infer(sequence, num_recycles=1), 0, length)
        for name, value in alone(both, place, length).items():
            assert torch.allclose(value, one[name], rtol=0, atol=TOLERANCE, equal_nan=True), name
    assert both.iptm.isnan().tolist() == [False, True, True, False]
    assert (both.positions[:, 2, 1:] == 0).all()
    assert (both.plddt[0, 5:] == 0).all()


def test_linkers_of_a_batch_without_any_are_not_there(model: EsmForProteinFolding):
    """Chains without a linker, with separate numbers all the same."""
    output = model.infer("GAV:HW", num_recycles=0, linker="")
    assert output.chain_index.tolist() == [[0, 0, 0, 1, 1]]
    assert output.residue_index.tolist() == [[0, 1, 2, 0, 1]]
    assert not output.iptm.isnan().any()


def test_numbers_of_ones_own_go_to_the_model_as_they_are(model: EsmForProteinFolding):
    numbers = torch.arange(5 + 25) * 2
    output = model.infer("GAV:HW", numbers, num_recycles=0)
    other = model.infer("GAV:HW", num_recycles=0)
    assert (output.s_z - other.s_z).abs().max() > 1e-3
    assert output.residue_index.tolist() == other.residue_index.tolist()


def encoded() -> Iterator[tuple[str, list[int]]]:
    one = encode_sequences(["ac:j"], linker="GX", gap=10)
    for name in ("aatype", "position_ids", "residue_index", "chain_index", "attention_mask", "own"):
        yield name, getattr(one, name)[0].tolist()


def test_what_the_model_takes():
    assert dict(encoded()) == {
        "aatype": [0, 4, 7, 20, 20],
        "position_ids": [0, 1, 2, 3, 14],
        "residue_index": [0, 1, 2, 3, 0],
        "chain_index": [0, 0, 0, 0, 1],
        "attention_mask": [1, 1, 1, 1, 1],
        "own": [1, 1, 0, 0, 1],
    }


def test_white_space_and_lower_case_are_of_no_matter():
    one, other = (
        encode_sequences(["m k\tv:a\nc\n"], linker="gw"),
        encode_sequences(["MKV:AC"], linker="GW"),
    )
    assert torch.equal(one.aatype, other.aatype)
    assert one.aatype.tolist() == [[12, 11, 19, 7, 17, 0, 4]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "M*K",
            "infer: sequence 1: '*' at place 2 of 'M*K' is not a residue; remove it, or write X",
        ),
        ("M-K", "infer: sequence 1: '-' at place 2"),
        ("MK/A", "'/' at place 3 of 'MK/A' is not a residue; write ':' between chains"),
        ("MK|A", "'|' at place 3 of 'MK|A' is not a residue; write ':' between chains"),
        ("MK1", "'1' at place 3"),
        ("MKé", "'É' at place 3"),
        (7, "7 is not a sequence; give text"),
        (b"MK", "is not a sequence; give text"),
    ],
)
def test_characters_that_are_no_letters_are_reported(
    model: EsmForProteinFolding, wrong: Any, message: str
):
    with pytest.raises(InputError, match=re.escape(message)):
        model.infer(["GAV", wrong])


def test_stops_at_the_ends_of_chains_are_left_out():
    one, other = encode_sequences(["mk*:v *\n"]), encode_sequences(["MK:V"])
    assert torch.equal(one.aatype, other.aatype)
    assert torch.equal(one.chain_index, other.chain_index)


def test_nucleotides_are_refused_or_kept(model: EsmForProteinFolding):
    cds = "atggcgaaactggtgattacc"
    message = (
        "infer: sequence 1: looks like DNA; translate it, or pass nucleotides='keep' to take the "
        "letters as residues"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        model.infer(["GAV", cds])
    with pytest.raises(InputError, match="sequence 0: looks like DNA in chain 2; translate it"):
        model.infer([f"MKLVELAYIAKQRQ:{cds}"])
    with pytest.raises(InputError, match="looks like RNA"):
        model.infer_pdb(cds.replace("t", "u"))
    kept = model.infer([cds], num_recycles=0, nucleotides="keep")
    assert kept.aatype.shape == (1, len(cds))
    with pytest.raises(InputError, match="nucleotides 'no' is not 'refuse' or 'keep'"):
        model.infer([cds], nucleotides="no")


def test_padding_is_of_nothing():
    both = encode_sequences(["A", "CC:D"], linker="G")
    assert both.attention_mask.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]
    assert both.own.tolist() == [[1, 0, 0, 0], [1, 1, 0, 1]]
    kept, present = both.kept()
    assert present.tolist() == [[True, False, False], [True, True, True]]
    assert kept[1].tolist() == [0, 1, 3]
    assert kept[0, 0] == 0


def test_the_jump_is_as_in_fair_esm():
    """Residue i of chain n: its place in the linked sequence, and 512 n."""
    one = encode_sequences(["MK:V"])
    assert one.position_ids[0, -1] == 2 + 25 + 512
    assert len(complexes.LINKER) == 25


@pytest.mark.parametrize("wrong", ["", ":", "MK:", ":MK", "MK::V"])
def test_a_chain_without_residues_is_told(model: EsmForProteinFolding, wrong: str):
    with pytest.raises(InputError, match="has a chain without residues"):
        model.infer(["GAV", wrong])


def test_no_sequences_are_told(model: EsmForProteinFolding):
    with pytest.raises(InputError, match="no sequences; give at least one"):
        model.infer([])
