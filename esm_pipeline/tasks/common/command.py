"""What the commands that run a model share: arguments, outputs, and the end of a run.

A command opens its input, plans which sequences to compute, computes them into temporary files, and
moves all outputs into place together. Reading needs no PyTorch, so that a bad file fails at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from esm_pipeline.files import atomic_paths, scratch_path
from esm_pipeline.flags import add_common, add_flags, exit_code, section_from
from esm_pipeline.formats.input_checksums import require_unchanged
from esm_pipeline.settings.section import Section
from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks.common.model_file import MODEL_HELP
from esm_pipeline.tasks.common.outcomes import format_counts
from esm_pipeline.tasks.common.outputs import HDF5, write_checksums
from esm_pipeline.tasks.common.sequences import SequenceSet, open_sequences

if TYPE_CHECKING:
    from esm_pipeline.tasks.common.compute import ArrayRunner
    from esm_pipeline.tasks.common.plan import SequencePlan


def add_arguments(
    parser: argparse.ArgumentParser,
    sections: Iterable[type[Section]],
    *,
    output: str,
    metavar: str = "OUT",
    model: str = MODEL_HELP,
    provenance: str = "",
) -> None:
    """Add the arguments of a command that runs one model on a FASTA file.

    `output` and `model` are help texts; see `add_task_flags` for the others.
    """
    parser.add_argument("fasta", metavar="IN.fasta", help="FASTA, plain or gzip; - reads stdin")
    parser.add_argument("output", metavar=metavar, type=Path, help=output)
    parser.add_argument("--model", required=True, help=model)
    parser.add_argument("--revision", help="commit, tag or branch of a hub model")
    add_task_flags(parser, sections, provenance)


def add_task_flags(
    parser: argparse.ArgumentParser, sections: Iterable[type[Section]], provenance: str = ""
) -> None:
    """Add the flags that all tasks have, and one for each setting in `sections`.

    `provenance` names what `--provenance` writes; without it there is no such flag.
    """
    parser.add_argument("--allow-empty", action="store_true", help="accept a FASTA with no record")
    if provenance:
        text = f"write {provenance}, as JSON"
        parser.add_argument("--provenance", type=Path, metavar="FILE", help=text)
    parser.add_argument("--sha256", type=Path, metavar="FILE", help="write digests of the outputs")
    for section in sections:
        add_flags(parser, section)
    add_common(parser)


def open_input(args: argparse.Namespace, folder: Path, *, complexes: bool = False) -> SequenceSet:
    """The validated sequences of `args.fasta`, with temporary files in `folder`.

    Raises InputError if the input cannot be used, or has changed since `shard` read it.
    """
    require_unchanged(args.unchanged)
    cleaning = section_from(CleaningSettings, args)
    return open_sequences(
        [args.fasta], cleaning, folder, allow_empty=args.allow_empty, complexes=complexes
    )


def check_runner(runner: ArrayRunner[Any]) -> None:
    """Raise what every job with these settings would fail with, without loading the weights."""
    _ = runner.policy
    runner.check()


@contextmanager
def written_together(
    targets: Sequence[Path], checksums: Path | None, *, stale: Path | None = None
) -> Iterator[list[Path]]:
    """Temporary paths of `targets`, which take their places together when all are written.

    The list of their `checksums`, if wanted, is written and moved last. `stale` describes the
    previous files and is removed before they are replaced.
    """
    listings = [checksums] if checksums else []
    with atomic_paths(*targets, *listings) as paths:
        yield paths[: len(targets)]
        if checksums:
            write_checksums(paths[-1], checksums, dict(zip(targets, paths, strict=False)))
        if stale:
            stale.unlink(missing_ok=True)


class ComputedFiles(NamedTuple):
    """Temporary paths of the outputs of a run, and the number of records of each status."""

    rows: Path
    """The results as HDF5: `output`, or a file that is removed in the end."""
    output: Path
    table: Path
    extra: list[Path]
    counts: Counter[str]


@contextmanager
def computed(
    args: argparse.Namespace,
    runner: ArrayRunner[Any],
    plan: SequencePlan,
    targets: Sequence[Path],
    *,
    stale: Path | None = None,
) -> Iterator[ComputedFiles]:
    """Compute `plan` and write the table of records; the caller writes the other files.

    `targets` are the output, the table of records and extra files; `written_together` explains
    `stale`.
    """
    from esm_pipeline.tasks.common.compute import write_rows

    with ExitStack() as stack:
        paths = stack.enter_context(written_together(targets, args.sha256, stale=stale))
        output, table, *extra = paths
        is_hdf5 = targets[0].suffix.lower() in HDF5
        rows = output if is_hdf5 else stack.enter_context(scratch_path(targets[0]))
        write_rows(runner, plan, rows, quiet=args.quiet)
        yield ComputedFiles(rows, output, table, extra, plan.write_outcomes(table))


def summary(
    runner: ArrayRunner[Any],
    plan: SequencePlan,
    counts: Counter[str],
    started: float,
    *,
    rate: bool = True,
) -> str:
    """One line about a run that `started` at that `perf_counter`, with or without residues/s."""
    seconds = time.perf_counter() - started
    residues = int(plan.lengths[plan.rows() >= 0].sum())
    speed = f"; {residues / seconds:,.0f} residues/s" if rate else ""
    return (
        f"{runner.task}: {format_counts(counts, 'records')}; {residues:,} residues in "
        f"{seconds:.1f} s, {runner.seconds:.1f} s of it in the model{speed}"
    )


def finish(args: argparse.Namespace, line: str, failed: int, table: Path) -> int:
    """Print the summary, and where the reasons are if some `failed`; returns the exit code."""
    if not args.quiet:
        see = f"; see {table}" if failed and args.on_failure == "error" else ""
        print(line + see, file=sys.stderr)
    return exit_code(failed, args.on_failure)
