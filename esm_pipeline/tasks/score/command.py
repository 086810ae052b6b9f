"""Score variants: a table of mutations, or every substitution of every protein.

`--variants TABLE WT.fasta OUT` writes the table with its columns untouched and the scores behind,
`--saturation WT.fasta OUT` all substitutions. Beside OUT stands its `.records.tsv`, with the fate
of every protein. Several models make an ensemble: the mean, and each.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_paths, scratch_path
from esm_pipeline.flags import add_common, add_flags, exit_code, section_from
from esm_pipeline.formats.checksums import check_shard
from esm_pipeline.formats.input_checksums import require_unchanged
from esm_pipeline.formats.records import FAILED
from esm_pipeline.formats.results.saturation import Saturations
from esm_pipeline.formats.tables.base import SUFFIXES, create_table, open_table, suffix_of
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.sections import (
    AS_VALIDATED,
    CleaningSettings,
    ScoreSettings,
    StrategySettings,
    values,
)
from esm_pipeline.tasks.common.model_file import MODEL_HELP
from esm_pipeline.tasks.common.outputs import check_output, vouch
from esm_pipeline.tasks.common.plan import Plan, Reach
from esm_pipeline.tasks.common.progress import progress
from esm_pipeline.tasks.common.sequences import Intake, open_intake, take_in
from esm_pipeline.tasks.common.shards import gather_ragged
from esm_pipeline.tasks.score.offsets import add_hints
from esm_pipeline.tasks.score.scored_table import Scores, added_columns, told
from esm_pipeline.tasks.score.table_columns import check_columns, require_match
from esm_pipeline.tasks.score.variant_rows import LIKELIHOOD, Reader, Rows
from esm_pipeline.tasks.score.wild_types import open_wild_types

if TYPE_CHECKING:
    from esm_pipeline.tasks.score.marginals import LanguageModel
    from esm_pipeline.tasks.score.strategies import Strategy

TASK = "score"
SUFFIX = ".h5"
MODEL_SETTINGS = StrategySettings
aggregate = gather_ragged
Models: TypeAlias = "dict[str, LanguageModel]"
"""Models by their labels."""

FOREIGN = re.compile(r"[^A-Za-z0-9._-]+")
"""What a label of a model has not."""


class Named(NamedTuple):
    """A model as it is asked for."""

    label: str
    name: str
    revision: str | None


class Request(NamedTuple):
    """What is to be done, checked: files of wild types, if given, the output, its records."""

    settings: ScoreSettings
    cleaning: CleaningSettings
    models: list[Named]
    wild_types: list[str]
    output: Path
    table: Path
    args: argparse.Namespace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `score`."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="WT.fasta OUT",
        help="the wild types, FASTA or a table (left out with --sequence-col), and the file to "
        "write: .tsv, .csv or .parquet; for --saturation also .h5",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--variants", metavar="TABLE", help="CSV, TSV or Parquet, a variant a row")
    what.add_argument("--saturation", action="store_true", help="score every substitution")
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        help=f"{MODEL_HELP}; several make an ensemble",
    )
    parser.add_argument(
        "--label", action="append", default=[], help="name of each model in the output, in turn"
    )
    parser.add_argument(
        "--revision", action="append", default=[], help="commit, tag or branch of each, in turn"
    )
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="folder for a picture of each saturated protein"
    )
    parser.add_argument("--allow-empty", action="store_true", help="accept a FASTA with no record")
    parser.add_argument(
        "--provenance", type=Path, metavar="FILE", help="write models and versions, as JSON"
    )
    parser.add_argument("--sha256", type=Path, metavar="FILE", help="write digests of the outputs")
    add_flags(parser, ScoreSettings)
    add_flags(parser, CleaningSettings)
    add_common(parser)


def outputs(args: argparse.Namespace) -> Outputs:
    """What `score` writes. Raises InputError for a place that cannot be."""
    request = read_request(args)
    files = [request.output, request.table, args.provenance, args.sha256]
    return Outputs(files, added_to=[args.plots] if args.plots else [])


def run(args: argparse.Namespace) -> int:
    """Score; returns the exit code."""
    started = time.perf_counter()
    require_unchanged(args.unchanged)
    request = read_request(args)
    summary, failed = saturate(request) if args.saturation else score_table(request)
    if not args.quiet:
        see = f"; see {request.table}" if failed and args.on_failure == "error" else ""
        seconds = time.perf_counter() - started
        print(f"score: {summary}; {seconds:.1f} s{see}", file=sys.stderr)
    return exit_code(failed, args.on_failure)


def check_model(args: argparse.Namespace) -> None:
    """Raise now what every job with these settings would fail at, without loading the weights."""
    from esm_pipeline.tasks.score.marginals import LanguageModel

    settings = section_from(StrategySettings, args)
    model = LanguageModel(args.model, args.revision, settings)
    Reach.choose(TASK, [model.config.max_residues], settings.long, settings.window)
    model.check()


def read_request(args: argparse.Namespace) -> Request:
    """Check the arguments. Raises InputError."""
    settings, cleaning = section_from(ScoreSettings, args), section_from(CleaningSettings, args)
    *inputs, output = args.paths
    if len(inputs) > 1 or not (inputs or args.variants):
        raise InputError(f"{' '.join(args.paths)}: give the wild types and the file to write")
    if args.plots and not args.saturation:
        raise InputError("--plots: pictures are of a saturation; leave it out")
    others = [args.variants] if args.variants else []
    kinds = SUFFIXES if args.variants else (SUFFIX, *SUFFIXES)
    if Path(output).suffix.lower() not in kinds:
        raise InputError(f"{output}: cannot be written; let its name end in {', '.join(kinds)}")
    extra = [args.provenance, args.sha256]
    table = check_output(Path(output), [*inputs, *others], extra, kinds)
    models = name_models(args.model, args.label, args.revision)
    return Request(settings, cleaning, models, inputs, Path(output), table, args)


def name_models(names: list[str], labels: list[str], revisions: list[str]) -> list[Named]:
    """The models with their labels, by default the last parts of their names. Raises InputError."""
    for what, given in (("label", labels), ("revision", revisions)):
        if given and len(given) != len(names):
            raise InputError(f"--{what}: {len(given)} for {len(names)} models; give one for each")
    labels = labels or [FOREIGN.sub("_", Path(name).name) or "model" for name in names]
    for label in labels:
        if FOREIGN.search(label) or not label:
            raise InputError(f"--label: {label!a} should have letters, digits, '.', '_' and '-'")
        if labels.count(label) > 1:
            raise InputError(f"two models are called '{label}'; name each with --label")
    versions = [revision or None for revision in revisions] or [None] * len(names)
    return [Named(*one) for one in zip(labels, names, versions, strict=True)]


def score_table(request: Request) -> tuple[str, int]:
    """Score the rows of a table; returns what to tell, and how many failed."""
    settings, cleaning, args = request.settings, request.cleaning, request.args
    folder = request.output.parent
    check_shard(Path(args.variants))
    table = open_table(args.variants)
    columns = added_columns(settings.strategy, [model.label for model in request.models])
    suffix = suffix_of(request.output)
    table.refuse(columns, suffix)
    with ExitStack() as stack:
        wild_types = stack.enter_context(
            open_wild_types(
                request.wild_types, table, settings, cleaning, folder, allow_empty=args.allow_empty
            )
        )
        marginal = settings.strategy != LIKELIHOOD
        reader = Reader(settings, cleaning, wild_types, marginal=marginal)
        check_columns(table, reader)
        rows, sequences = Rows(sets=settings.strategy.endswith("joint")), None
        if not marginal:
            mutants = rows.read_sequences(table, reader)
            taken = cleaning.model_copy(update=AS_VALIDATED)
            sequences = stack.enter_context(take_in(mutants, taken, folder))
        else:
            rows.read(table, reader)
        require_match(table, wild_types)
        add_hints(table, reader, rows.misfits)
        models = find_models(request)
        plan = plan_for(request, wild_types.intake, models)
        strategy = choose_strategy(settings, rows, plan, sequences)
        with writing(request, models) as (path, records):
            by_model = []
            with progress("score", strategy.work * len(models), "tokens", quiet=args.quiet) as step:
                for model in models.values():
                    if strategy.work:
                        model.load()
                    by_model.append(strategy.score(model, step))
                    model.unload()
            with create_table(path, suffix, table, columns) as writer:
                counts = Scores(strategy, by_model).write(writer, table, reader)
            failed = plan.write_outcomes(records)[FAILED]
    return f"{told(counts, 'variants')}; {passes(models)}", counts[FAILED] + failed


def saturate(request: Request) -> tuple[str, int]:
    """Score every substitution; returns what to tell, and how many records failed."""
    settings, args = request.settings, request.args
    folder, empty = request.output.parent, args.allow_empty
    with open_intake(request.wild_types, request.cleaning, folder, allow_empty=empty) as intake:
        from esm_pipeline.tasks.score.heatmaps import draw_all
        from esm_pipeline.tasks.score.saturation import Saturation, write_long

        models = find_models(request)
        plan = plan_for(request, intake, models)
        saturation = Saturation(settings, plan)
        with writing(request, models) as (path, records), ExitStack() as stack:
            as_table = request.output.suffix.lower() != SUFFIX
            ragged = stack.enter_context(scratch_path(request.output)) if as_table else path
            total = saturation.work * len(models)
            with progress("score", total, "tokens", quiet=args.quiet) as step:
                saturation.run(models, ragged, step)
            if args.plots:
                with Saturations.open(ragged) as results:
                    draw_all(results, results, args.plots, quiet=args.quiet)
            if as_table:
                write_long(ragged, path, suffix_of(request.output))
            counts = plan.write_outcomes(records)
    residues = int(plan.lengths[plan.rows() >= 0].sum())
    return f"{told(counts, 'records')}; {residues:,} residues, {passes(models)}", counts[FAILED]


@contextmanager
def writing(request: Request, models: Models) -> Iterator[tuple[Path, Path]]:
    """Temporary paths of the output and the table of records; what is asked for beside follows."""
    provenance, digests = request.args.provenance, request.args.sha256
    targets = [request.output, request.table, *filter(None, [provenance, digests])]
    with atomic_paths(*targets) as paths:
        yield paths[0], paths[1]
        if provenance:
            facts = describe(request.settings, models)
            paths[2].write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if digests:
            vouch(paths[-1], digests, dict(zip(targets[:-1], paths, strict=False)))


def describe(settings: ScoreSettings, models: Models) -> dict[str, Any]:
    """How scores are made."""
    from esm_pipeline.tasks.common.runner import software

    return {
        "format": "esm-pipeline/scores",
        "format_version": 1,
        **values(settings.part(StrategySettings)),
        "models": {label: model.origin for label, model in models.items()},
        "software": software(),
    }


def find_models(request: Request) -> Models:
    """The models by their labels, not loaded yet. PyTorch is, from here on."""
    from esm_pipeline.model.inference.device import set_threads
    from esm_pipeline.tasks.score.marginals import LanguageModel

    set_threads(request.settings.threads)
    return {
        model.label: LanguageModel(model.name, model.revision, request.settings)
        for model in request.models
    }


def plan_for(request: Request, intake: Intake, models: Models) -> Plan:
    """What becomes of long proteins, under the shortest position table of the models."""
    limits = [model.config.max_residues for model in models.values()]
    settings = request.settings
    return Plan(intake, Reach.choose(TASK, limits, settings.long, settings.window))


def choose_strategy(
    settings: ScoreSettings, rows: Rows, plan: Plan, sequences: Intake | None
) -> Strategy:
    """The strategy of the settings; likelihoods have `sequences`."""
    from esm_pipeline.tasks.score.strategies import Likelihoods, Marginals

    if sequences is None:
        return Marginals(settings, rows, plan)
    return Likelihoods(settings, rows, plan, sequences)


def passes(models: Models) -> str:
    """How often the models ran, for a summary."""
    count = sum(model.passes for model in models.values())
    seconds = sum(model.seconds for model in models.values())
    return f"{count:,} passes, {seconds:.1f} s in the model"
