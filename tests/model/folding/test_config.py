"""Settings of the folding part: names and defaults of the reference, errors for invalid values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.esm import configuration_esm as peers

from esm_pipeline import EsmConfig, EsmForProteinFolding
from esm_pipeline.errors import WeightsError
from esm_pipeline.model.folding.config import (
    EsmFoldConfig,
    StructureModuleConfig,
    TrunkConfig,
    residue_tokens,
)
from esm_pipeline.structure import residues
from tests.oracles.folding_peers import settings

CLASSES = [EsmFoldConfig, TrunkConfig, StructureModuleConfig]


@pytest.mark.parametrize("own", CLASSES, ids=lambda one: one.__name__)
def test_names_and_defaults_are_the_peers(own: type):
    peer = getattr(peers, own.__name__)()
    nested = {"trunk", "structure_module"}
    for field in fields(own):
        if field.name not in nested:
            assert getattr(own(), field.name) == getattr(peer, field.name), field.name
    ours = {field.name for field in fields(own)}
    theirs = set(peer.to_dict()) - set(transformers.PretrainedConfig().to_dict())
    assert theirs - {"model_type"} <= ours


def test_a_config_is_the_same_after_a_file(tmp_path: Path):
    given = settings({"num_blocks": 3, "structure_module": {"ipa_dim": 9}}, embed_aa=False)
    config = EsmConfig(**given)
    config.save_pretrained(tmp_path)
    again = EsmConfig.from_pretrained(tmp_path)
    assert isinstance(again.esmfold_config, EsmFoldConfig)
    assert again.esmfold_config == config.esmfold_config
    assert again.esmfold_config.trunk.num_blocks == 3
    assert again.esmfold_config.trunk.structure_module.ipa_dim == 9
    assert not again.esmfold_config.embed_aa
    assert again.to_dict() == config.to_dict()


def test_what_transformers_writes_into_every_part_is_not_written_back(tmp_path: Path):
    """The dataclasses of 4.37.2 take no key that they do not know."""
    transformers.EsmConfig(**settings()).save_pretrained(tmp_path)
    saved = EsmConfig.from_pretrained(tmp_path).to_dict()["esmfold_config"]
    assert set(saved) == {field.name for field in fields(EsmFoldConfig)}
    assert set(saved["trunk"]) == {field.name for field in fields(TrunkConfig)}
    known = {field.name for field in fields(StructureModuleConfig)}
    assert set(saved["trunk"]["structure_module"]) == known
    assert saved == asdict(EsmFoldConfig.read(settings()["esmfold_config"]))


def test_parts_that_are_left_out_are_the_defaults():
    config = EsmConfig(vocab_size=33, mask_token_id=32, pad_token_id=1, is_folding_model=True)
    assert config.esmfold_config == EsmFoldConfig()
    assert config.esmfold_config.trunk == TrunkConfig()
    assert config.vocab_list == EsmConfig(**settings()).vocab_list
    assert EsmConfig(vocab_size=33).esmfold_config is None


WRONG = [
    ({"num_blocks": -1}, "num_blocks of the TrunkConfig is -1; it should be a whole number from 0"),
    ({"num_blocks": True}, "num_blocks of the TrunkConfig is True"),
    ({"max_recycles": 0}, "max_recycles .* whole number from 1"),
    ({"chunk_size": 0}, "chunk_size of the TrunkConfig is 0"),
    ({"sequence_state_dim": 33}, "a multiple of the head width, 8"),
    ({"pairwise_state_dim": 20}, "pairwise_state_dim .* a multiple of the head width, 8"),
    ({"pairwise_state_dim": 15, "pairwise_head_width": 5}, "is 15; it should be even"),
    ({"dropout": 0.4}, "from 0 and less than 0.4"),
    ({"dropout": -0.1}, "from 0 and less than 0.4"),
    ({"position_bins": "8"}, "position_bins of the TrunkConfig is '8'"),
    ({"structure_module": {"num_angles": 6}}, "num_angles .* is 6; it should be 7"),
    ({"structure_module": {"num_blocks": 0}}, "num_blocks of the StructureModuleConfig is 0"),
    ({"structure_module": [1]}, r"StructureModuleConfig from \[1\]; it should be a JSON object"),
    ({"num_bloks": 3}, "TrunkConfig has no 'num_bloks'; use 'num_blocks'"),
    ({"structure_module": {"ipa_dims": 3}}, "has no 'ipa_dims'; use 'ipa_dim'"),
]


@pytest.mark.parametrize(("trunk", "message"), WRONG, ids=[str(trunk) for trunk, _ in WRONG])
def test_invalid_values_are_reported(trunk: Mapping[str, Any], message: str):
    with pytest.raises(WeightsError, match=message):
        EsmConfig(**settings(trunk))


def test_what_cannot_be_in_a_file_is_told_with_its_name(tmp_path: Path):
    transformers.EsmConfig(**settings()).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"max_recycles": 4', '"max_recycles": -4'))
    with pytest.raises(WeightsError, match=rf"^{file}: config: max_recycles"):
        EsmConfig.from_pretrained(tmp_path)


def test_residues_of_a_vocabulary():
    vocabulary = list(peers.get_default_vocab_list())
    found = residue_tokens(vocabulary)
    assert [vocabulary[number] for number in found] == list(residues.LETTERS)
    turned = [*vocabulary[:4], *reversed(vocabulary[4:])]
    assert [turned[number] for number in residue_tokens(turned)] == list(residues.LETTERS)


@pytest.mark.parametrize("lacking", ["<cls>", "<eos>", "<mask>", "W", "X"])
def test_a_vocabulary_without_what_folding_needs_is_told(lacking: str):
    given = settings()
    given["vocab_list"] = ["?" if token == lacking else token for token in given["vocab_list"]]
    with pytest.raises(WeightsError, match=f"vocab_list has no '{lacking}'"):
        EsmForProteinFolding(EsmConfig(**given))


def test_a_model_that_does_not_fold_is_told():
    with pytest.raises(WeightsError, match="this is not a folding model"):
        EsmForProteinFolding(EsmConfig(vocab_size=33, mask_token_id=32, pad_token_id=1))
