"""`score` and `saturation` as functions: variants in, scores out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, Unpack, overload

import numpy as np

from esm_pipeline.arrays import Float32, Float64
from esm_pipeline.errors import InputError, number_of
from esm_pipeline.formats.mutations import AMINO_ACIDS
from esm_pipeline.formats.records import OK, Outcome
from esm_pipeline.formats.results.saturation import Saturations
from esm_pipeline.formats.tables.base import Table
from esm_pipeline.formats.tables.in_memory import MemoryTable, MemoryWriter
from esm_pipeline.settings.sections import CleaningSettings, ScoreSettings
from esm_pipeline.tasks.common.functions import (
    CommonOptions,
    ComputedRecords,
    FunctionCall,
    is_missing_value,
    is_path,
    list_of_models,
    model_or_name,
    named_sequences,
    read_sequences,
    text_cells,
)
from esm_pipeline.tasks.common.progress import SILENT, Speaker, progress
from esm_pipeline.tasks.common.sequences import read_entries
from esm_pipeline.tasks.score.command import (
    ModelChoice,
    ScoreArguments,
    amounts_of,
    find_models,
    name_models,
    plan_sequences,
    plan_table,
)
from esm_pipeline.tasks.score.variant_table import SCORE, score_columns, write_scores
from esm_pipeline.tasks.score.wild_types import (
    WildTypes,
    open_wild_types,
    protein_column_of,
    wild_types_in_column,
)

if TYPE_CHECKING:
    import pandas as pd

    from esm_pipeline.tasks.common.functions import AnyModel, Sequences

    Models: TypeAlias = AnyModel | Sequence[AnyModel] | Mapping[str, AnyModel]
    """One model, several that make an ensemble, or label → model."""

StrategyName: TypeAlias = Literal[
    "masked_marginal", "masked_marginal_joint", "wt_marginal", "pseudo_log_likelihood"
]
LongProteins: TypeAlias = Literal["auto", "skip", "truncate", "window", "full"]
SATURATION = "saturation"
WILD_TYPE_ID = "wild_type"
"""Id of a wild type that has no other name."""


@overload
def score(
    variants: pd.DataFrame,
    model: Models,
    *,
    sequence: str | None = None,
    sequences: Sequences | pd.DataFrame | None = None,
    sequence_col: str | None = None,
    strategy: StrategyName = "masked_marginal",
    offset: int = 0,
    mutation_col: str | None = None,
    mutated_sequence_col: str | None = None,
    position_col: str | None = None,
    mutant_aa_col: str | None = None,
    wild_type_aa_col: str | None = None,
    protein_col: str | None = None,
    protein: str | None = None,
    long: LongProteins | None = None,
    window: int | None = None,
    **options: Unpack[CommonOptions],
) -> pd.DataFrame: ...
@overload
def score(
    variants: Sequence[str] | pd.Series[str],
    model: Models,
    *,
    sequence: str | None = None,
    sequences: Sequences | pd.DataFrame | None = None,
    strategy: StrategyName = "masked_marginal",
    offset: int = 0,
    protein: str | None = None,
    long: LongProteins | None = None,
    window: int | None = None,
    **options: Unpack[CommonOptions],
) -> Float64: ...
def score(
    variants: Sequence[str] | pd.Series[str] | pd.DataFrame,
    model: Models,
    *,
    sequence: str | None = None,
    sequences: Sequences | pd.DataFrame | None = None,
    sequence_col: str | None = None,
    strategy: StrategyName = "masked_marginal",
    offset: int = 0,
    mutation_col: str | None = None,
    mutated_sequence_col: str | None = None,
    position_col: str | None = None,
    mutant_aa_col: str | None = None,
    wild_type_aa_col: str | None = None,
    protein_col: str | None = None,
    protein: str | None = None,
    long: LongProteins | None = None,
    window: int | None = None,
    **options: Unpack[CommonOptions],
) -> Float64 | pd.DataFrame:
    """Score variants, as `esm-pipeline score` does; higher is fitter.

    `variants`: a list of mutations such as "A42G" or "A42G:T50K", or a data frame with them in the
    column `mutation_col` ("mutant" by default) or in those of `mutated_sequence_col`, or
    `position_col` and `mutant_aa_col`. The wild type is `sequence`; or `sequences` are several, as
    `embed` takes them, and `protein_col` ("protein" by default) has the id of each row's, or
    `protein` that of all rows; or the column `sequence_col` has them. The first residue has the
    number 1 + `offset`.

    `model`: as for `embed`, or several, whose mean is the score. The settings, the other options
    and the errors are those of `embed` and of the command.

    Returns (N,) float64, NaN for a variant that cannot be scored; by `pseudo_log_likelihood`, the
    likelihoods. A data frame comes back as a copy with the command's columns appended: status,
    reason, the strategy's, and `{strategy}.{label}` of several models.
    """
    own = {
        "strategy": strategy,
        "offset": offset,
        "sequence_col": sequence_col,
        "mutation_col": mutation_col,
        "mutated_sequence_col": mutated_sequence_col,
        "position_col": position_col,
        "mutant_aa_col": mutant_aa_col,
        "wild_type_aa_col": wild_type_aa_col,
        "protein_col": protein_col,
        "protein": protein,
        "long": long,
        "window": window,
    }
    call = FunctionCall(SCORE, models_in(model), options, own, ScoreSettings)
    settings = call.settings(ScoreSettings)
    if sum(one is not None for one in (sequence, sequences, sequence_col)) != 1:
        raise InputError("score: give one of sequence, sequences and sequence_col: the wild types")
    if sequence is not None and (protein_col, protein) != (None, None):
        raise InputError(
            "score: all variants are of the one sequence; leave out protein and protein_col, or "
            "give sequences"
        )
    choices = model_choices(model, call.run.revision)
    frame = variants if type(variants).__name__ == "DataFrame" else None
    table = variant_table(variants, settings)
    columns = score_columns(settings.strategy, [choice.label for choice in choices])
    table.require_room_for(columns, "")
    with call.computing(settings) as folder, ExitStack() as stack:
        settings = with_threads(settings)
        where = open_given_wild_types(sequence, sequences, table, settings, call.cleaning, folder)
        wild_types = stack.enter_context(where)
        arguments = arguments_of(settings, call.cleaning, choices, folder)
        planned = plan_table(arguments, table, wild_types, stack)
        scores = planned.scores(Speaker(SCORE, call.run.quiet, short=True))
        writer, chosen = MemoryWriter(columns), planned.strategy
        write_scores(writer, planned.variants, chosen.usable, chosen.outcome, scores)
    added = writer.values
    outcomes = list(map(Outcome, added["status"], added["reason"]))
    names = [*map(str, range(len(outcomes)))] if frame is not None else list(map(str, variants))
    see = "a data frame of variants" if frame is None else "the column 'reason'"
    call.require_outcomes(outcomes, names, see)
    numbers = {name: values for name, values in added.items() if name not in ("status", "reason")}
    if frame is None:
        return np.array(numbers[settings.strategy], np.float64)
    return with_columns(frame, {**added, **{k: np.array(v) for k, v in numbers.items()}})


def with_threads(settings: ScoreSettings) -> ScoreSettings:
    """The settings with the threads that PyTorch uses now, which the command would set."""
    import torch

    return settings.model_copy(update={"threads": torch.get_num_threads()})


def with_columns(frame: object, added: Mapping[str, object]) -> pd.DataFrame:
    """A copy of a data frame with columns appended."""
    import pandas as pd

    assert isinstance(frame, pd.DataFrame)
    new = pd.DataFrame(dict(added), index=frame.index)
    return pd.concat([frame, new], axis=1)


def models_in(model: Models) -> list[AnyModel]:
    """The model, or all of an ensemble. Raises InputError if there is none."""
    found = list_of_models(list(model.values()) if isinstance(model, Mapping) else model)
    if not found:
        raise InputError("model: an empty list; give at least one model")
    return found


def model_choices(model: Models, revision: str | None) -> list[ModelChoice]:
    """The models with their labels, by default the last parts of their names.

    Raises InputError for labels that cannot be used, and for a revision of several models.
    """
    several = models_in(model)
    if revision is not None and len(several) > 1:
        raise InputError("revision: of one model only; give several as folders")
    opened = [model_or_name(one) for one in several]
    names = [one if isinstance(one, str) else one.name_or_path or "model" for one in opened]
    labels = list(map(str, model)) if isinstance(model, Mapping) else []
    bare = [Path(name).name for name in labels or names]
    if twice := next((name for name in bare if bare.count(name) > 1), None):
        raise InputError(f"model: two models are called {twice!r}; give a mapping, label → model")
    labelled = name_models(names, labels, [])
    return [
        ModelChoice(choice.label, one, revision)
        for choice, one in zip(labelled, opened, strict=True)
    ]


def arguments_of(
    settings: ScoreSettings, cleaning: CleaningSettings, models: list[ModelChoice], folder: Path
) -> ScoreArguments:
    """The arguments of the command, for the parts of it that are used here."""
    return ScoreArguments(
        settings=settings,
        cleaning=cleaning,
        models=models,
        variants=None,
        wild_types=[],
        allow_empty=True,
        output=folder / "scores",
        records=folder / "records",
        range_=None,
        plots=None,
        provenance=None,
        checksums=None,
        say=SILENT,
    )


def variant_table(variants: object, settings: ScoreSettings) -> Table:
    """The variants as a table. Raises InputError for anything but text and data frames."""
    import pandas as pd

    if isinstance(variants, pd.DataFrame):
        frame = variants

        def read(place: int) -> Sequence[str]:
            cells = frame.iloc[:, place].tolist()
            return ["" if is_missing_value(cell) else str(cell) for cell in cells]

        return MemoryTable("variants", list(map(str, frame.columns)), len(frame), read)
    if isinstance(variants, str | bytes) or not isinstance(variants, Iterable):
        raise InputError("score: variants should be a list such as ['A42G'], or a data frame")
    texts = text_cells(SCORE, variants, "variant")
    if not texts:
        raise InputError("score: there are no variants; give at least one")
    return MemoryTable("variants", [settings.mutation_col], len(texts), lambda place: texts)


def open_given_wild_types(
    sequence: str | None,
    sequences: Sequences | pd.DataFrame | None,
    table: Table,
    settings: ScoreSettings,
    cleaning: CleaningSettings,
    folder: Path,
) -> WildTypes:
    """The wild types of the rows of `table`. Raises InputError if they cannot be used."""
    if sequence is not None:
        if not isinstance(sequence, str) or is_path(sequence):
            raise InputError("score: sequence should be the residues of the wild type, as text")
        given = named_sequences(SCORE, {WILD_TYPE_ID: sequence})
        sequence_set = read_entries(given.batches(), cleaning, folder)
        (record,) = sequence_set.records()
        if record.status != OK:
            sequence_set.close()
            raise InputError(f"score: sequence: {record.reason}")
        return WildTypes(sequence_set, None, protein=WILD_TYPE_ID)
    if sequences is None:
        return wild_types_in_column(table, settings, cleaning, folder)
    if is_path(sequences):
        return open_wild_types([str(sequences)], table, settings, cleaning, folder)
    sequence_set, _ = read_sequences(SCORE, sequences, cleaning, folder)
    column = protein_column_of(table, settings)
    return WildTypes(sequence_set, column, protein=settings.protein)


@dataclass(frozen=True, repr=False)
class ProteinScores:
    """The scores of every substitution of one protein."""

    id: str
    sequence: str
    """Its residues."""
    log_odds: Float32
    """(R, 20) log p(amino acid) - log p(wild type), natural logarithm; 0 for the wild type."""

    def __repr__(self) -> str:
        return f"<ProteinScores {self.id!r}: {number_of(len(self.sequence), 'residue')}>"

    @property
    def alphabet(self) -> str:
        """The amino acids of the columns of `log_odds`."""
        return AMINO_ACIDS

    def to_pandas(self) -> pd.DataFrame:
        """A data frame for a heat map: rows M1, K2, …, and a column for each amino acid."""
        import pandas as pd

        rows = [f"{letter}{place}" for place, letter in enumerate(self.sequence, 1)]
        return pd.DataFrame(self.log_odds, index=rows, columns=list(self.alphabet))


@dataclass(frozen=True, repr=False)
class SaturationResult:
    """The scores of every substitution of N proteins.

    `result["P1"]` and `result[0]` are those of one protein. `records` is a data frame with the
    outcome of each record, as of `EmbedResult`.
    """

    ids: list[str]
    records: pd.DataFrame
    table: pd.DataFrame
    """A row for each substitution: id, index, position (from 1), mutant, the strategy's score."""
    _found: ComputedRecords
    _proteins: dict[int, ProteinScores]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        proteins = number_of(len(self._proteins), "protein")
        return f"<SaturationResult: {number_of(len(self), 'record')}, {proteins}>"

    def keys(self) -> list[str]:
        """The ids of the records that were computed, in input order."""
        return self._found.computed_ids()

    def __contains__(self, key: object) -> bool:
        """Whether a computed record has `key` as its id, a name in it, or its position."""
        return self._found.has(key)

    def __getitem__(self, key: int | str) -> ProteinScores:
        """The scores of one protein, by position or id. Raises InputError if it has none."""
        return self._proteins[self._found.place(SATURATION, key)]

    @property
    def alphabet(self) -> str:
        """The amino acids of the columns of `log_odds`."""
        return AMINO_ACIDS


def saturation(
    sequences: Sequences | pd.DataFrame,
    model: Models,
    *,
    strategy: Literal["masked_marginal", "wt_marginal"] = "masked_marginal",
    long: LongProteins | None = None,
    window: int | None = None,
    **options: Unpack[CommonOptions],
) -> SaturationResult:
    """Score every substitution of every protein, as `esm-pipeline score --saturation` does.

    `sequences`, the other options and the errors are those of `embed`; `model`: as for `score`.
    """
    own = {"strategy": strategy, "long": long, "window": window}
    call = FunctionCall(SATURATION, models_in(model), options, own, ScoreSettings)
    settings = call.settings(ScoreSettings)
    choices = model_choices(model, call.run.revision)
    from esm_pipeline.tasks.score.saturation import SaturationScorer

    with call.computing(settings) as folder:
        sequence_set, given = read_sequences(SATURATION, sequences, call.cleaning, folder)
        path = folder / "saturation.h5"
        with sequence_set:
            models = find_models(choices, with_threads(settings))
            plan = plan_sequences(sequence_set, models, settings)
            scorer = SaturationScorer(settings, plan)
            amounts = amounts_of(scorer.work, models)
            quiet = call.run.quiet
            with progress(SCORE, amounts, quiet=quiet, short=True) as advance:
                scorer.run(models, path, advance)
            found = ComputedRecords.of(sequence_set.records(), plan.outcomes(), given)
        with Saturations.open(path) as results:
            proteins = {
                one.index: ProteinScores(found.ids[one.index], one.sequence, one.log_odds)
                for one in results
            }
            table = results.to_pandas()
    table["id"] = [found.ids[index] for index in table["index"].tolist()]
    call.require_outcomes(found.outcomes, found.ids, "`records`")
    return SaturationResult(found.ids, found.table(given), table, found, proteins)
