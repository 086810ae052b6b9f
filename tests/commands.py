"""The commands that write results, for tests of accidents, and the state of their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.forked import Ended, Forked

MODEL = Path(__file__).parent / "golden" / "model"
JOBS = 2
"""Ranges of the first bundle."""

Files = dict[str, bytes]
Command = tuple[object, ...]


@dataclass
class Sample:
    """One input with its bundles, of which the first is embedded, and the status table of that."""

    folder: Path
    bundles: int
    model: Path = MODEL

    @property
    def fasta(self) -> Path:
        return self.folder / "in.fasta"


def shard(sample: Sample, out: Path) -> Command:
    return ("shard", "--quiet", "--bundles", sample.bundles, "--out", out, sample.fasta)


def embed(sample: Sample, out: Path, name: str = "out", fasta: Path | None = None) -> Command:
    options = ("--quiet", "--model", sample.model, "--include", "mean,residue", "--allow-empty")
    files = (out / f"{name}.sha256", fasta or sample.fasta, out / f"{name}.h5")
    return ("embed", *options, "--sha256", *files)


def job(sample: Sample, out: Path, number: int = 1) -> Command:
    name = f"{number}-of-{JOBS}"
    options = ("--quiet", "--model", sample.model, "--include", "mean,residue", "--range", name)
    return ("embed", *options, sample.folder / "bundles" / "00000.fasta", out / f"{name}.h5")


def gather(sample: Sample, out: Path) -> Command:
    bundle, ranges = sample.folder / "bundles" / "00000.fasta", sample.folder / "ranges"
    where = ("--bundle", bundle, "--ranges", ranges, "--count", JOBS)
    files = ("--out", out / "embeddings.h5", "--status", out / "0.status.tsv")
    return ("aggregate", "embed", "--quiet", *where, *files)


def table(sample: Sample, out: Path) -> Command:
    records = sample.folder / "bundles" / "00000.records.tsv"
    status = sample.folder / "0.status.tsv"
    files = ("--records", records, "--status", f"embed={status}", "--out", out / "records.tsv")
    return ("aggregate", "records", *files)


COMMANDS: dict[Callable[..., Command], tuple[str, ...]] = {
    shard: ("digests.sha256",),
    embed: ("out.records.tsv", "out.sha256"),
    job: (),
    gather: ("0.status.tsv", "0.sha256"),
    table: (),
}
"""Each command, and its files that have the checksums of all others, or of all before them."""


def make_sample(forked: Forked, folder: Path, text: str, bundles: int) -> Sample:
    """Shard an input in `folder`, embed the first bundle and gather it."""
    folder.mkdir(parents=True, exist_ok=True)
    sample = Sample(folder, bundles)
    sample.fasta.write_text(text)
    jobs = [job(sample, folder / "ranges", number) for number in range(1, JOBS + 1)]
    for command in (
        shard(sample, folder / "bundles"),
        *jobs,
        gather(sample, folder),
        table(sample, folder),
    ):
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
