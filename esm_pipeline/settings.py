"""Every setting of the workflow and of the command line, defined once.

The config file, its JSON schema, the command-line flags and the workflow's rule parameters all
follow from the classes here. No torch: the workflow imports this module at every parse.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from esm_pipeline.errors import InputError
from esm_pipeline.samples import Sample, expanded_size, read_samples, sample_name

EXECUTION: dict[str, Any] = {"execution": True}
"""Marks a field that changes how a result is computed, never the result: it reruns nothing."""

LABEL = re.compile(r"[A-Za-z0-9._-]+")
MOST_SHARDS = 100_000
"""As many as five digits can name."""

MOST_THREADS = 1024

Layer = Annotated[int, Field(ge=-1)]
S = TypeVar("S", bound="Section")


def each_once(value: list[Any]) -> list[Any]:
    """`value`, or ValueError if it has something twice."""
    if len(set(value)) < len(value):
        raise ValueError("names something twice")
    return value


def labels_that_name_columns(value: dict[str, str]) -> dict[str, str]:
    """`value`, or ValueError if a key cannot be a part of a column's name."""
    for label in value:
        if not LABEL.fullmatch(label):
            raise ValueError(f"label {label!r} should have letters, digits, '.', '_' and '-' only")
    return value


class Section(BaseModel):
    """A group of settings; an unknown key in it is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    def part(self, kind: type[S]) -> S:
        """The settings that are of `kind`, a base of this section."""
        return kind.model_validate(self.model_dump(include=set(kind.model_fields)))


class CleaningSettings(Section):
    """What happens to unusual letters in a sequence."""

    unknown_residues: Literal["replace", "skip"] = Field(
        "replace", description="J, which no model knows: replace it by X, or skip the record"
    )
    internal_stops: Literal["skip", "replace"] = Field(
        "skip", description="a '*' inside a sequence: skip the record, or replace it by X"
    )
    gaps: Literal["skip", "remove"] = Field(
        "skip", description="'-' and '.' in a sequence: skip the record, or remove the gaps"
    )


class ShardSettings(CleaningSettings):
    """How an input is validated and cut into shards."""

    residues: int = Field(
        2_000_000, gt=0, description="residues in one shard, about, where `shards` is auto"
    )


class ComputeSettings(Section):
    """What every task that runs a model has."""

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision the model computes in"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, cuda, cuda:N or mps; auto takes a GPU where there is one",
        json_schema_extra=EXECUTION,
    )
    token_budget: int = Field(
        16_384, gt=0, description="most tokens in one batch", json_schema_extra=EXECUTION
    )
    threads: int = Field(
        0,
        ge=0,
        le=MOST_THREADS,
        description="CPU threads of one job; 0 takes every core it may use",
        json_schema_extra=EXECUTION,
    )


class EmbedSettings(ComputeSettings):
    """What `embed` computes."""

    layers: list[Layer] = Field(
        [-1], min_length=1, description="layers to store: 0 (embedding) to n; -1 is the last"
    )
    include: list[Literal["mean", "residue", "bos", "contacts"]] = Field(
        ["mean"], min_length=1, description="what to store of each sequence"
    )
    residue_dtype: Literal["float16", "float32"] = Field(
        "float16", description="precision in which residue representations are stored"
    )
    long: Literal["auto", "skip", "truncate", "full"] = Field(
        "auto",
        description="sequences longer than the position table; auto: skip them (ESM-1b, ESM-1v), "
        "or full for rotary models (ESM-2), which have no table",
    )

    _each_once = field_validator("layers", "include")(each_once)


class VariantSettings(Section):
    """How a table of variants is read."""

    mutation_col: str = Field(
        "mutant", min_length=1, description="column of mutations, such as A42G or A42G:T50K"
    )
    offset: int = Field(
        0,
        ge=-1_000_000,
        le=1_000_000,
        description="what is added to residue numbers in the mutations: residue 1 + offset is the "
        "first of the protein",
    )
    mutated_sequence_col: str | None = Field(
        None, description="column of mutated sequences, read in place of mutations"
    )
    protein_col: str | None = Field(
        None,
        description="column that names the protein of each row, by its id in the FASTA; by default "
        "'protein', unless there is but one",
    )
    protein: str | None = Field(
        None, description="the one protein that all rows are of, by its id in the FASTA"
    )
    sequence_col: str | None = Field(
        None, description="column of wild types, read in place of a FASTA"
    )


class StrategySettings(ComputeSettings):
    """How variants are scored."""

    strategy: Literal[
        "masked_marginal", "masked_marginal_joint", "wt_marginal", "pseudo_log_likelihood"
    ] = Field(
        "masked_marginal",
        description="each mutated residue masked alone, all of a variant at once, none, or the "
        "likelihoods of whole sequences",
    )
    long: Literal["auto", "skip", "truncate", "window", "full"] = Field(
        "auto",
        description="proteins longer than the position table; auto: skip them (ESM-1b, ESM-1v), "
        "or full for rotary models (ESM-2); window: as ProteinGym does",
    )
    window: int = Field(
        1024, ge=8, description="tokens in a window, where `long` is window; at most the table's"
    )


class ScoreSettings(VariantSettings, StrategySettings):
    """What `score` does."""


class ScoreSection(ScoreSettings):
    """What the workflow scores, and by which models."""

    models: dict[str, str] = Field(
        {},
        description="an ensemble: label and model of each, a hub id (with @revision if need be) or "
        "a folder; by default the one `model` of all tasks",
    )
    saturation: bool = Field(
        False, description="score every substitution of every protein, into saturation.h5"
    )
    plots: bool = Field(False, description="a picture of each saturated protein, into heatmaps")
    table_bytes: int = Field(
        1_000_000,
        gt=0,
        description="bytes of a table of variants in one shard, about, where `shards` is auto",
    )

    _labels = field_validator("models")(labels_that_name_columns)

    @model_validator(mode="after")
    def _saturation(self) -> ScoreSection:
        if self.saturation and self.strategy == "pseudo_log_likelihood":
            raise ValueError(
                "a saturation by pseudo_log_likelihood takes 19 L² passes a protein; choose "
                "masked_marginal"
            )
        if self.plots and not self.saturation:
            raise ValueError("'plots' are of a saturation; set 'saturation' too")
        return self

    def model_flags(self, model: str, revision: str | None) -> list[str]:
        """Command-line flags of the models; without an ensemble, those of the one `model`."""
        if not self.models:
            return [f"--model={model}", *([f"--revision={revision}"] if revision else [])]
        found = []
        for label, name in self.models.items():
            model, _, version = name.rpartition("@") if "@" in name else (name, "", "")
            found += [f"--label={label}", f"--model={model}", f"--revision={version}"]
        return found


class Settings(Section):
    """The whole configuration of the workflow."""

    fasta: str | None = Field(None, description="a single FASTA input, plain or gzip")
    samples: str | None = Field(
        None,
        description="a table (TSV) with columns sample, fasta and, to score them, variants, for "
        "several inputs",
    )
    variants: str | None = Field(
        None, description="with `fasta`: a table of variants to score, CSV, TSV or Parquet"
    )
    outdir: str = Field("results", min_length=1, description="folder that receives all results")
    tasks: list[Literal["embed", "score"]] = Field(
        ["embed"], min_length=1, description="tasks to run"
    )
    model: str = Field(
        "demo", min_length=1, description="a hub id, a folder with a checkpoint, or demo"
    )
    revision: str | None = Field(None, description="commit, tag or branch of a hub model")
    shards: Literal["auto"] | Annotated[int, Field(gt=0, le=MOST_SHARDS)] = Field(
        "auto", description="shards of each sample; auto follows from the input's size"
    )
    on_failure: Literal["error", "keep"] = Field(
        "error", description="when a record failed: end with an error, or accept it"
    )
    shard: ShardSettings = Field(default_factory=ShardSettings, description="validation and shards")
    embed: EmbedSettings = Field(default_factory=EmbedSettings, description="embeddings")
    score: ScoreSection = Field(default_factory=ScoreSection, description="variant scores")

    _each_once = field_validator("tasks")(each_once)

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
        """FASTA files of each sample, in the order of the table."""
        return {name: sample.fasta for name, sample in self._samples().items()}

    def tables(self) -> dict[str, str]:
        """The tables of variants that are to be scored, by sample.

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

    def _samples(self) -> dict[str, Sample]:
        if self.samples is not None:
            samples = read_samples(self.samples)
        else:
            assert self.fasta is not None
            samples = {sample_name(self.fasta): Sample([self.fasta], self.variants)}
        files = [file for sample in samples.values() for file in (*sample.fasta, sample.variants)]
        for path in (self.outdir, *filter(None, files)):
            if "{" in path or "}" in path:
                raise InputError(
                    f"{path}: braces in a path would be taken for a wildcard; rename it, or make "
                    "a link to it without them"
                )
        return samples

    def shard_count(self, files: list[str]) -> int:
        """Shards of a sample: as set, or from the size of its files in bytes."""
        return self._shards(files, self.shard.residues)

    def table_shard_count(self, table: str) -> int:
        """Shards of a table of variants."""
        return self._shards([table], self.score.table_bytes)

    def _shards(self, files: list[str], size: int) -> int:
        if self.shards != "auto":
            return self.shards
        return max(1, math.ceil(sum(map(expanded_size, files)) / size))


def shard_names(count: int) -> list[str]:
    """Names of a sample's shards, `00000` to `count` - 1: their files add a suffix."""
    return [f"{number:05d}" for number in range(count)]


def load_settings(config: Mapping[str, Any], source: str = "config") -> Settings:
    """Check a parsed config file. Raises InputError with every problem on a line of its own."""
    return check(Settings, config, source)


def check(section: type[S], values: Mapping[str, Any], source: str) -> S:
    """Build `section` from `values`, or raise InputError that tells which key is wrong and why."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = [explain(section, problem) for problem in error.errors()]
        raise InputError("\n".join(f"{source}: {problem}" for problem in problems)) from None


def explain(section: type[Section], problem: Mapping[str, Any]) -> str:
    """One line on one pydantic problem, in the words of the config file."""
    place = [part for part in problem["loc"] if part not in ("literal['auto']", "constrained-int")]
    key = ".".join(str(part) for part in place)
    if problem["type"] == "extra_forbidden":
        known = list(section_at(section, place[:-1]).model_fields)
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        remedy = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key '{key}'; {remedy}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"'{key}' = {problem['input']!r}: {message}" if key else message


def section_at(section: type[Section], place: list[Any]) -> type[Section]:
    """The class of the nested section that `place` leads to."""
    for part in place:
        inner = section.model_fields[part].annotation if part in section.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, Section)):
            break
        section = inner
    return section


def is_execution(section: type[Section], name: str) -> bool:
    """Whether a field of `section` leaves results as they are."""
    extra = section.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("execution"))


def flag_values(section: Section, *, execution: bool) -> Iterator[tuple[str, str]]:
    """Flags and values of the fields that do (or do not) change results."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if is_execution(type(section), name) is execution and value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            yield "--" + name.replace("_", "-"), text


def flags(section: Section, *, execution: bool = False) -> str:
    """`section` as shell-quoted command-line flags."""
    pairs = flag_values(section, execution=execution)
    return " ".join(shlex.quote(f"{flag}={value}") for flag, value in pairs)


def json_schema() -> str:
    """JSON schema of the config file."""
    return json.dumps(Settings.model_json_schema(), indent=2) + "\n"
