"""Embeddings, variant scores, classes and structures of proteins by ESM language models.

The public names. Those that need torch or h5py are imported on first use, so that importing the
package stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from esm_pipeline.errors import (
    AmbiguousIdError,
    CapacityError,
    DamagedError,
    EsmPipelineError,
    InputError,
    WeightsError,
)
from esm_pipeline.version import __version__ as __version__

if TYPE_CHECKING:  # for editors and type checkers
    from esm_pipeline.formats.results.open import open_results
    from esm_pipeline.model import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        EsmConfig,
        EsmForMaskedLM,
        EsmForProteinFolding,
        EsmForSequenceClassification,
        EsmForTokenClassification,
        EsmModel,
        EsmPreTrainedModel,
        EsmTokenizer,
        PackedLayout,
        demo_model,
        optimize_for_inference,
    )
    from esm_pipeline.model.inference.batching import iter_packed
    from esm_pipeline.tasks.classify.function import classify
    from esm_pipeline.tasks.embed.function import embed
    from esm_pipeline.tasks.fold.function import fold
    from esm_pipeline.tasks.score.functions import saturation, score

__all__ = [
    "AmbiguousIdError",
    "AutoConfig",
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "CapacityError",
    "DamagedError",
    "EsmConfig",
    "EsmForMaskedLM",
    "EsmForProteinFolding",
    "EsmForSequenceClassification",
    "EsmForTokenClassification",
    "EsmModel",
    "EsmPipelineError",
    "EsmPreTrainedModel",
    "EsmTokenizer",
    "InputError",
    "PackedLayout",
    "WeightsError",
    "classify",
    "demo_model",
    "embed",
    "fold",
    "iter_packed",
    "open_results",
    "optimize_for_inference",
    "saturation",
    "score",
]

_LAZY = {
    "classify": "esm_pipeline.tasks.classify.function",
    "embed": "esm_pipeline.tasks.embed.function",
    "fold": "esm_pipeline.tasks.fold.function",
    "iter_packed": "esm_pipeline.model.inference.batching",
    "open_results": "esm_pipeline.formats.results.open",
    "saturation": "esm_pipeline.tasks.score.functions",
    "score": "esm_pipeline.tasks.score.functions",
}
"""Modules of the names that are imported on first use, except those of `esm_pipeline.model`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'esm_pipeline' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY.get(name, "esm_pipeline.model")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
