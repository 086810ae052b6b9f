"""The groups of settings: what each task can be told.

Flags of the command line and parameters of the workflow's rules follow from the classes here, and
so do the sections of the config file. No torch: the workflow imports this at every parse.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

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
from esm_pipeline.settings.messages import as_flags, explain, place_of

EXECUTION: dict[str, Any] = {"execution": True}
"""Marks a field that changes how a result is computed, never the result: it reruns nothing."""

COMMAND_LINE = "command line"
"""The source of settings that are flags, and told as such."""

MOST_THREADS = 1024
MOST_LETTERS = 2_000_000_000
STANDARD_CODE = 11
DIGITS = re.compile("[+-]?[0-9]{1,18}")
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
LABEL = re.compile("[A-Za-z0-9._-]{1,100}")
"""What a part of a column's name, and of a file's, can be made of."""


def digits(value: Any) -> Any:
    """A whole number written as text, as on a command line, as a number; else `value`."""
    return int(value) if isinstance(value, str) and DIGITS.fullmatch(value) else value


def no_truth(value: Any) -> Any:
    """`value`, or ValueError for true and false, which Python takes for numbers."""
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


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


def labels(value: dict[str, str]) -> dict[str, str]:
    """`value`, or ValueError if a key cannot be a part of the names of a column and of a file."""
    for label in value:
        if not LABEL.fullmatch(label):
            raise ValueError(
                f"label {label[:120]!a} should have letters, digits, '.', '_' and '-' only"
            )
        if sum(label.lower() == other.lower() for other in value) > 1:
            raise ValueError(f"label '{label}' stands twice, but for its case; rename one")
    return value


def known_code(value: int) -> int:
    """`value`, or ValueError if the NCBI has no genetic code of that number."""
    if value != STANDARD_CODE:
        from Bio.Data import CodonTable

        if value not in CodonTable.unambiguous_dna_by_id:
            known = ", ".join(map(str, sorted(CodonTable.unambiguous_dna_by_id)))
            raise ValueError(f"no genetic code of the NCBI; choose one of {known}")
    return value


Whole: TypeAlias = Annotated[int, Field(strict=True), BeforeValidator(digits)]
Layer: TypeAlias = Annotated[int, Field(strict=True, ge=-1), BeforeValidator(digits)]
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
    nucleotides: Literal["refuse", "translate", "keep"] = Field(
        "refuse",
        description="DNA or RNA: skip the record, and stop where most of a file is that; translate "
        "coding sequences; or keep the letters as residues",
    )
    genetic_code: Annotated[Whole, AfterValidator(known_code)] = Field(
        STANDARD_CODE,
        description="the NCBI's number of the genetic code by which coding sequences are "
        "translated; 11 is that of bacteria, archaea and plastids",
    )
    max_letters: Whole = Field(
        100_000,
        gt=0,
        le=MOST_LETTERS,
        description="most letters of a record, which is else skipped; three times as many where "
        "coding sequences are translated",
    )


AS_VALIDATED = {"nucleotides": "keep", "max_letters": MOST_LETTERS}
"""Values of CleaningSettings under which what `shard` wrote is read as it stands."""


class ShardSettings(CleaningSettings):
    """How an input is validated and cut into shards."""

    residues: Whole = Field(
        2_000_000, gt=0, description="residues in one shard, about, where `shards` is auto"
    )


class ComputeSettings(Section):
    """What every task that runs a model has."""

    dtype: Literal["float32", "bfloat16", "int8"] = Field(
        "float32",
        description="precision the model computes in; int8, its layers in 8 bits, is for the CPU",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$",
        examples=["auto", "cpu", "cuda", "cuda:0", "mps"],
        description="auto, cpu, cuda, cuda:N or mps; auto takes a GPU where there is one",
        json_schema_extra=EXECUTION,
    )
    token_budget: Whole = Field(
        16_384, gt=0, description="most tokens computed at a time", json_schema_extra=EXECUTION
    )
    threads: Whole = Field(
        0,
        ge=0,
        le=MOST_THREADS,
        description="CPU threads of one job; 0 takes every core it may use",
        json_schema_extra=EXECUTION,
    )

    def computing(self) -> ComputeSettings:
        """What a job that runs a model is told."""
        return self


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

    mutation_col: Name = Field(
        "mutant", description="column of mutations, such as A42G or A42G:T50K"
    )
    offset: Whole = Field(
        0,
        ge=-1_000_000,
        le=1_000_000,
        description="what is added to residue numbers in the mutations: residue 1 + offset is the "
        "first of the protein",
    )
    mutated_sequence_col: Name | None = Field(
        None, description="column of mutated sequences, read in place of mutations"
    )
    position_col: Name | None = Field(
        None,
        description="column of residue numbers, read with `mutant_aa_col` in place of mutations, "
        "such as VEP's Protein_position",
    )
    mutant_aa_col: Name | None = Field(
        None, description="column of mutant residues; or of both, as A/V, such as VEP's Amino_acids"
    )
    wild_type_aa_col: Name | None = Field(
        None, description="column of wild-type residues, where `mutant_aa_col` does not have them"
    )
    protein_col: Name | None = Field(
        None,
        description="column that names the protein of each row, by its id, accession or gene in "
        "the FASTA; by default 'protein', where there is one",
    )
    protein: Name | None = Field(
        None,
        description="the one protein that all rows are of, by its id in the FASTA; with "
        "`protein_col`, rows of others are skipped",
    )
    sequence_col: Name | None = Field(
        None, description="column of wild types, read in place of a FASTA"
    )

    @model_validator(mode="after")
    def _columns(self) -> Self:
        if (self.position_col is None) != (self.mutant_aa_col is None):
            raise ValueError("'position_col' and 'mutant_aa_col' go together; set both or none")
        if self.wild_type_aa_col is not None and self.position_col is None:
            raise ValueError(
                "'wild_type_aa_col' needs 'position_col' and 'mutant_aa_col'; set them"
            )
        if self.position_col is not None and self.mutated_sequence_col is not None:
            raise ValueError(
                "'position_col' and 'mutated_sequence_col' are two ways to say the same; choose one"
            )
        return self


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
    window: Whole = Field(
        1024, ge=8, description="tokens in a window, where `long` is window; at most the table's"
    )


class ScoreSettings(VariantSettings, StrategySettings):
    """What `score` does."""


class ScoreSection(ScoreSettings):
    """What the workflow scores, and by which models."""

    models: dict[str, Name] = Field(
        {},
        description="an ensemble: label and model of each, a hub id (with @revision if need be) or "
        "a folder; by default the one `model` of all tasks",
    )
    saturation: bool = Field(
        False, description="score every substitution of every protein, into saturation.h5"
    )
    plots: bool = Field(False, description="a picture of each saturated protein, into heatmaps")
    table_bytes: Whole = Field(
        1_000_000,
        gt=0,
        description="bytes of a table of variants in one shard, about, where `shards` is auto",
    )

    _labels = field_validator("models")(labels)

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

    def computing(self) -> StrategySettings:
        """Without what concerns the table, which is read before any model runs."""
        return self.part(StrategySettings)


class OwnModel(Section):
    """The model of one task, where it is another than that of all."""

    model: Name | None = Field(
        None,
        description="the model of this task, a hub id or a folder; by default the `model` of all "
        "tasks",
    )
    revision: Name | None = Field(
        None, description="commit, tag or branch of this model, if it is of the hub"
    )

    @model_validator(mode="after")
    def _of_a_model(self) -> Self:
        if self.revision is not None and self.model is None:
            raise ValueError("'revision' is that of 'model'; name one, or leave it out")
        return self


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
        ["pdb"],
        min_length=1,
        description="files of each structure, pdb, cif or both; the table names the first",
    )
    pae: list[Literal["json", "npz"]] = Field(
        ["json"],
        description="files of predicted aligned errors: json as the AlphaFold database's, npz, "
        "both or none",
    )
    archive: bool = Field(
        False, description="zip archives, each of 1,000 records, in place of folders"
    )

    _each_once = field_validator("formats", "pae")(each_once)


class FoldSection(FoldSettings, StructureSettings, OwnModel):
    """What the workflow folds, by which model, and which files it writes."""

    def computing(self) -> FoldSettings:
        """Without what concerns files, which are written after any model has run."""
        return self.part(FoldSettings)


class LabelSettings(Section):
    """Which labels are told of a sequence or residue that may have several."""

    threshold: Annotated[float, BeforeValidator(no_truth)] = Field(
        0.5,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="least probability of a label that is told, where a model gives several "
        "(multi-label)",
    )


CLASSIFIERS = {
    "EsmForSequenceClassification": "sequences",
    "EsmForTokenClassification": "residues",
}
"""Classes of models that `classify` runs, as `architectures` of a config.json names them, and what
they classify."""


class ClassifySettings(ComputeSettings):
    """How `classify` runs a model."""

    of: Literal["auto", "sequences", "residues"] = Field(
        "auto",
        description="what the model classifies, sequences or their residues; auto: as the "
        "checkpoint is (the workflow, which has to know before a hub model is fetched, reads the "
        "config.json of a local one)",
    )
    long: Literal["auto", "skip", "truncate", "full"] = Field(
        "auto",
        description="sequences longer than the position table; auto: skip them (ESM-1b, ESM-1v), "
        "or full for rotary models (ESM-2), which have no table",
    )


class ClassifySection(ClassifySettings, LabelSettings, OwnModel):
    """What the workflow classifies, and by which model."""

    def computing(self) -> ClassifySettings:
        """Without what concerns the table, which is written from the gathered results."""
        return self.part(ClassifySettings)


def check(section: type[S], values: Mapping[str, Any], source: str) -> S:
    """Build `section` from `values`, or raise InputError that tells which key is wrong and why."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems: dict[tuple[int | str, ...], str] = {}
        for one in error.errors():  # several of one place are of a union: the first tells all
            place = place_of(section, one["loc"])
            told = explain(section, one)
            if source == COMMAND_LINE:
                told = as_flags(section, place, told)
            problems.setdefault(tuple(place), told)
        raise InputError("\n".join(f"{source}: {each}" for each in problems.values())) from None


def is_execution(section: type[Section], name: str) -> bool:
    """Whether a field of `section` leaves results as they are."""
    extra = section.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("execution"))


def values(section: Section, *, execution: bool = False) -> dict[str, Any]:
    """The fields of `section` that do not (or do) leave results as they are, if they are set."""
    return {
        name: value
        for name, value in section
        if is_execution(type(section), name) is execution and value is not None
    }


def texts(section: Section, *, execution: bool = False) -> dict[str, str]:
    """The same as text."""
    return {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in values(section, execution=execution).items()
    }


def flag_values(section: Section, *, execution: bool) -> Iterator[tuple[str, str]]:
    """The same as flags and their values."""
    for name, text in texts(section, execution=execution).items():
        yield "--" + name.replace("_", "-"), text


def flags(section: Section, *, execution: bool = False) -> str:
    """`section` as shell-quoted command-line flags."""
    pairs = flag_values(section, execution=execution)
    return " ".join(shlex.quote(f"{flag}={value}") for flag, value in pairs)
