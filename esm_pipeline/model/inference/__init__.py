"""Faster copies of a model for inference, and batches of sequences for them."""
