"""`classify` as a function: sequences in, a data frame of labels and probabilities out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Unpack

from esm_pipeline.formats.records import Record
from esm_pipeline.formats.tables.base import PARQUET
from esm_pipeline.settings.sections import ClassifySettings, LabelSettings
from esm_pipeline.tasks.classify.classes import CLASSIFY, RECORD, write_class_table
from esm_pipeline.tasks.common.functions import (
    CommonOptions,
    ComputedRecords,
    FunctionCall,
    model_or_name,
    read_sequences,
    with_index,
)

if TYPE_CHECKING:
    import pandas as pd

    from esm_pipeline.tasks.common.functions import AnyModel, Sequences


def classify(
    sequences: Sequences | pd.DataFrame,
    model: AnyModel,
    *,
    threshold: float = 0.5,
    of: Literal["auto", "sequences", "residues"] = "auto",
    long: Literal["auto", "skip", "truncate", "full"] | None = None,
    **options: Unpack[CommonOptions],
) -> pd.DataFrame:
    """Classify protein sequences, or their residues, as `esm-pipeline classify` does.

    `sequences`, the other options and the errors are those of `embed`. `model`: a checkpoint with a
    classifier, or a loaded EsmForSequenceClassification or EsmForTokenClassification. `threshold`
    is the lowest probability of a label that a multi-label model reports.

    Returns the command's table. A model of sequences gives a row for each record: index, id,
    status, reason, then label and `p.{label}` (0 to 1) of each label, or value for a regression;
    for a data frame, without index and id, but with the index of that frame. A model of residues
    gives a row for each residue: id, index, position (from 1), residue, then the same.
    """
    own = {"threshold": threshold, "of": of, "long": long}
    call = FunctionCall(CLASSIFY, model, options, own, ClassifySettings, LabelSettings)
    settings, chosen = call.settings(ClassifySettings), call.settings(LabelSettings)
    import pandas as pd

    from esm_pipeline.tasks.classify.classifier import Classifier
    from esm_pipeline.tasks.common.compute import write_rows
    from esm_pipeline.tasks.common.plan import SequencePlan

    with call.computing(settings) as folder:
        classifier = Classifier(model_or_name(model), call.run.revision, settings)
        sequence_set, given = read_sequences(CLASSIFY, sequences, call.cleaning, folder)
        with sequence_set:
            plan = SequencePlan(sequence_set, classifier.policy)
            write_rows(classifier, plan, folder / "classes.h5", quiet=call.run.quiet)
            found = ComputedRecords.of(sequence_set.records(), plan.outcomes(), given)
        path, rows = folder / "classes.parquet", with_task_outcomes(found)
        write_class_table(path, PARQUET, folder / "classes.h5", rows, chosen.threshold)
        table = pd.read_parquet(path)
    in_frame = given is not None and given.frame is not None
    of_sequences = classifier.of == "sequences"
    if of_sequences and in_frame:
        table = with_index(table.drop(columns=[RECORD[0].name, RECORD[1].name]), given)
    elif not of_sequences:
        table["id"] = [found.ids[index] for index in table["index"].tolist()]
    see = "the column 'reason'" if of_sequences else "a model of sequences"
    call.require_outcomes(found.outcomes, found.ids, see)
    return table


def with_task_outcomes(found: ComputedRecords) -> list[Record]:
    """The records with their outcomes in this task."""
    pairs = zip(found.records, found.outcomes, strict=True)
    return [record.with_outcome(CLASSIFY, *outcome) for record, outcome in pairs]
