"""Scores of variants, by a masked language model."""
