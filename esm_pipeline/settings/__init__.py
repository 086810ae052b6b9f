"""The whole configuration of the workflow: its inputs, its models, and a section for each task.

The config file and its JSON schema follow from the class here. No torch: the workflow imports this
module at every parse.
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
"""Names of the files in a folder that make up a model."""

MOST_SHARDS = 100_000
"""As many as five digits can name."""


Shards: TypeAlias = Annotated[
    int, Field(strict=True, gt=0, le=MOST_SHARDS), BeforeValidator(digits)
]


class Settings(Section):
    """The whole configuration of the workflow."""

    fasta: Name | None = Field(None, description="a single FASTA input, plain or gzip")
    samples: Name | None = Field(
        None,
        description="a table (TSV) with columns sample, fasta and, to score them, variants, for "
        "several inputs",
    )
    variants: Name | None = Field(
        None, description="with `fasta`: a table of variants to score, CSV, TSV or Parquet"
    )
    outdir: Name = Field("results", description="folder that receives all results")
    tasks: list[Literal["embed", "score", "classify", "fold"]] = Field(
        ["embed"], min_length=1, description="tasks to run"
    )
    model: Name = Field(
        "demo", description="a hub id, a folder with a checkpoint, a fair-esm file (.pt), or demo"
    )
    revision: Name | None = Field(None, description="commit, tag or branch of a hub model")
    shards: Literal["auto"] | Shards = Field(
        "auto", description="shards of each sample; auto follows from the input's size"
    )
    on_failure: Literal["error", "keep"] = Field(
        "error", description="when a record failed: end with an error, or accept it"
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
        """The same folder without what Snakemake warns of: `./`, `//` and a `/` at the end."""
        return str(PurePosixPath(value))

    @model_validator(mode="after")
    def _one_input(self) -> Settings:
        if (self.fasta is None) == (self.samples is None):
            raise ValueError("give one of 'fasta' (a single input) and 'samples' (a table of them)")
        if self.variants is not None and self.samples is not None:
            raise ValueError("'variants' goes with 'fasta'; with 'samples' it is a column of them")
        if self.variants is not None and "score" not in self.tasks:
            raise ValueError("'variants' are given, but no task scores them; add score to 'tasks'")
        return self

    def inputs(self) -> dict[str, list[str]]:
        """FASTA files of each sample, in the order of the table.

        Raises InputError for a table, a path or an output folder that cannot be used.
        """
        return {name: sample.fasta for name, sample in self._samples().items()}

    def tables(self) -> dict[str, str]:
        """The table of variants of each sample that has one to be scored.

        Raises InputError for a sample of which nothing is to be scored, though `score` is a task.
        """
        if "score" not in self.tasks:
            return {}
        samples = self._samples()
        for name, sample in samples.items():
            if sample.variants is None and not self.score.saturation:
                raise InputError(
                    f"{self.samples or self.fasta}: sample '{name}' has no variants to score; name "
                    "a table of them, or set score.saturation to score every substitution"
                )
        found = {name: sample.variants for name, sample in samples.items()}
        return {name: table for name, table in found.items() if table is not None}

    def results(self) -> dict[str, list[str]]:
        """Names of all results of each sample, in its folder, folders among them.

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
        """The models of all tasks, by the names of the files that tell which they are.

        Raises InputError for a local one whose files have names that cannot be used.
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
        """The model of one task, where it is another than that of all."""
        section = getattr(self, task)
        name = getattr(section, "model", None)
        if task == "fold" and (name or self.model) == "demo":
            return Model("demo-fold", None, [task])
        return Model(name, section.revision, [task]) if name else None

    def shard_count(self, files: list[str]) -> int:
        """Shards of a sample: as set, or from the size of its files in bytes."""
        letters = 3 if self.shard.nucleotides == "translate" else 1
        return self._shards(files, letters * self.shard.residues)

    def table_shard_count(self, table: str) -> int:
        """Shards of a table of variants."""
        return self._shards([table], self.score.table_bytes)

    def _shards(self, files: list[str], size: int) -> int:
        if self.shards != "auto":
            return self.shards
        return min(MOST_SHARDS, max(1, math.ceil(sum(map(expanded_size, files)) / size)))

    def classified(self) -> str:
        """What `classify` classifies: "sequences" or "residues".

        Raises InputError if that is to follow from the model and is not known before a job runs.
        """
        if self.classify.of != "auto":
            return self.classify.of
        (model,) = (model for model in self.models().values() if "classify" in model.tasks)
        for name in model.architectures():
            if name in CLASSIFIERS:
                return CLASSIFIERS[name]
        raise InputError(
            f"classify.of: no config.json at hand says what model '{model.name}' classifies; set "
            "it to sequences or residues, and classify.model to a checkpoint with a classifier"
        )


class Model(NamedTuple):
    """A model of the run, and the tasks that run it."""

    name: str
    revision: str | None
    tasks: list[str]

    def files(self) -> list[str]:
        """Its files, if it lies on this machine; none of the hub's and of the demo."""
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
        """The files of the model that an adapter is of, if it names one on this machine."""
        try:
            name = read_object(adapter)["base_model_name_or_path"]
            base = Path(os.path.expanduser(name))
            if (base / adapter.name).exists():  # of another adapter, which is told later
                return []
            return Model(name, None, []).files()
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def architectures(self) -> list[str]:
        """What its config.json says it is; nothing if it does not, or is not on this machine."""
        try:
            path = Path(os.path.expanduser(self.name)) / "config.json"
            told = read_object(path)["architectures"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [name for name in told if isinstance(name, str)] if isinstance(told, list) else []

    def flags(self) -> list[str]:
        """It as flags of the command line."""
        revision = [f"--revision={self.revision}"] if self.revision else []
        return [f"--model={self.name}", *revision]


def parted(model: str) -> tuple[str, str | None]:
    """Name and revision of a model that is told as `name@revision`, or as a name alone."""
    name, at, revision = model.rpartition("@")
    if not (name and at and revision) or os.path.exists(os.path.expanduser(model)):
        return model, None
    return name, revision


def shard_names(count: int) -> list[str]:
    """Names of a sample's shards, `00000` to `count` - 1: their files add a suffix."""
    return [f"{number:05d}" for number in range(count)]


def file_state(file: str) -> tuple[str, int, int]:
    """Name, bytes and time of the last change (ns): what tells a file from another in its place.

    Being newer does not, for the one that takes the place may be the older of the two.
    """
    facts = os.stat(file)
    return Path(file).name, facts.st_size, facts.st_mtime_ns


def load_settings(config: Mapping[str, Any], source: str = "config") -> Settings:
    """Check a parsed config file. Raises InputError with every problem on a line of its own."""
    return check(Settings, config, source)


def json_schema() -> str:
    """JSON schema of the config file."""
    return json.dumps(Settings.model_json_schema(), indent=2) + "\n"
