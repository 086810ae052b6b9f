"""Embeddings of sequences."""
