"""The commands that write results, for tests of accidents, and the state of their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.forked import Ended, Forked

MODEL = Path(__file__).parent / "golden" / "model"

Files = dict[str, bytes]
Command = tuple[object, ...]


RANGES = 2


@dataclass
class Sample:
    """One input with its bundles, embedded and gathered."""

    folder: Path
    bundles: int
    model: Path = MODEL

    @property
    def fasta(self) -> Path:
        return self.folder / "in.fasta"

    def bundle(self, number: int) -> Path:
        return self.folder / "bundles" / f"{number:05d}.fasta"


def shard(sample: Sample, out: Path) -> Command:
    size = ("--bundles", sample.bundles, "--least", 1)
    return ("shard", "--quiet", *size, "--out", out, sample.fasta)


def embed(sample: Sample, out: Path) -> Command:
    options = ("--quiet", "--model", sample.model, "--include", "mean,residue")
    return ("embed", *options, "--sha256", out / "out.sha256", sample.fasta, out / "out.h5")


def job(sample: Sample, out: Path, number: int = 1, bundle: int = 0) -> Command:
    options = ("--quiet", "--model", sample.model, "--include", "mean,residue", "--allow-empty")
    name = f"{number}-of-{RANGES}"
    return ("embed", *options, "--range", name, sample.bundle(bundle), out / f"{name}.h5")


def gather(sample: Sample, out: Path, bundle: int = 0) -> Command:
    fasta = sample.bundle(bundle)
    ranges = sample.folder / "embed" / fasta.stem
    where = ("--bundle", fasta, "--ranges", ranges, "--count", RANGES)
    files = ("--out", out / f"{fasta.stem}.h5", "--status", out / f"{fasta.stem}.status.tsv")
    return ("aggregate", "embed", "--quiet", *where, *files)


def table(sample: Sample, out: Path) -> Command:
    where = ("--bundles", sample.folder / "bundles", "--count", sample.bundles)
    status = ("--status", f"embed={sample.folder / 'embed'}")
    files = ("--out", out / "records.tsv", "--counts", out / "records.json")
    return ("aggregate", "records", *where, *status, *files)


def uniprot(sample: Sample, out: Path) -> Command:
    source = sample.folder / "embed" / "00000.h5"
    return ("export", "--quiet", source, out / "per-protein.h5")


def h5ad(sample: Sample, out: Path) -> Command:
    return ("export", "--quiet", sample.folder / "embed" / "00000.h5", out / "out.h5ad")


COMMANDS: dict[Callable[..., Command], tuple[str, ...]] = {
    shard: ("digests.sha256",),
    embed: ("out.records.tsv", "out.sha256"),
    job: (),
    gather: ("00000.status.tsv", "00000.sha256"),
    table: ("digests.sha256",),
    uniprot: (),
    h5ad: (),
}
"""Each command, and its files that have the checksums of all others, or of all before them."""


def make_sample(forked: Forked, folder: Path, text: str, bundles: int) -> Sample:
    """Shard, embed and gather an input in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sample = Sample(folder, bundles)
    sample.fasta.write_text(text)
    commands = [shard(sample, folder / "bundles")]
    for bundle in range(bundles):
        place = folder / "embed" / f"{bundle:05d}"
        commands += [job(sample, place, number + 1, bundle) for number in range(RANGES)]
        commands.append(gather(sample, folder / "embed", bundle))
    for command in (*commands, table(sample, folder)):
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
