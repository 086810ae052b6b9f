"""The demonstration's folding model: tiny, with random weights, written on demand.

With it everything runs without a download of gigabytes. Its config says `random_weights`, and so
does every file made with it: the structures are meaningless.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from esm_pipeline.files import scratch_folder
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.checkpoints.hub import Checkpoint, resolve_checkpoint
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.tokenizer.tokenizer import EsmTokenizer

DEMO_FOLD = "demo-fold"
"""Its name; where a model folds, "demo" means this model too."""

RANDOM_MODEL = (
    "the demo model for folding has random weights: its structures are meaningless; for real ones, "
    "load facebook/esmfold_v1"
)
"""The warning that comes with it."""

FoldingClass = Callable[[EsmConfig], EsmPreTrainedModel]
"""`EsmForProteinFolding`, which loads this model and therefore cannot be imported here."""

SEED = 0
LANGUAGE_MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "vocab_size": 33,
    "mask_token_id": 32,
    "pad_token_id": 1,
}
TRUNK = {
    "num_blocks": 2,
    "sequence_state_dim": 32,
    "pairwise_state_dim": 16,
    "sequence_head_width": 8,
    "pairwise_head_width": 8,
    "structure_module": {
        "sequence_dim": 32,
        "pairwise_dim": 16,
        "ipa_dim": 8,
        "resnet_dim": 16,
        "num_heads_ipa": 2,
        "num_qk_points": 2,
        "num_v_points": 2,
        "num_blocks": 2,
    },
}


def write_demo(folder: Path, folding_class: FoldingClass, **changes: Any) -> Path:
    """Write the checkpoint, always the same, into `folder`; `changes` are config settings."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        folding = {"lddt_head_hid_dim": 16, "trunk": TRUNK}
        settings = {**LANGUAGE_MODEL, "random_weights": True, **changes}
        config = EsmConfig(is_folding_model=True, esmfold_config=folding, **settings)
        model = folding_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:  # also those that start as zeros, so that something moves
                    parameter.normal_(0, parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    EsmTokenizer.standard().save_pretrained(folder)
    return folder


@cache
def demo_checkpoint(folding_class: FoldingClass) -> Checkpoint:
    """The model, written to a temporary folder of this process."""
    folder = scratch_folder()
    found = resolve_checkpoint(str(write_demo(folder, folding_class)))
    return Checkpoint(DEMO_FOLD, found.folder, found.weight_files)
