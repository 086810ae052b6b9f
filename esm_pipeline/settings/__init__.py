"""The configuration of the workflow: its inputs, its models, and a section for each task.

The config file and its JSON schema are made from the class `Settings`. No torch: the workflow
imports this module at every parse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from esm_pipeline.errors import InputError
from esm_pipeline.settings.models import Model, file_state, split_revision
from esm_pipeline.settings.result_names import (
    HEATMAPS,
    INPUTS,
    OF_TASK,
    RECORDS,
    SCORES,
    VARIANTS,
    of_bundles,
)
from esm_pipeline.settings.samples import (
    Sample,
    expanded_size,
    read_samples,
    require_inputs_apart,
    require_usable,
    require_usable_outdir,
    sample_name,
)
from esm_pipeline.settings.section import Name, Section, check, digits, each_once
from esm_pipeline.settings.sections import (
    CLASSIFIERS,
    ClassifySection,
    CleaningSettings,
    EmbedSection,
    FoldSection,
    JobLimits,
    LabelSettings,
    ModelName,
    ScoreSection,
    ShardSettings,
    StructureSettings,
    VariantSettings,
)

__all__ = [
    "MOST_SHARDS",
    "CleaningSettings",
    "LabelSettings",
    "Model",
    "Settings",
    "StructureSettings",
    "VariantSettings",
    "file_state",
    "json_schema",
    "load_settings",
]

MOST_SHARDS = 100_000
"""Most jobs of a task for one sample."""

MOST_RANGES = 200
"""Ranges of a bundle, if the number of shards is set."""

RECORD_BYTES = 400
"""Bytes of a record of a FASTA, from which the number of records is estimated."""


Shards: TypeAlias = Annotated[
    int, Field(strict=True, gt=0, le=MOST_SHARDS), BeforeValidator(digits)
]


class Settings(Section):
    """The configuration of the workflow."""

    fasta: Name | None = Field(None, description="one FASTA file, plain or gzip")
    samples: Name | None = Field(
        None,
        description="for several inputs: a table (TSV) with the columns sample, fasta and, for "
        "scoring, variants",
    )
    variants: Name | None = Field(
        None, description="with `fasta`: a table of variants to score (CSV, TSV or Parquet)"
    )
    outdir: Name = Field("results", description="folder for all results")
    tasks: list[Literal["embed", "score", "classify", "fold"]] = Field(
        ["embed"], min_length=1, description="tasks to run: embed, score, classify, fold"
    )
    model: ModelName = Field(
        "demo",
        description="a name that `esm-pipeline models` lists, hub id, folder with a checkpoint or "
        "fair-esm file (.pt)",
    )
    revision: Name | None = Field(None, description="commit, tag or branch of a hub model")
    shards: Literal["auto"] | Shards = Field(
        "auto",
        description="jobs of each task for one sample; auto: by the size of the input",
    )
    on_failure: Literal["error", "keep"] = Field(
        "error", description="if a record failed: error (end with an error) or keep (accept it)"
    )
    shard: ShardSettings = Field(
        default_factory=ShardSettings, description="validation and bundles"
    )
    limits: JobLimits = Field(default_factory=JobLimits, description="what one job may request")
    embed: EmbedSection = Field(default_factory=EmbedSection, description="embeddings")
    fold: FoldSection = Field(default_factory=FoldSection, description="structures")
    score: ScoreSection = Field(default_factory=ScoreSection, description="variant scores")
    classify: ClassifySection = Field(
        default_factory=ClassifySection, description="classes, labels or values"
    )

    _each_once = field_validator("tasks")(each_once)

    @field_validator("outdir")
    @classmethod
    def _plain(cls, value: str) -> str:
        """Return the folder without `./`, `//` and a final `/`, which Snakemake warns about."""
        return str(PurePosixPath(value))

    @model_validator(mode="after")
    def _one_input(self) -> Settings:
        if (self.fasta is None) == (self.samples is None):
            raise ValueError("set one of 'fasta' (a single input) and 'samples' (a table of them)")
        if self.variants is not None and self.samples is not None:
            raise ValueError(
                "'variants' goes with 'fasta'; with 'samples' it is a column of that table"
            )
        if self.variants is not None and "score" not in self.tasks:
            raise ValueError("'variants' is set, but no task scores them; add score to 'tasks'")
        return self

    def inputs(self) -> dict[str, list[str]]:
        """Return the FASTA files of each sample, in the order of the table.

        Raises InputError for a table, a path or an output folder that cannot be used.
        """
        return {name: sample.fasta for name, sample in self._samples().items()}

    def tables(self) -> dict[str, str]:
        """Return the variant table of each sample that has one, if `score` is a task.

        Raises InputError for a sample with nothing to score, although `score` is a task.
        """
        if "score" not in self.tasks:
            return {}
        samples = self._samples()
        for name, sample in samples.items():
            if sample.variants is None and not self.score.saturation:
                raise InputError(
                    f"{self.samples or self.fasta}: sample '{name}' has no variants to score; "
                    "give it a variant table, or set score.saturation to score every substitution"
                )
        found = {name: sample.variants for name, sample in samples.items()}
        return {name: table for name, table in found.items() if table is not None}

    def results(self) -> dict[str, list[str]]:
        """Return the names of all results of each sample, files and folders in its folder.

        Raises InputError as the methods above do.
        """
        tables, names = self.tables(), [RECORDS, INPUTS]
        for task in self.tasks:
            names += OF_TASK[task] if task not in ("classify", "score") else ()
        if "fold" in self.tasks and not self.fold.pae:
            names.remove("pae")
        if "classify" in self.tasks:
            residues = self.classified() == "residues"
            names += ["residue_classes.h5"] if residues else ["classes.h5", "classes.tsv"]
        if "score" in self.tasks and self.score.saturation:
            names += ["saturation.h5", *(HEATMAPS if self.score.plots else ())]
        scored = [SCORES, "scores.json", VARIANTS]
        found = {}
        for sample, files in self.inputs().items():
            bundles = self.bundle_count(files)
            own = [one for name in names for one in of_bundles(name, bundles)]
            found[sample] = [*own, *(scored if sample in tables else ())]
        return found

    def _samples(self) -> dict[str, Sample]:
        if self.samples is not None:
            samples = read_samples(self.samples)
        else:
            assert self.fasta is not None
            require_usable(self.fasta, "fasta")
            require_usable(self.variants or "", "variants")
            samples = {sample_name(self.fasta): Sample([self.fasta], self.variants)}
        require_usable(self.outdir, "outdir")
        require_usable_outdir(self.outdir)
        require_inputs_apart(samples, self.outdir)
        return samples

    def models(self) -> dict[str, Model]:
        """Return the models of all tasks, by the names of their model files.

        Raises InputError for a local model whose files have unusable names.
        """
        own = {"fold": self._fold_model(), "classify": self.classify.own_model("classify")}
        found: dict[str, Model] = {}
        for task in self.tasks:
            if task == "score" and self.score.models:
                for label, name in self.score.models.items():
                    found[f"models/{label}.json"] = Model(*split_revision(name), [task])
            elif model := own.get(task):
                found[f"{task}_model.json"] = model
            else:
                common = found.setdefault("model.json", Model(self.model, self.revision, []))
                common.tasks.append(task)
        for model in found.values():
            for file in model.files():
                require_usable(file, "model")
        return found

    def _fold_model(self) -> Model | None:
        """Return the model of `fold`, if it differs from the model of all tasks."""
        if (self.fold.model or self.model) == "demo":  # which has no folding part
            return Model("demo-fold", None, ["fold"])
        return self.fold.own_model("fold")

    def bundle_count(self, files: list[str]) -> int:
        """Return the number of bundles of a sample, by the size of its files.

        If the number of shards is set, it follows from that: the files need not exist then.
        """
        if self.shards != "auto":
            return math.ceil(self.shards / MOST_RANGES)
        return self._parts(files, RECORD_BYTES * self._letters * self.shard.bundle)

    def range_counts(self, task: str, files: list[str]) -> list[int]:
        """Return the number of ranges of each bundle of a sample, at least 1, in one task.

        Their sum is the number of shards if that is set, or follows from the size of the files.
        """
        bundles, wanted = self.bundle_count(files), self.shards
        if wanted == "auto":
            wanted = self._parts(files, self._letters * getattr(self, task).job_residues)
        each, more = divmod(wanted, bundles)
        return [max(1, each + (number < more)) for number in range(bundles)]

    def table_range_count(self, table: str) -> int:
        """Return the number of ranges of a variant table."""
        return (
            self._parts([table], self.score.table_bytes) if self.shards == "auto" else self.shards
        )

    @property
    def _letters(self) -> int:
        """Letters of the input for one residue."""
        return 3 if self.shard.nucleotides == "translate" else 1

    def _parts(self, files: list[str], size: int) -> int:
        """Return the number of parts of `size` bytes that the `files` have."""
        return min(MOST_SHARDS, max(1, math.ceil(sum(map(expanded_size, files)) / size)))

    def classified(self) -> str:
        """Return what `classify` classifies: "sequences" or "residues".

        Raises InputError if the model decides and is not known before a job runs.
        """
        if self.classify.of != "auto":
            return self.classify.of
        (model,) = (model for model in self.models().values() if "classify" in model.tasks)
        for name in model.architectures():
            if name in CLASSIFIERS:
                return CLASSIFIERS[name]
        raise InputError(
            f"classify.of: no local config.json says what model '{model.name}' classifies; set it "
            "to sequences or residues, and classify.model to a checkpoint with a classifier"
        )


def load_settings(config: Mapping[str, Any], source: str = "config") -> Settings:
    """Check a parsed config file. Raises InputError with one line for each problem."""
    return check(Settings, config, source)


def json_schema() -> str:
    """Return the JSON schema of the config file."""
    return json.dumps(Settings.model_json_schema(), indent=2) + "\n"
