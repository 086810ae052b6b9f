"""Score variants: a table of mutations, or every substitution of every protein.

`--variants TABLE WT.fasta OUT` copies the table and appends the scores to its columns, and
`--saturation WT.fasta OUT` writes all substitutions. OUT's `.records.tsv` has the outcome of every
protein. Several models make an ensemble: the results have their mean, and the scores by each.
With `--range`, a job of the workflow scores a part of what `split` or `shard` wrote, into one file.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from esm_pipeline.arrays import Float64
from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path, scratch_path
from esm_pipeline.flags import section_from
from esm_pipeline.formats.bundles import Range
from esm_pipeline.formats.checksums import check_if_listed
from esm_pipeline.formats.input_checksums import require_unchanged
from esm_pipeline.formats.records import FAILED
from esm_pipeline.formats.results.job_files import STATUS_CODES, StoredOutcomes
from esm_pipeline.formats.results.saturation import Saturations
from esm_pipeline.formats.tables.base import SUFFIXES, Table, suffix_of
from esm_pipeline.formats.tables.open import create_table, open_table
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.section import values
from esm_pipeline.settings.sections import (
    AS_VALIDATED,
    CleaningSettings,
    ScoreSettings,
    StrategySettings,
)
from esm_pipeline.tasks.common import command
from esm_pipeline.tasks.common.bundle_sequences import BundleSequences
from esm_pipeline.tasks.common.gather import gather_ragged
from esm_pipeline.tasks.common.model_file import MODEL_HELP
from esm_pipeline.tasks.common.outcomes import format_counts
from esm_pipeline.tasks.common.outputs import check_output, ending_of
from esm_pipeline.tasks.common.plan import LengthPolicy, SequencePlan
from esm_pipeline.tasks.common.progress import progress
from esm_pipeline.tasks.common.sequences import (
    SequenceSet,
    open_sequences,
    read_entries,
)
from esm_pipeline.tasks.common.unique_sequences import UniqueSequences
from esm_pipeline.tasks.score.score_files import RangeScores, write_range_scores
from esm_pipeline.tasks.score.variant_range import VariantPart
from esm_pipeline.tasks.score.variant_table import (
    JOINT,
    LIKELIHOOD,
    SCORE,
    VariantArrays,
    VariantTable,
    mutated_sequences,
    score_columns,
    write_scores,
)
from esm_pipeline.tasks.score.wild_types import DEFAULT_COLUMN, WildTypes, open_wild_types
from esm_pipeline.tasks.score.work import SATURATION_WORK

if TYPE_CHECKING:
    from esm_pipeline.model import EsmPreTrainedModel
    from esm_pipeline.tasks.score.forward_passes import Ensemble
    from esm_pipeline.tasks.score.strategies import Strategy

SUFFIX = ".h5"
MODEL_SETTINGS = StrategySettings
aggregate = gather_ragged

NOT_IN_LABEL = re.compile(r"[^A-Za-z0-9._-]+")
"""Characters that the label of a model cannot have."""


class ModelChoice(NamedTuple):
    """A model of the ensemble, not opened yet, or one that is loaded."""

    label: str
    model: str | EsmPreTrainedModel
    revision: str | None


class ScoreArguments(NamedTuple):
    """The arguments, checked. `variants` is the table to score; None for a saturation."""

    settings: ScoreSettings
    cleaning: CleaningSettings
    models: list[ModelChoice]
    variants: str | None
    wild_types: list[str]
    """FASTA or table; none if a column of the variants has the sequences."""
    allow_empty: bool
    output: Path
    records: Path
    """The table of the outcomes of all proteins; a range has none."""
    range_: Range | None
    plots: Path | None
    provenance: Path | None
    checksums: Path | None
    quiet: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `score`."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="WT.fasta OUT",
        help="the wild types, a FASTA or a table (not with --sequence-col), and the file to write: "
        ".tsv, .csv or .parquet; with --saturation also .h5",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--variants", metavar="TABLE", help="CSV, TSV or Parquet, one variant per row"
    )
    what.add_argument("--saturation", action="store_true", help="score every substitution")
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        help=f"{MODEL_HELP}; several make an ensemble",
    )
    parser.add_argument(
        "--label", action="append", default=[], help="name in the output, one for each --model"
    )
    parser.add_argument(
        "--revision",
        action="append",
        default=[],
        help="commit, tag or branch, one for each --model",
    )
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="folder for heatmaps of a saturation"
    )
    command.add_task_flags(parser, (ScoreSettings, CleaningSettings), "models and versions")


def outputs(args: argparse.Namespace) -> Outputs:
    """What `score` writes. Raises InputError for a path that cannot be written."""
    arguments = read_arguments(args)
    if args.range:
        return Outputs([arguments.output])
    files = [arguments.output, arguments.records, arguments.provenance, arguments.checksums]
    return Outputs(files, added_to=[arguments.plots] if arguments.plots else [])


def run(args: argparse.Namespace) -> int:
    """Score; returns the exit code."""
    started = time.perf_counter()
    require_unchanged(args.unchanged)
    arguments = read_arguments(args)
    if args.saturation:
        summary, failed = saturate(arguments)
    elif args.range:
        summary, failed = score_range(arguments)
    else:
        summary, failed = score_table(arguments)
    line = f"score: {summary}; {time.perf_counter() - started:.1f} s"
    return command.finish(args, line, failed, None if args.range else arguments.records)


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail at, without loading the weights."""
    from esm_pipeline.tasks.score.forward_passes import LanguageModel

    settings = section_from(StrategySettings, args)
    model = LanguageModel(args.model, args.revision, settings)
    LengthPolicy.choose(SCORE, [model.config.max_residues], settings.long, settings.window)
    model.check()


def read_arguments(args: argparse.Namespace) -> ScoreArguments:
    """Check the arguments. Raises InputError."""
    settings, cleaning = section_from(ScoreSettings, args), section_from(CleaningSettings, args)
    *wild_types, last = args.paths
    output = Path(last)
    if len(wild_types) > 1 or not (wild_types or args.variants):
        raise InputError(f"{' '.join(args.paths)}: give the wild types and the file to write")
    if args.plots and not args.saturation:
        raise InputError("--plots: draws the results of --saturation only; leave it out")
    if args.range and not wild_types:
        raise InputError(f"{output}: give the wild types of the range as well")
    suffixes = SUFFIXES if args.variants and not args.range else (SUFFIX, *SUFFIXES)
    ending_of(output, suffixes)
    inputs = [*wild_types, *filter(None, [args.variants])]
    if args.range:
        command.check_range_output(args, output, inputs)
    records = check_output(output, inputs, [args.provenance, args.sha256], suffixes)
    return ScoreArguments(
        settings=settings,
        cleaning=cleaning,
        models=name_models(args.model, args.label, args.revision),
        variants=args.variants,
        wild_types=wild_types,
        allow_empty=args.allow_empty,
        output=output,
        records=records,
        range_=args.range,
        plots=args.plots,
        provenance=args.provenance,
        checksums=args.sha256,
        quiet=args.quiet,
    )


def name_models(names: list[str], labels: list[str], revisions: list[str]) -> list[ModelChoice]:
    """The models with their labels, by default the last parts of their names. Raises InputError."""
    for what, given in (("label", labels), ("revision", revisions)):
        if given and len(given) != len(names):
            raise InputError(f"--{what}: {len(given)} for {len(names)} models; give one for each")
    labels = labels or [NOT_IN_LABEL.sub("_", Path(name).name) or "model" for name in names]
    for label in labels:
        if NOT_IN_LABEL.search(label) or not label:
            raise InputError(f"--label: {label!a} should have letters, digits, '.', '_' and '-'")
        if labels.count(label) > 1:
            raise InputError(f"two models are called '{label}'; name each with --label")
    versions = [revision or None for revision in revisions] or [None] * len(names)
    return [ModelChoice(*one) for one in zip(labels, names, versions, strict=True)]


def score_table(arguments: ScoreArguments) -> tuple[str, int]:
    """Score the rows of a table; returns the summary, and how many rows and proteins failed."""
    settings, cleaning, folder = arguments.settings, arguments.cleaning, arguments.output.parent
    path = str(arguments.variants)
    check_if_listed(Path(path))
    table = open_table(path)
    columns = score_columns(settings.strategy, [model.label for model in arguments.models])
    suffix = suffix_of(arguments.output)
    table.require_room_for(columns, suffix)
    with ExitStack() as stack:
        wild_types = stack.enter_context(
            open_wild_types(
                *(arguments.wild_types, table, settings, cleaning, folder),
                allow_empty=arguments.allow_empty,
            )
        )
        planned = plan_table(arguments, table, wild_types, stack)
        with writing(arguments, planned.models) as (output, records):
            scores = planned.scores(quiet=arguments.quiet)
            strategy = planned.strategy
            with create_table(output, suffix, table, columns) as writer:
                counts = write_scores(
                    writer, planned.variants, strategy.usable, strategy.outcome, scores
                )
            failed = strategy.plan.write_outcomes(records)[FAILED]
    return planned.summary(counts), counts[FAILED] + failed


def score_range(arguments: ScoreArguments) -> tuple[str, int]:
    """Score a range of a table that was split; returns the same. Takes some 130 bytes a row."""
    columns = score_columns(arguments.settings.strategy, [one.label for one in arguments.models])
    names = [column.name for column in columns if column.kind == "number"]
    assert arguments.range_ is not None
    assert arguments.variants is not None
    paths = Path(arguments.variants), Path(*arguments.wild_types)
    work = VariantPart.open(*paths, arguments.range_)
    with atomic_path(arguments.output) as output:
        if work.is_idle:
            write_range_scores(output, RangeScores.none(names), work.attributes)
            return "no variants in this range", 0
        table = work.table()
        with ExitStack() as stack:
            sequence_set = work.sequences(arguments.cleaning, arguments.output.parent)
            wild_types = stack.enter_context(WildTypes(sequence_set, DEFAULT_COLUMN))
            planned = plan_table(arguments, table, wild_types, stack)
            strategy = planned.strategy
            if not strategy.usable.all():
                raise InputError(
                    f"{table.path}: row {table.numbers[strategy.usable.argmin()]} cannot be scored "
                    "as it is here; split the table with the same strategy"
                )
            scores = planned.scores(quiet=arguments.quiet)
            number = len(table.numbers)
            outcomes = StoredOutcomes.of(
                chain(
                    map(strategy.outcome, range(number)),
                    map(strategy.plan.outcome, sequence_set.records()),
                )
            )
            found = RangeScores(
                rows=table.numbers,
                proteins=work.bundle.first[work.bundle.proteins(work.span)],
                scores=np.stack(scores, axis=1),
                outcomes=outcomes,
                columns=names,
                provenance=provenance_of(arguments.settings, planned.models),
            )
            write_range_scores(output, found, work.attributes)
    codes = np.bincount(outcomes.codes[:number], minlength=len(STATUS_CODES) + 1).tolist()
    counts = Counter({status: codes[code] for status, code in STATUS_CODES.items()})
    failed = int(np.count_nonzero(outcomes.codes == STATUS_CODES[FAILED]))
    return planned.summary(counts), failed


class PlannedTable(NamedTuple):
    """The rows of a table, and how they are scored."""

    variants: VariantTable
    models: Ensemble
    strategy: Strategy

    def scores(self, *, quiet: bool) -> list[Float64]:
        """The columns of scores, (N,) each."""
        work = self.strategy.work * len(self.models)
        with progress(SCORE, work, "tokens", quiet=quiet) as advance:
            return self.strategy.score(self.models, advance)

    def summary(self, counts: Counter[str]) -> str:
        """The rows by status, and the passes."""
        return f"{format_counts(counts, 'variants')}; {count_passes(self.models)}"


def plan_table(
    arguments: ScoreArguments, table: Table, wild_types: WildTypes, stack: ExitStack
) -> PlannedTable:
    """Read all rows, and plan their passes. Files of mutated sequences are closed with `stack`."""
    settings, cleaning = arguments.settings, arguments.cleaning
    by_likelihood = settings.strategy == LIKELIHOOD
    variants = VariantTable(
        table, wild_types, settings, cleaning, substitutions_only=not by_likelihood
    )
    rows = VariantArrays(joint=settings.strategy == JOINT)
    if by_likelihood:
        mutants = mutated_sequences(variants, rows)
        validated = cleaning.model_copy(update=AS_VALIDATED)
        sequences = read_entries(mutants, validated, arguments.output.parent)
        stack.enter_context(sequences)
    else:
        for row in variants.rows():
            rows.add(row)

    from esm_pipeline.tasks.score.strategies import Likelihoods, Marginals  # with PyTorch

    models = find_models(arguments.models, settings)
    plan = plan_sequences(wild_types.sequence_set, models, settings)
    if by_likelihood:
        return PlannedTable(variants, models, Likelihoods(settings, rows, plan, sequences))
    return PlannedTable(variants, models, Marginals(settings, rows, plan))


def saturate(arguments: ScoreArguments) -> tuple[str, int]:
    """Score every substitution; returns the summary, and how many records failed."""
    output, quiet = arguments.output, arguments.quiet
    with open_saturated(arguments) as sequence_set:
        if command.wrote_idle(sequence_set, output, quiet=True):
            return "no sequences in this range", 0
        from esm_pipeline.tasks.score.heatmaps import draw_all
        from esm_pipeline.tasks.score.saturation import SaturationScorer, write_long_table

        models = find_models(arguments.models, arguments.settings)
        plan = plan_sequences(sequence_set, models, arguments.settings)
        scorer = SaturationScorer(arguments.settings, plan)
        work = scorer.work * len(models)
        with writing(arguments, models) as (path, *records), ExitStack() as stack:
            as_table = output.suffix.lower() != SUFFIX
            hdf5 = stack.enter_context(scratch_path(output)) if as_table else path
            with progress(SCORE, work, "tokens", quiet=quiet) as advance:
                scorer.run(models, hdf5, advance)
            if arguments.plots:
                with Saturations.open(hdf5) as results:
                    draw_all(results, results, arguments.plots, quiet=quiet)
            if as_table:
                write_long_table(hdf5, path, suffix_of(output))
            counts = plan.write_outcomes(*records)
    residues = int(plan.lengths[plan.rows() >= 0].sum())
    unit = "sequences of a range" if arguments.range_ else "records"
    summary = f"{format_counts(counts, unit)}; {residues:,} residues, {count_passes(models)}"
    return summary, counts[FAILED]


def open_saturated(arguments: ScoreArguments) -> SequenceSet | BundleSequences:
    """The proteins of which every substitution is scored: of a file, or of a range of a bundle."""
    wild_types, folder = arguments.wild_types, arguments.output.parent
    if arguments.range_:
        return BundleSequences(Path(*wild_types), arguments.range_, SCORE, SATURATION_WORK)
    return open_sequences(wild_types, arguments.cleaning, folder, allow_empty=arguments.allow_empty)


@contextmanager
def writing(arguments: ScoreArguments, models: Ensemble) -> Iterator[list[Path]]:
    """Temporary paths of the output and of the table of records; of a range, only the output.

    They are moved into place together, with provenance and checksums if these are wanted.
    """
    results = [arguments.output, *([] if arguments.range_ else [arguments.records])]
    targets = [*results, *filter(None, [arguments.provenance])]
    with command.written_together(targets, arguments.checksums) as paths:
        yield paths[: len(results)]
        for path in paths[len(results) :]:
            facts = provenance_of(arguments.settings, models)
            path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def provenance_of(settings: ScoreSettings, models: Ensemble) -> dict[str, Any]:
    """The provenance of scores: settings, models and versions."""
    from esm_pipeline.tasks.common.runner import software

    return {
        "format": "esm-pipeline/scores",
        "format_version": 1,
        **values(settings.part(StrategySettings)),
        "models": {label: model.origin for label, model in models.items()},
        "software": software(),
    }


def find_models(choices: list[ModelChoice], settings: ScoreSettings) -> Ensemble:
    """The models by their labels, not loaded yet."""
    from esm_pipeline.model.inference.device import set_threads
    from esm_pipeline.tasks.score.forward_passes import LanguageModel

    set_threads(settings.threads)
    return {label: LanguageModel(model, revision, settings) for label, model, revision in choices}


def plan_sequences(
    sequence_set: UniqueSequences, models: Ensemble, settings: ScoreSettings
) -> SequencePlan:
    """Which sequences are scored, and how much of each; the shortest position table counts."""
    limits = [model.config.max_residues for model in models.values()]
    policy = LengthPolicy.choose(SCORE, limits, settings.long, settings.window)
    return SequencePlan(sequence_set, policy)


def count_passes(models: Ensemble) -> str:
    """How many forward passes were run, and for how long, for the summary."""
    count = sum(model.passes for model in models.values())
    seconds = sum(model.seconds for model in models.values())
    return f"{count:,} passes, {seconds:.1f} s in the model"
