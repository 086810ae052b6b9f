"""The ESM protein language models, packed: no padding is ever computed.

Shapes in docstrings and comments of this folder: B batch (sequences), L tokens of a sequence with
BOS and EOS, T packed tokens (those of a batch laid end to end), M some of these, R residues, D
width, H heads, K head width, F feed-forward width, V vocabulary, n layers; P tokens of a decoder's
past, S keys that queries attend to. In folding: S width of the single representation, Z that of
pairs.
"""

from esm_pipeline.model.auto import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from esm_pipeline.model.base import EsmPreTrainedModel
from esm_pipeline.model.checkpoints.hub import Checkpoint, demo_model, resolve_checkpoint
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.esm import EsmModel, Represented
from esm_pipeline.model.folding.esmfold import EsmForProteinFolding
from esm_pipeline.model.heads import (
    EsmForMaskedLM,
    EsmForSequenceClassification,
    EsmForTokenClassification,
)
from esm_pipeline.model.inference.optimize import optimize_for_inference
from esm_pipeline.model.layout import PackedLayout
from esm_pipeline.model.module_utils import plain_model
from esm_pipeline.model.tokenizer.tokenizer import EsmTokenizer

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "Checkpoint",
    "EsmConfig",
    "EsmForMaskedLM",
    "EsmForProteinFolding",
    "EsmForSequenceClassification",
    "EsmForTokenClassification",
    "EsmModel",
    "EsmPreTrainedModel",
    "EsmTokenizer",
    "PackedLayout",
    "Represented",
    "demo_model",
    "optimize_for_inference",
    "plain_model",
    "resolve_checkpoint",
]
