"""The ESM tokenizer."""
