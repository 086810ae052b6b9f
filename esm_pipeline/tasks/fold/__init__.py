"""Structures of sequences, by ESMFold."""
