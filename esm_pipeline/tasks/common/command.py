"""What the commands that run a model share: arguments, outputs, and the end of a run.

A command opens its input, plans which sequences to compute, computes them into temporary files, and
moves all outputs into place together. Reading needs no PyTorch, so that a bad file fails at once.
With `--range` the input is a part of a bundle, and the only output one HDF5 file, which `aggregate`
gathers; see `formats/results/job_files.py`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, atomic_paths, scratch_path
from esm_pipeline.flags import add_common, add_flags, exit_code, section_from
from esm_pipeline.formats.bundles import Range, Work
from esm_pipeline.formats.input_checksums import require_unchanged
from esm_pipeline.formats.records import FAILED
from esm_pipeline.parsers import INPUT_OUTPUT, JOB_GROUP, MODEL_GROUP, group_of
from esm_pipeline.settings.section import Section
from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks.common.bundle_sequences import BundleSequences
from esm_pipeline.tasks.common.model_file import MODEL_HELP
from esm_pipeline.tasks.common.outcomes import closing_line, count_text
from esm_pipeline.tasks.common.outputs import HDF5, check_output, ending_of, write_checksums
from esm_pipeline.tasks.common.progress import Speaker
from esm_pipeline.tasks.common.sequences import SequenceSet, open_sequences
from esm_pipeline.tasks.common.tallies import Tally

RANGE_ENDING = ".h5"

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
    files = group_of(parser, INPUT_OUTPUT)
    files.add_argument("fasta", metavar="IN.fasta", help="FASTA, plain or gzip; - reads stdin")
    files.add_argument("output", metavar=metavar, type=Path, help=output)
    models = group_of(parser, MODEL_GROUP)
    models.add_argument("--model", required=True, help=model)
    models.add_argument("--revision", help="commit, tag or branch of a hub model")
    add_task_flags(parser, sections, provenance)


def add_task_flags(
    parser: argparse.ArgumentParser, sections: Iterable[type[Section]], provenance: str = ""
) -> None:
    """Add the flags that all tasks have, and one for each setting in `sections`.

    `provenance` names what `--provenance` writes; without it there is no such flag.
    """
    files = group_of(parser, INPUT_OUTPUT)
    group_of(parser, JOB_GROUP).add_argument(
        "--range",
        type=range_of,
        metavar="K-of-N",
        help="compute only this range of a bundle of `shard`, such as 3-of-40, into OUT.h5, for "
        "`aggregate`; a bundle is read as it is, without cleaning",
    )
    files.add_argument("--allow-empty", action="store_true", help="accept a FASTA with no record")
    if provenance:
        text = f"write {provenance}, as JSON"
        files.add_argument("--provenance", type=Path, metavar="FILE", help=text)
    files.add_argument("--sha256", type=Path, metavar="FILE", help="write digests of the outputs")
    for section in sections:
        add_flags(parser, section)
    add_common(parser)


def range_of(text: str) -> Range:
    """The range in an argument."""
    try:
        return Range.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_range_output(args: argparse.Namespace, output: Path, inputs: Sequence[str]) -> None:
    """Raise InputError unless `--range` can write `output`, which is all that it writes."""
    ending_of(output, (RANGE_ENDING,))
    for name in ("sha256", "provenance", "plots"):
        if getattr(args, name, None):
            raise InputError(f"--{name}: not with --range, which writes one file; leave it out")
    check_output(output, inputs, [], (RANGE_ENDING,))


def open_input(
    args: argparse.Namespace, folder: Path, task: str, work: Work, *, complexes: bool = False
) -> SequenceSet | BundleSequences:
    """The validated sequences of `args.fasta`, or of a range of it for `task` by its `work`.

    Temporary files go to `folder`. Raises InputError if the input cannot be used, or has changed
    since `shard` read it.
    """
    require_unchanged(args.unchanged)
    if args.range:
        return BundleSequences(Path(args.fasta), args.range, task, work, complexes=complexes)
    cleaning = section_from(CleaningSettings, args)
    return open_sequences(
        [args.fasta],
        cleaning,
        folder,
        allow_empty=args.allow_empty,
        complexes=complexes,
        say=speaker(args, task),
    )


def wrote_idle(
    sequences: SequenceSet | BundleSequences, output: Path, *, quiet: bool = False
) -> bool:
    """Write the file of a range that has no sequences; returns whether this is such a range.

    No model is looked at, and no PyTorch loaded.
    """
    if not isinstance(sequences, BundleSequences) or not sequences.is_idle:
        return False
    from esm_pipeline.tasks.common.plan import write_idle

    with atomic_path(output) as path:
        write_idle(path, sequences.part)
    if not quiet:
        told = sequences.part.attributes
        print(f"{told['task']}: no sequences in range {told['range']}", file=sys.stderr)
    return True


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
    """Temporary paths of the outputs of a run, and what is counted of its records."""

    rows: Path
    """The results as HDF5: `output`, or a file that is removed in the end."""
    output: Path
    more: list[Path]
    """The table of records and extra files; none for a range."""
    counts: Tally


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

    `targets` are the output, the table of records and extra files, or the file of a range;
    `written_together` explains `stale`.
    """
    from esm_pipeline.tasks.common.compute import write_rows

    with ExitStack() as stack:
        paths = stack.enter_context(written_together(targets, args.sha256, stale=stale))
        output, *more = paths
        is_hdf5 = targets[0].suffix.lower() in HDF5
        rows = output if is_hdf5 else stack.enter_context(scratch_path(targets[0]))
        write_rows(runner, plan, rows, quiet=args.quiet)
        yield ComputedFiles(rows, output, more, plan.write_outcomes(*more[:1]))


def run_details(
    runner: ArrayRunner[Any], plan: SequencePlan, started: float, *, rate: bool = True
) -> str:
    """Residues and times of a run that `started` at that `perf_counter`, perhaps residues/s."""
    seconds = time.perf_counter() - started
    residues = int(plan.lengths[plan.rows() >= 0].sum())
    speed = f"; {residues / seconds:,.0f} residues/s" if rate else ""
    times = f"in {seconds:.1f} s, {runner.seconds:.1f} s of it in the model{speed}"
    return f"{count_text(residues, 'residues')} {times}"


def finish(
    args: argparse.Namespace,
    task: str,
    counts: Tally,
    details: str,
    table: Path | None,
    *,
    unit: str = "records",
    failed: int | None = None,
) -> int:
    """Print the summary of a run; returns the exit code.

    `counts` are those of a `unit`, `table` has their reasons; the file of a range, which has no
    table, has the reasons in itself. `failed`: how many count as failed, by default of `counts`.
    """
    if not args.quiet:
        unit = "sequences" if args.range and unit == "records" else unit
        line = closing_line(title_of(args, task), counts, unit, details, output_of(args), table)
        print(line, file=sys.stderr)
    failed = counts.statuses[FAILED] if failed is None else failed
    return exit_code(failed, args.on_failure)


def output_of(args: argparse.Namespace) -> Path:
    """What the command writes, as given."""
    return Path(args.output if "output" in args else args.paths[-1])


def title_of(args: argparse.Namespace, task: str) -> str:
    """What the lines of a command begin with: the task, and the range of a job."""
    return f"{task}, range {args.range.name}" if args.range else task


def speaker(args: argparse.Namespace, task: str) -> Speaker:
    """Reports the progress of a command, unless it is to be quiet."""
    return Speaker(title_of(args, task), args.quiet)
