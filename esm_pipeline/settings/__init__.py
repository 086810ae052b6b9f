"""The configuration of the workflow: its inputs, its models, and a section for each task.

The config file and its JSON schema are made from the class `Settings`. No torch: the workflow
imports this module at every parse.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from esm_pipeline.errors import InputError
from esm_pipeline.json_files import read_object
from esm_pipeline.settings.result_names import HEATMAPS, INPUTS, OF_TASK, RECORDS, SCORES, VARIANTS
from esm_pipeline.settings.samples import (
    Sample,
    expanded_size,
    read_samples,
    require_apart,
    require_folder,
    require_usable,
    sample_name,
)
from esm_pipeline.settings.sections import (
    CLASSIFIERS,
    ClassifySection,
    EmbedSettings,
    FoldSection,
    Name,
    ScoreSection,
    Section,
    ShardSettings,
    check,
    digits,
    each_once,
)

MODEL_FILES = re.compile(
    r"config\.json|vocab\.txt|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|.+\.safetensors(\.index\.json)?|(pytorch|adapter)_model.*\.bin(\.index\.json)?"
    r"|adapter_config\.json"
)
"""The names of the files of a checkpoint folder that belong to the model."""

MOST_SHARDS = 100_000
"""As many as five digits can number."""


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
    model: Name = Field(
        "demo", description="hub id, folder with a checkpoint, fair-esm file (.pt) or demo"
    )
    revision: Name | None = Field(None, description="commit, tag or branch of a hub model")
    shards: Literal["auto"] | Shards = Field(
        "auto",
        description="shards of each sample; auto: as many as the size of the input needs",
    )
    on_failure: Literal["error", "keep"] = Field(
        "error", description="if a record failed: error (end with an error) or keep (accept it)"
    )
    shard: ShardSettings = Field(default_factory=ShardSettings, description="validation and shards")
    embed: EmbedSettings = Field(default_factory=EmbedSettings, description="embeddings")
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
            names += OF_TASK[task] if task in ("embed", "fold") else ()
        if "fold" in self.tasks and not self.fold.pae:
            names.remove("pae")
        if "classify" in self.tasks:
            residues = self.classified() == "residues"
            names += ["residue_classes.h5"] if residues else ["classes.h5", "classes.tsv"]
        if "score" in self.tasks and self.score.saturation:
            names += ["saturation.h5", *(HEATMAPS if self.score.plots else ())]
        scored = [SCORES, "scores.json", VARIANTS]
        return {one: [*names, *(scored if one in tables else ())] for one in self.inputs()}

    def _samples(self) -> dict[str, Sample]:
        if self.samples is not None:
            samples = read_samples(self.samples)
        else:
            assert self.fasta is not None
            require_usable(self.fasta, "fasta")
            require_usable(self.variants or "", "variants")
            samples = {sample_name(self.fasta): Sample([self.fasta], self.variants)}
        require_usable(self.outdir, "outdir")
        require_folder(self.outdir)
        require_apart(samples, self.outdir)
        return samples

    def models(self) -> dict[str, Model]:
        """Return the models of all tasks, by the names of their model files.

        Raises InputError for a local model whose files have unusable names.
        """
        found: dict[str, Model] = {}
        for task in self.tasks:
            ensemble = getattr(getattr(self, task), "models", {})
            for label, name in ensemble.items():
                found[f"models/{label}.json"] = Model(*parted(name), [task])
            if own := self._own_model(task):
                found[f"{task}_model.json"] = own
            elif not ensemble:
                one = found.setdefault("model.json", Model(self.model, self.revision, []))
                one.tasks.append(task)
        for model in found.values():
            for file in model.files():
                require_usable(file, "model")
        return found

    def _own_model(self, task: str) -> Model | None:
        """Return the model of one task, if it differs from the model of all tasks."""
        section = getattr(self, task)
        name = getattr(section, "model", None)
        if task == "fold" and (name or self.model) == "demo":
            return Model("demo-fold", None, [task])
        return Model(name, section.revision, [task]) if name else None

    def shard_count(self, files: list[str]) -> int:
        """Return the number of shards of a sample: as set, or from the size of its files."""
        letters = 3 if self.shard.nucleotides == "translate" else 1
        return self._shards(files, letters * self.shard.residues)

    def table_shard_count(self, table: str) -> int:
        """Return the number of shards of a variant table."""
        return self._shards([table], self.score.table_bytes)

    def _shards(self, files: list[str], size: int) -> int:
        if self.shards != "auto":
            return self.shards
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


class Model(NamedTuple):
    """A model of the run, with the tasks that use it."""

    name: str
    revision: str | None
    tasks: list[str]

    def files(self) -> list[str]:
        """Return its files if it is on this machine; none for a hub model and the demo."""
        path = Path(os.path.expanduser(self.name))
        if self.name in ("demo", "demo-fold") or not path.exists():
            return []
        if path.is_file():
            beside = path.with_name(f"{path.stem}-contact-regression{path.suffix}")
            found = [file for file in (path, beside) if file.is_file()]
        else:
            found = [file for file in path.iterdir() if MODEL_FILES.fullmatch(file.name)]
        return [*sorted(map(str, found)), *self.base_files(path / "adapter_config.json")]

    def base_files(self, adapter: Path) -> list[str]:
        """Return the files of the base model of an adapter, if that is on this machine."""
        try:
            name = read_object(adapter)["base_model_name_or_path"]
            base = Path(os.path.expanduser(name))
            if (base / adapter.name).exists():  # an adapter of an adapter: an error, reported later
                return []
            return Model(name, None, []).files()
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def architectures(self) -> list[str]:
        """Return the `architectures` of its config.json; none without one on this machine."""
        try:
            path = Path(os.path.expanduser(self.name)) / "config.json"
            told = read_object(path)["architectures"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [name for name in told if isinstance(name, str)] if isinstance(told, list) else []

    def flags(self) -> list[str]:
        """Return the flags of the command line that name it."""
        revision = [f"--revision={self.revision}"] if self.revision else []
        return [f"--model={self.name}", *revision]


def parted(model: str) -> tuple[str, str | None]:
    """Split `name@revision`, or a name alone, into name and revision."""
    name, at, revision = model.rpartition("@")
    if not (name and at and revision) or os.path.exists(os.path.expanduser(model)):
        return model, None
    return name, revision


def shard_names(count: int) -> list[str]:
    """Return the names of a sample's shards, `00000` to `count` - 1, without a suffix."""
    return [f"{number:05d}" for number in range(count)]


def file_state(file: str) -> tuple[str, int, int]:
    """Return name, size in bytes and time of the last change (ns): they identify a file.

    The time is compared for equality, since a file that replaces another may be the older one.
    """
    facts = os.stat(file)
    return Path(file).name, facts.st_size, facts.st_mtime_ns


def load_settings(config: Mapping[str, Any], source: str = "config") -> Settings:
    """Check a parsed config file. Raises InputError with one line for each problem."""
    return check(Settings, config, source)


def json_schema() -> str:
    """Return the JSON schema of the config file."""
    return json.dumps(Settings.model_json_schema(), indent=2) + "\n"
