"""Every substitution of every protein: log-odds (L, 20) against the wild type, by some models.

A position is masked once for all its substitutions. Results go to HDF5, or to a long table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from esm_pipeline.arrays import Float64, Int64
from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.mutations import AMINO_ACIDS
from esm_pipeline.formats.results.saturation import FORMAT, LOG_ODDS, WILD_TYPE, Saturations
from esm_pipeline.formats.results.validation import open_hdf5
from esm_pipeline.formats.results.writer import BLOCK, Array, RaggedWriter, blocks, unit_starts
from esm_pipeline.formats.tables.base import Column, create_table
from esm_pipeline.model.inference.windows import SPECIAL_TOKENS
from esm_pipeline.settings.sections import ScoreSettings, StrategySettings, texts
from esm_pipeline.tasks.common.plan import Layout, Plan
from esm_pipeline.tasks.common.runner import software
from esm_pipeline.tasks.score.marginals import LanguageModel, Passes, one_masked, ranges, unmasked
from esm_pipeline.tasks.score.strategies import Advance, blocks_of, note_failures
from esm_pipeline.tasks.score.variant_rows import LIKELIHOOD

Models = Mapping[str, LanguageModel]
"""Models by their labels."""


class Saturation:
    """Scores all substitutions of the sequences of `plan`. Raises InputError for likelihoods."""

    def __init__(self, settings: ScoreSettings, plan: Plan) -> None:
        if settings.strategy == LIKELIHOOD:
            raise InputError(
                f"{setting('score.strategy')}: a saturation by {LIKELIHOOD} takes 19 L² passes; "
                "set it to masked_marginal"
            )
        self.settings, self.plan = settings, plan
        lengths = plan.lengths.astype(np.int64)
        rows = np.flatnonzero(plan.rows() >= 0)
        self.numbers = rows[np.argsort(-lengths[rows], kind="stable")]
        window = plan.reach.window
        seen = lengths[self.numbers] + SPECIAL_TOKENS
        seen = np.minimum(seen, window) if window else seen
        self.work = int((lengths[self.numbers] * seen).sum())

    def run(self, models: Models, path: Path, advance: Advance) -> None:
        """Write a new file at `path`; what fails is noted in the plan and left out."""
        rows, layout = self.plan.rows(), self.layout(models)
        with layout.writer(path, self.plan, rows) as writer:
            for numbers in blocks_of(self.numbers, self.plan.lengths):
                letters = "".join(self.plan.sequences(numbers)).encode()
                writer.write(WILD_TYPE, rows[numbers], np.frombuffer(letters, "S1"))
            names = arrays_of(models)
            for name, model in names.items() if len(self.numbers) else ():
                model.load()
                for numbers in blocks_of(self.numbers, self.plan.lengths):
                    writer.write(name, rows[numbers], self.log_odds(model, numbers, advance))
                model.unload()
            if len(names) > 1:
                write_means(path, list(names), writer)
        if self.plan.failures:
            layout.leave_out_failures(path, self.plan, rows)

    def log_odds(self, model: LanguageModel, numbers: Int64, advance: Advance) -> Float64:
        """(residues of the sequences `numbers`, 20)."""
        columns = model.amino_acids()
        passes = self.passes(numbers)
        odds = np.zeros((int(self.plan.lengths[numbers].sum()), len(AMINO_ACIDS)))
        for answers in model.ask(passes, self.plan.sequences, self.settings.token_budget):
            note_failures(self.plan, answers)
            places = np.arange(len(answers.slot))
            wild_type = answers.log_p[places, answers.wild_type]
            found = answers.log_p[:, columns] - wild_type[:, None]  # (M, 20)
            np.add.at(odds, answers.slot, answers.weight[:, None] * found)
            advance(answers.tokens)
        return odds

    def passes(self, numbers: Int64) -> Passes:
        """Passes for all residues of some sequences, whose slots count them through."""
        lengths = self.plan.lengths[numbers].astype(np.int64)
        place = ranges(np.ones_like(lengths), lengths)  # BOS is 0
        sequence, tokens = (np.repeat(x, lengths) for x in (numbers, lengths + SPECIAL_TOKENS))
        plan = unmasked if self.settings.strategy == "wt_marginal" else one_masked
        return plan(sequence, place, np.arange(len(place)), tokens, self.plan.reach.window)

    def layout(self, models: Models) -> Layout:
        """The datasets and attributes of the file."""
        names = [*arrays_of(models), *([LOG_ODDS] if len(models) > 1 else [])]
        arrays = [Array(name, "residue", (len(AMINO_ACIDS),), "<f4") for name in sorted(names)]
        origins = {label: model.origin for label, model in models.items()}
        attributes = {
            "format": FORMAT,
            "alphabet": AMINO_ACIDS,
            **texts(self.settings.part(StrategySettings)),
            "models": json.dumps(origins),
            "software": json.dumps(software()),
        }
        return Layout([*arrays, Array(WILD_TYPE, "residue", (), "|S1")], attributes)


def arrays_of(models: Models) -> dict[str, LanguageModel]:
    """The dataset of each model: the only one's is that of the result."""
    alone = len(models) == 1
    return {LOG_ODDS if alone else f"{LOG_ODDS}.{label}": one for label, one in models.items()}


def write_means(path: Path, names: list[str], writer: RaggedWriter) -> None:
    """Write the means of the arrays `names` of the file at `path`, which `writer` still writes."""
    with open_hdf5(path) as file:
        starts = unit_starts(file["length"][...], "residue")
        every = np.ones(len(starts) - 1, bool)
        for first, stop in blocks(starts, every, BLOCK // (4 * len(AMINO_ACIDS))):
            span = slice(int(starts[first]), int(starts[stop]))
            mean = sum(file[name][span].astype(np.float64) for name in names) / len(names)
            writer.write(LOG_ODDS, np.arange(first, stop), np.asarray(mean))


def write_long(source: Path, target: Path, suffix: str) -> None:
    """Write the `saturation.h5` at `source` as a table of substitutions, record by record."""
    kinds = {"id": "text", "index": "whole", "position": "whole", "mutant": "text"}
    with Saturations.open(source) as results:
        columns = [Column(name, kinds.get(name, "number")) for name in results.names]  # type: ignore[arg-type]
        with create_table(target, suffix, None, columns) as writer:
            for item in results:
                writer.write(None, list(results.columns(item).values()))
