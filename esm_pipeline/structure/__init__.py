"""Protein structures as arrays, their quality, and the text of their files. No torch."""
