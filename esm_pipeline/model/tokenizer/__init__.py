"""The ESM tokenizer."""

from esm_pipeline.model.tokenizer.tokenizer import EsmTokenizer

__all__ = ["EsmTokenizer"]
