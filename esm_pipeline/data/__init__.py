"""The packaged demo model and demo sequences."""

from pathlib import Path


def demo_sequences() -> Path:
    """The packaged FASTA file: 62 proteins for demonstrations, two of them made up."""
    return Path(__file__).with_name("demo.fasta")
