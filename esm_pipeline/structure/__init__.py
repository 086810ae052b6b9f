"""Protein structures as numbers, and as the text of files; no torch."""
