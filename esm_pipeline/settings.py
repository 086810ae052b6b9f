"""Every setting of the workflow and of the command line, defined once.

The config file, its JSON schema, the command-line flags and the workflow's rule parameters all
follow from the classes here. No torch: the workflow imports this module at every parse.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from esm_pipeline.errors import InputError
from esm_pipeline.problems import explain
from esm_pipeline.samples import (
    expanded_size,
    read_samples,
    require_apart,
    require_folder,
    require_usable,
    sample_name,
)

EXECUTION: dict[str, Any] = {"execution": True}
"""Marks a field that changes how a result is computed, never the result: it reruns nothing."""

MODEL_FILES = re.compile(
    r"config\.json|vocab\.txt|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|.+\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?"
)
"""Names of the files in a folder that make up a model."""

MOST_SHARDS = 100_000
"""As many as five digits can name."""

MOST_THREADS = 1024
DIGITS = re.compile("[+-]?[0-9]{1,18}")
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")


def digits(value: Any) -> Any:
    """A whole number written as text, as on a command line, as a number; else `value`."""
    return int(value) if isinstance(value, str) and DIGITS.fullmatch(value) else value


def printable(value: str) -> str:
    """`value`, or ValueError if a path or a name cannot have its characters."""
    if CONTROL.search(value):
        raise ValueError("has a line break or control character; remove it")
    return value


def each_once(value: list[Any]) -> list[Any]:
    """`value`, or ValueError if it has something twice."""
    if any(one in value[:place] for place, one in enumerate(value)):
        raise ValueError("names something twice; remove one")
    return value


Whole: TypeAlias = Annotated[int, Field(strict=True), BeforeValidator(digits)]
Layer: TypeAlias = Annotated[int, Field(strict=True, ge=-1), BeforeValidator(digits)]
Shards: TypeAlias = Annotated[
    int, Field(strict=True, gt=0, le=MOST_SHARDS), BeforeValidator(digits)
]
ChunkSize: TypeAlias = Annotated[int, Field(strict=True, gt=0), BeforeValidator(digits)]
Name: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(printable)]


S = TypeVar("S", bound="Section")


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

    residues: Whole = Field(
        2_000_000, gt=0, description="residues in one shard, about, where `shards` is auto"
    )

    def cleaning(self) -> CleaningSettings:
        """The part that changes results."""
        return self.part(CleaningSettings)


class ComputeSettings(Section):
    """What every task that runs a model has."""

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision the model computes in"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$",
        examples=["auto", "cpu", "cuda", "cuda:0", "mps"],
        description="auto, cpu, cuda, cuda:N or mps; auto takes a GPU where there is one",
        json_schema_extra=EXECUTION,
    )
    token_budget: Whole = Field(
        16_384, gt=0, description="most tokens in one batch", json_schema_extra=EXECUTION
    )
    threads: Whole = Field(
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


class FoldSettings(ComputeSettings):
    """What `fold` computes."""

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="precision of the language model; the folding trunk computes in float32",
    )
    token_budget: Whole = Field(
        1024,
        gt=0,
        description="most residues in one batch, padding counted; batches of long sequences are "
        "smaller",
        json_schema_extra=EXECUTION,
    )
    num_recycles: Whole = Field(
        3, ge=0, le=100, description="times the trunk is run again on its own result"
    )
    chunk_size: Literal["auto", "none"] | ChunkSize = Field(
        "auto",
        description="rows of the pair representation at once: fewer take less memory and more "
        "time; auto takes as many as fit, none all",
        json_schema_extra=EXECUTION,
    )
    memory: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="GB that one job may take for a batch; 0 takes what is free",
        json_schema_extra=EXECUTION,
    )
    max_residues: Whole = Field(
        0, ge=0, description="longest sequence or complex to fold; 0 sets no limit"
    )
    long: Literal["auto", "skip", "truncate", "full"] = Field(
        "auto",
        description="sequences longer than max_residues or the position table; auto: skip them; "
        "full: there must be no limit; complexes are never truncated",
    )


class StructureSettings(Section):
    """Which files are written of each structure."""

    formats: list[Literal["pdb", "cif"]] = Field(
        ["pdb"], min_length=1, description="files of each structure; the table names the first"
    )
    pae: list[Literal["json", "npz"]] = Field(
        ["json"],
        description="files of predicted aligned errors: json as the AlphaFold database's, npz",
    )
    archive: bool = Field(
        False, description="zip archives, each of 1,000 records, in place of folders"
    )

    _each_once = field_validator("formats", "pae")(each_once)


class FoldTaskSettings(FoldSettings, StructureSettings):
    """All that concerns folding."""

    model: Name | None = Field(
        None, description="the folding model; null takes the `model` of all tasks"
    )
    revision: Name | None = Field(
        None, description="commit, tag or branch of it, where fold.model is a hub model"
    )


class Settings(Section):
    """The whole configuration of the workflow."""

    fasta: Name | None = Field(None, description="a single FASTA input, plain or gzip")
    samples: Name | None = Field(
        None, description="a table (TSV) with columns sample and fasta, for several inputs"
    )
    outdir: Name = Field("results", description="folder that receives all results")
    tasks: list[Literal["embed", "fold"]] = Field(
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
    fold: FoldTaskSettings = Field(default_factory=FoldTaskSettings, description="structures")

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
        return self

    def inputs(self) -> dict[str, list[str]]:
        """FASTA files of each sample, in the order of the table.

        Raises InputError for a table, a path or an output folder that cannot be used.
        """
        if self.samples is not None:
            samples = read_samples(self.samples)
        else:
            assert self.fasta is not None
            require_usable(self.fasta, "fasta")
            samples = {sample_name(self.fasta): [self.fasta]}
        require_usable(self.outdir, "outdir")
        require_folder(self.outdir)
        require_apart(samples, self.outdir, self.tasks)
        return samples

    @property
    def folding_model(self) -> tuple[str, str | None]:
        """Name and revision of the model that folds."""
        if self.fold.model is None:
            return self.model, self.fold.revision or self.revision
        return self.fold.model, self.fold.revision

    def model_files(self, name: str | None = None) -> list[str]:
        """The files of a model that lies on this machine; none of the hub's and of the demo.

        `name` is that of the model, None stands for the one of all tasks.
        """
        name = name or self.model
        path = Path(os.path.expanduser(name))
        if name == "demo" or not path.exists():
            return []
        if path.is_file():
            beside = path.with_name(f"{path.stem}-contact-regression{path.suffix}")
            found = [file for file in (path, beside) if file.is_file()]
        else:
            found = [file for file in path.iterdir() if MODEL_FILES.fullmatch(file.name)]
        files = sorted(str(file) for file in found)
        for file in files:
            require_usable(file, "model")
        return files

    def shard_count(self, files: list[str]) -> int:
        """Shards of a sample: as set, or from the size of its files in bytes."""
        if self.shards != "auto":
            return self.shards
        total = sum(expanded_size(file) for file in files)
        return max(1, math.ceil(total / self.shard.residues))


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


def check(section: type[S], values: Mapping[str, Any], source: str) -> S:
    """Build `section` from `values`, or raise InputError that tells which key is wrong and why."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = dict.fromkeys(explain(section, problem) for problem in error.errors())
        raise InputError("\n".join(f"{source}: {problem}" for problem in problems)) from None


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
