"""Every substitution of every protein: log-odds (R, 20) against the wild type, by some models.

A residue is masked once for all its substitutions. Results go to HDF5, or to a long table.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from esm_pipeline.arrays import Float64, Int64
from esm_pipeline.errors import InputError, setting
from esm_pipeline.formats.mutations import AMINO_ACIDS
from esm_pipeline.formats.results.layout import Array, unit_starts
from esm_pipeline.formats.results.saturation import LOG_ODDS, WILD_TYPE, Saturations
from esm_pipeline.formats.results.validation import open_hdf5
from esm_pipeline.formats.results.writer import COPIED_BYTES, RaggedWriter, kept_blocks
from esm_pipeline.formats.tables.base import Column
from esm_pipeline.formats.tables.open import create_table
from esm_pipeline.settings.section import texts
from esm_pipeline.settings.sections import ScoreSettings, StrategySettings
from esm_pipeline.tasks.common.plan import ResultLayout, SequencePlan
from esm_pipeline.tasks.common.progress import Advance
from esm_pipeline.tasks.common.runner import software
from esm_pipeline.tasks.score.forward_passes import Ensemble, LanguageModel, one_masked, unmasked
from esm_pipeline.tasks.score.strategies import (
    blocks_of,
    every_residue,
    longest_first,
    note_failures,
    unmasked_work,
)
from esm_pipeline.tasks.score.variant_table import LIKELIHOOD

WT_MARGINAL = "wt_marginal"


class SaturationScorer:
    """Scores all substitutions in the sequences of `plan`. Raises InputError for likelihoods.

    `work` is that of all passes for one model.
    """

    def __init__(self, settings: ScoreSettings, plan: SequencePlan) -> None:
        if settings.strategy == LIKELIHOOD:
            raise InputError(
                f"{setting('score.strategy')}: a saturation by {LIKELIHOOD} takes 19 L² passes; "
                "set it to masked_marginal"
            )
        self.settings, self.plan = settings, plan
        self.numbers, self.work = longest_first(np.flatnonzero(plan.rows() >= 0), plan)
        if settings.strategy == WT_MARGINAL:
            self.work = unmasked_work(self.numbers, plan)

    def run(self, models: Ensemble, path: Path, advance: Advance) -> None:
        """Write a new file at `path`; what fails is noted in the plan and left out."""
        rows, layout = self.plan.rows(), self.layout(models)
        with layout.writer(path, self.plan, rows) as writer:
            for numbers in blocks_of(self.numbers, self.plan.lengths):
                letters = "".join(self.plan.sequences(numbers)).encode()
                writer.write(WILD_TYPE, rows[numbers], np.frombuffer(letters, "S1"))
            names = datasets_of(models)
            for name, model in names.items() if len(self.numbers) else ():
                model.load()
                for numbers in blocks_of(self.numbers, self.plan.lengths):
                    writer.write(name, rows[numbers], self.log_odds(model, numbers, advance))
                model.unload()
            if len(names) > 1:
                write_means(path, list(names), writer)
        layout.complete(path, self.plan, rows)

    def log_odds(self, model: LanguageModel, numbers: Int64, advance: Advance) -> Float64:
        """(residues of the sequences `numbers`, 20)."""
        columns = model.amino_acids()
        sequence, token, tokens = every_residue(numbers, self.plan)
        mask = unmasked if self.settings.strategy == WT_MARGINAL else one_masked
        window, slot = self.plan.policy.window, np.arange(len(token))
        passes = mask(sequence, token, slot, tokens, window)
        odds = np.zeros((len(token), len(AMINO_ACIDS)))
        for found in model.run_passes(passes, self.plan.sequences, self.settings.token_budget):
            note_failures(self.plan, found)
            wild_type = found.log_p[np.arange(len(found.slot)), found.wild_type]
            differences = found.log_p[:, columns] - wild_type[:, None]  # (M, 20)
            np.add.at(odds, found.slot, found.weight[:, None] * differences)
            advance(found.passes, work=found.cost)
        return odds

    def layout(self, models: Ensemble) -> ResultLayout:
        """The datasets and attributes of the file."""
        names = [*datasets_of(models), *([LOG_ODDS] if len(models) > 1 else [])]
        arrays = [Array(name, "residue", (len(AMINO_ACIDS),), "<f4") for name in sorted(names)]
        origins = {label: model.origin for label, model in models.items()}
        attributes = {
            "format": Saturations.format,
            "alphabet": AMINO_ACIDS,
            **texts(self.settings.part(StrategySettings)),
            "models": json.dumps(origins),
            "software": json.dumps(software()),
        }
        return ResultLayout([*arrays, Array(WILD_TYPE, "residue", (), "|S1")], attributes)


def datasets_of(models: Ensemble) -> dict[str, LanguageModel]:
    """The dataset of each model; with only one, it is that of the result."""
    alone = len(models) == 1
    return {LOG_ODDS if alone else f"{LOG_ODDS}.{label}": one for label, one in models.items()}


def write_means(path: Path, names: list[str], writer: RaggedWriter) -> None:
    """Write the means of the arrays `names` to the file at `path`, which `writer` has open."""
    with open_hdf5(path) as file:
        starts = unit_starts(file["length"][...], "residue")
        every = np.ones(len(starts) - 1, bool)
        for first, stop in kept_blocks(starts, every, COPIED_BYTES // (4 * len(AMINO_ACIDS))):
            span = slice(int(starts[first]), int(starts[stop]))
            mean = sum(file[name][span].astype(np.float64) for name in names) / len(names)
            writer.write(LOG_ODDS, np.arange(first, stop), np.asarray(mean))


def write_long_table(source: Path, target: Path, suffix: str) -> None:
    """Write the `saturation.h5` at `source` as a table of substitutions, record by record."""
    kinds = {"id": "text", "index": "whole", "position": "whole", "mutant": "text"}
    with Saturations.open(source) as results:
        columns = [Column(name, kinds.get(name, "number")) for name in results.names]  # type: ignore[arg-type]
        with create_table(target, suffix, None, columns) as writer:
            for item in results:
                writer.write(None, list(results.columns(item).values()))
