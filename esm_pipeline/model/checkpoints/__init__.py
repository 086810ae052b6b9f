"""Checkpoints: found, checked, read and written."""
