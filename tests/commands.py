"""The commands that write results, for tests of accidents, and the state of their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.forked import Ended, Forked

MODEL = Path(__file__).parent / "golden" / "model"

Files = dict[str, bytes]
Command = tuple[object, ...]


@dataclass
class Sample:
    """One input with its shards, embedded, and their status table."""

    folder: Path
    shards: int
    model: Path = MODEL

    @property
    def fasta(self) -> Path:
        return self.folder / "in.fasta"


def shard(sample: Sample, out: Path) -> Command:
    return ("shard", "--quiet", "--shards", sample.shards, "--out", out, sample.fasta)


def embed(sample: Sample, out: Path, name: str = "out", fasta: Path | None = None) -> Command:
    options = ("--quiet", "--model", sample.model, "--include", "mean,residue", "--allow-empty")
    files = (out / f"{name}.sha256", fasta or sample.fasta, out / f"{name}.h5")
    return ("embed", *options, "--sha256", *files)


def gather(sample: Sample, out: Path) -> Command:
    records, shards = sample.folder / "shards" / "records.tsv", sample.folder / "embed"
    where = ("--records", records, "--shards-dir", shards, "--shards", sample.shards)
    files = ("--out", out / "embeddings.h5", "--status", out / "status.tsv")
    return ("aggregate", "embed", "--quiet", *where, *files)


def table(sample: Sample, out: Path) -> Command:
    records, status = sample.folder / "shards" / "records.tsv", sample.folder / "status.tsv"
    files = ("--records", records, "--status", f"embed={status}", "--out", out / "records.tsv")
    return ("aggregate", "records", *files)


COMMANDS: dict[Callable[..., Command], tuple[str, ...]] = {
    shard: ("records.tsv", "digests.sha256"),
    embed: ("out.records.tsv", "out.sha256"),
    gather: ("status.tsv", "digests.sha256"),
    table: (),
}
"""Each command, and its files that have the checksums of all others, or of all before them."""


def make_sample(forked: Forked, folder: Path, text: str, shards: int) -> Sample:
    """Shard, embed and gather an input in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sample = Sample(folder, shards)
    sample.fasta.write_text(text)
    commands = [shard(sample, folder / "shards")]
    for number in range(shards):
        fasta = folder / "shards" / f"{number:05d}.fasta"
        commands.append(embed(sample, folder / "embed", fasta.stem, fasta))
    for command in (*commands, gather(sample, folder), table(sample, folder)):
        assert forked.main(*command) == Ended(0, "")
    return sample


def contents(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_whole(found: Files, runs: list[Files], vouching: tuple[str, ...]) -> None:
    """Each file is complete, and no file next to a list of checksums differs from it."""
    for name, data in found.items():
        assert data in [run.get(name) for run in runs], f"{name} is not whole"
    for place, name in enumerate(vouching):
        if name in found:
            (run,) = (run for run in runs if run.get(name) == found[name])
            later = vouching[place + 1 :]
            beside = {other: data for other, data in found.items() if other not in later}
            own = {other: data for other, data in run.items() if other not in later}
            assert beside == own, f"{name} vouches for what is not its own"
