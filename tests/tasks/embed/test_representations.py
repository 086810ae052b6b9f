"""What `embed` asks of a checkpoint before it computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmTokenizer
from esm_pipeline.errors import WeightsError
from esm_pipeline.settings.sections import EmbedSettings
from esm_pipeline.tasks.embed.representations import Encoder
from tests.oracles.peers import ESM2, SMALL


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ("<cls>\n<pad>\n<eos>\n<unk>\n<mask>", "no token for residue A; is vocab.txt whole"),
        ("\n".join([*EsmTokenizer.standard().all_tokens, "J"]), "34 tokens, the model 33"),
    ],
    ids=["short", "long"],
)
def test_a_vocabulary_that_does_not_fit_is_refused(
    tmp_path: Path, vocabulary: str, message: str
) -> None:
    EsmForMaskedLM(EsmConfig(**SMALL, **ESM2)).save_pretrained(tmp_path)
    Encoder(str(tmp_path), None, EmbedSettings(device="cpu")).load()
    (tmp_path / "vocab.txt").write_text(vocabulary)
    with pytest.raises(WeightsError, match=f"{tmp_path}: the vocabulary has {message}"):
        Encoder(str(tmp_path), None, EmbedSettings(device="cpu")).load()
