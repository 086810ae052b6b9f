"""Embeddings, variant scores, classes and structures of proteins, with ESM language models."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "EsmConfig": "esm_pipeline.model",
    "EsmTokenizer": "esm_pipeline.model",
    "EsmPreTrainedModel": "esm_pipeline.model",
    "EsmModel": "esm_pipeline.model",
    "EsmForMaskedLM": "esm_pipeline.model",
    "EsmForSequenceClassification": "esm_pipeline.model",
    "EsmForTokenClassification": "esm_pipeline.model",
    "EsmForProteinFolding": "esm_pipeline.model",
    "AutoConfig": "esm_pipeline.model",
    "AutoTokenizer": "esm_pipeline.model",
    "AutoModel": "esm_pipeline.model",
    "AutoModelForMaskedLM": "esm_pipeline.model",
    "AutoModelForSequenceClassification": "esm_pipeline.model",
    "AutoModelForTokenClassification": "esm_pipeline.model",
    "PackedLayout": "esm_pipeline.model",
    "optimize_for_inference": "esm_pipeline.model",
    "demo_model": "esm_pipeline.model",
    "iter_packed": "esm_pipeline.model.inference.batching",
    "open_results": "esm_pipeline.formats.results.open",
    "EsmPipelineError": "esm_pipeline.errors",
    "InputError": "esm_pipeline.errors",
    "AmbiguousIdError": "esm_pipeline.errors",
    "DamagedError": "esm_pipeline.errors",
    "WeightsError": "esm_pipeline.errors",
    "CapacityError": "esm_pipeline.errors",
}
"""Public names and the modules that define them: loaded on first use, imports stay light."""

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'esm_pipeline' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
