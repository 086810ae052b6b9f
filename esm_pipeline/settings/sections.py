"""The settings of each task, as classes.

The flags of the command line, the parameters of the workflow's rules and the sections of the config
file are all made from these classes. No torch: the workflow imports this module at every parse.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from esm_pipeline.settings.models import Model, full_name, full_names
from esm_pipeline.settings.section import (
    EXECUTION,
    ErrorFormats,
    Name,
    Section,
    Whole,
    digits,
    each_once,
    not_boolean,
)

MOST_THREADS = 1024
MOST_LETTERS = 2_000_000_000
STANDARD_CODE = 11
LABEL = re.compile("[A-Za-z0-9._-]{1,100}")
"""A text that can be part of a column name and of a file name."""


def labels(value: dict[str, str]) -> dict[str, str]:
    """Return `value`. Raises ValueError for a key that cannot be part of a column or file name."""
    for label in value:
        if not LABEL.fullmatch(label):
            raise ValueError(
                f"label {label[:120]!a} may contain only letters, digits, '.', '_' and '-'"
            )
        if sum(label.lower() == other.lower() for other in value) > 1:
            raise ValueError(f"label '{label}' appears twice (differing only in case); rename one")
    return value


def known_code(value: int) -> int:
    """Return `value`. Raises ValueError if the NCBI has no genetic code with that number."""
    if value != STANDARD_CODE:
        from Bio.Data import CodonTable

        if value not in CodonTable.unambiguous_dna_by_id:
            known = ", ".join(map(str, sorted(CodonTable.unambiguous_dna_by_id)))
            raise ValueError(f"not the number of an NCBI genetic code; choose one of {known}")
    return value


ModelName: TypeAlias = Annotated[Name, AfterValidator(full_name)]
Layer: TypeAlias = Annotated[int, Field(strict=True, ge=-1), BeforeValidator(digits)]
ChunkSize: TypeAlias = Annotated[int, Field(strict=True, gt=0), BeforeValidator(digits)]


class CleaningSettings(Section):
    """What to do with unusual letters in a sequence."""

    unknown_residues: Literal["replace", "skip"] = Field(
        "replace", description="J, which no model knows: replace it with X, or skip the record"
    )
    internal_stops: Literal["skip", "replace"] = Field(
        "skip", description="stop '*' inside a sequence: skip the record, or replace it with X"
    )
    gaps: Literal["skip", "remove"] = Field(
        "skip", description="gaps '-' and '.' in a sequence: skip the record, or remove the gaps"
    )
    nucleotides: Literal["refuse", "translate", "keep"] = Field(
        "refuse",
        description="DNA or RNA: refuse it (skip the record, and stop if most of a file is "
        "nucleotides), translate coding sequences, or keep the letters as residues",
    )
    genetic_code: Annotated[Whole, AfterValidator(known_code)] = Field(
        STANDARD_CODE,
        description="NCBI number of the genetic code used to translate coding sequences; 11: "
        "bacteria, archaea and plastids",
    )
    max_letters: Whole = Field(
        100_000,
        gt=0,
        le=MOST_LETTERS,
        description="longest record, in letters; a longer one is skipped; three times as many "
        "letters if nucleotides are translated",
    )


AS_VALIDATED = {"nucleotides": "keep", "max_letters": MOST_LETTERS}
"""Values of CleaningSettings with which the output of `shard` is read unchanged."""


class BundleSettings(Section):
    """How the unique sequences of a sample are dealt into bundles, from which jobs take ranges."""

    bundle: Whole = Field(
        500_000,
        gt=0,
        description="records in a bundle, roughly; results of a larger sample are in one file for "
        "each bundle",
    )
    least: Whole = Field(
        10_000,
        gt=0,
        description="residues of the smallest job that is worth its start; folding and saturation "
        "take a twentieth",
    )


class ShardSettings(BundleSettings, CleaningSettings):
    """How an input is validated and dealt into bundles."""


class JobSettings(Section):
    """How much one job of a task does in the workflow."""

    job_residues: Whole = Field(
        2_000_000,
        gt=0,
        description="residues of one job, roughly, if `shards` is auto",
        json_schema_extra=EXECUTION,
    )


class JobLimits(Section):
    """What one job may request."""

    mem_mb: Whole | None = Field(
        None, gt=0, description="memory of the largest machine, in MB; by default any amount"
    )
    runtime: Whole | None = Field(
        None, gt=0, description="longest run time, in minutes; by default any time"
    )


class ComputeSettings(Section):
    """The settings of every task that runs a model."""

    dtype: Literal["float32", "bfloat16", "int8"] = Field(
        "float32",
        description="precision: float32, bfloat16 or int8 (8-bit layers, for CPUs)",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$",
        examples=["auto", "cpu", "cuda", "cuda:0", "mps"],
        description="auto, cpu, cuda, cuda:N or mps; auto uses a GPU if there is one",
        json_schema_extra=EXECUTION,
    )
    token_budget: Whole = Field(
        16_384, gt=0, description="most tokens in one batch", json_schema_extra=EXECUTION
    )
    threads: Whole = Field(
        0,
        ge=0,
        le=MOST_THREADS,
        description="CPU threads of one job; 0: every core that the job may use",
        json_schema_extra=EXECUTION,
    )

    def computing(self) -> ComputeSettings:
        """Return the settings that a job that runs the model needs."""
        return self


class EmbedSettings(ComputeSettings):
    """What `embed` computes."""

    layers: list[Layer] = Field(
        [-1],
        min_length=1,
        description="layers to store: 0 (embedding) to n; -1 is the last",
    )
    include: list[Literal["mean", "residue", "bos", "contacts"]] = Field(
        ["mean"], min_length=1, description="what to store: any of mean, residue, bos, contacts"
    )
    residue_dtype: Literal["float16", "float32"] = Field(
        "float16", description="precision of the stored residue representations: float16 or float32"
    )
    long: Literal["auto", "skip", "truncate", "full"] = Field(
        "auto",
        description="sequences longer than the position table: skip, truncate, full or auto (skip; "
        "full for models without a table, such as ESM-2)",
    )

    _each_once = field_validator("layers", "include")(each_once)


class EmbedSection(JobSettings, EmbedSettings):
    """The settings of `embed` in the workflow."""

    def computing(self) -> EmbedSettings:
        """Return the settings without the size of a job."""
        return self.part(EmbedSettings)


class VariantSettings(Section):
    """How a table of variants is read."""

    mutation_col: Name = Field(
        "mutant", description="column with the mutations, such as A42G or A42G:T50K"
    )
    offset: Whole = Field(
        0,
        ge=-1_000_000,
        le=1_000_000,
        description="difference between the residue numbers of the table and of the protein: the "
        "first residue of the protein has the number 1 + offset",
    )
    mutated_sequence_col: Name | None = Field(
        None, description="column with whole mutated sequences, read instead of mutations"
    )
    position_col: Name | None = Field(
        None,
        description="column with residue numbers, read together with `mutant_aa_col` instead of "
        "mutations, such as VEP's Protein_position",
    )
    mutant_aa_col: Name | None = Field(
        None,
        description="column with the mutant residue, or with wild type and mutant as A/V, "
        "such as VEP's Amino_acids",
    )
    wild_type_aa_col: Name | None = Field(
        None, description="column with the wild-type residue, if `mutant_aa_col` has none"
    )
    protein_col: Name | None = Field(
        None,
        description="column with the protein of each row: its id, accession or gene in the FASTA; "
        "by default 'protein', if there is such a column",
    )
    protein: Name | None = Field(
        None,
        description="id in the FASTA of the one protein that all rows belong to; with "
        "`protein_col`, rows of other proteins are skipped",
    )
    sequence_col: Name | None = Field(
        None, description="column with wild-type sequences, read instead of a FASTA"
    )

    @model_validator(mode="after")
    def _columns(self) -> Self:
        if (self.position_col is None) != (self.mutant_aa_col is None):
            raise ValueError("'position_col' and 'mutant_aa_col' go together; set both or neither")
        if self.wild_type_aa_col is not None and self.position_col is None:
            raise ValueError(
                "'wild_type_aa_col' needs 'position_col' and 'mutant_aa_col'; set them"
            )
        if self.position_col is not None and self.mutated_sequence_col is not None:
            raise ValueError(
                "'position_col' and 'mutated_sequence_col' exclude each other; choose one"
            )
        return self


class StrategySettings(ComputeSettings):
    """How variants are scored."""

    strategy: Literal[
        "masked_marginal", "masked_marginal_joint", "wt_marginal", "pseudo_log_likelihood"
    ] = Field(
        "masked_marginal",
        description="masked_marginal (each mutated residue masked alone), masked_marginal_joint "
        "(all of a variant masked together), wt_marginal (nothing masked) or "
        "pseudo_log_likelihood (of the whole sequence)",
    )
    long: Literal["auto", "skip", "truncate", "window", "full"] = Field(
        "auto",
        description="proteins longer than the position table: skip, truncate, window (as "
        "ProteinGym does), full or auto (skip; full for models without a table, such as ESM-2)",
    )
    window: Whole = Field(
        1024,
        ge=8,
        description="tokens in a window if `long` is window; at most those of the position table",
    )


class ScoreSettings(VariantSettings, StrategySettings):
    """The settings of `score`."""


class ScoreSection(JobSettings, ScoreSettings):
    """The settings of `score` in the workflow, with its models."""

    job_residues: Whole = Field(
        100_000,
        gt=0,
        description="residues of one job, roughly, if `shards` is auto and every substitution is "
        "scored",
        json_schema_extra=EXECUTION,
    )

    models: dict[str, Name] = Field(
        {},
        description="an ensemble: label and model of each member, a hub id (optionally with "
        "@revision) or a folder; by default the `model` of all tasks",
    )
    saturation: bool = Field(
        False, description="score every substitution of every protein and write saturation.h5"
    )
    plots: bool = Field(False, description="draw each saturated protein, into heatmaps")
    table_bytes: Whole = Field(
        1_000_000,
        gt=0,
        description="bytes of a table of variants in one job, roughly, if `shards` is auto",
    )

    _labels = field_validator("models")(labels)
    _full_names = field_validator("models")(full_names)

    @model_validator(mode="after")
    def _saturation(self) -> ScoreSection:
        if self.saturation and self.strategy == "pseudo_log_likelihood":
            raise ValueError(
                "saturation with pseudo_log_likelihood needs 19 L² forward passes for each "
                "protein; choose masked_marginal"
            )
        if self.plots and not self.saturation:
            raise ValueError("'plots' shows a saturation; set 'saturation' too")
        return self

    def computing(self) -> StrategySettings:
        """Return the settings without those of the table, which is read before any model runs."""
        return self.part(StrategySettings)


class OwnModel(Section):
    """The model of one task, if it differs from the model of all tasks."""

    model: ModelName | None = Field(
        None,
        description="model of this task, a hub id or a folder; by default the `model` of all tasks",
    )
    revision: Name | None = Field(
        None, description="commit, tag or branch, if this model comes from the hub"
    )

    @model_validator(mode="after")
    def _of_a_model(self) -> Self:
        if self.revision is not None and self.model is None:
            raise ValueError("'revision' belongs to 'model'; set 'model' too, or leave it out")
        return self

    def own_model(self, task: str) -> Model | None:
        """Return the model that is set for `task`, if one is."""
        return Model(self.model, self.revision, [task]) if self.model else None


class FoldSettings(ComputeSettings):
    """What `fold` computes."""

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="precision of the language model: float32 or bfloat16; the folding trunk "
        "computes in float32",
    )
    token_budget: Whole = Field(
        1024,
        gt=0,
        description="largest number of residues in one batch, padding included; batches of long "
        "sequences are smaller",
        json_schema_extra=EXECUTION,
    )
    num_recycles: Whole = Field(
        3, ge=0, le=100, description="number of recycles: the trunk runs N + 1 times"
    )
    chunk_size: Literal["auto", "none"] | ChunkSize = Field(
        "auto",
        description="rows of the pair representation computed at once: fewer rows need less memory "
        "and more time; auto: as many as fit; none: all",
        json_schema_extra=EXECUTION,
    )
    memory: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="GB of memory that one job may use for a batch; 0: all that is free",
        json_schema_extra=EXECUTION,
    )
    max_residues: Whole = Field(
        0, ge=0, description="longest sequence or complex to fold, in residues; 0: no limit"
    )
    long: Literal["auto", "skip", "truncate", "full"] = Field(
        "auto",
        description="sequences longer than `max_residues` or the position table: auto and skip "
        "(skip them), truncate (never a complex) or full (requires that there is no limit)",
    )
    ambiguous: Literal["omit", "approximate"] = Field(
        "omit",
        description="B (D or N) and Z (E or Q): omit (no atoms, a gap in the chain) or approximate "
        "(folded as D and E); U is always folded as C and O as K, and X always has no atoms",
    )


class StructureSettings(Section):
    """Which files to write for each structure."""

    formats: list[Literal["pdb", "cif", "foldcomp"]] = Field(
        ["pdb"],
        min_length=1,
        description="files of each structure: any of pdb, cif and foldcomp (one database of all, "
        "40 times smaller); structures.tsv names the first",
    )
    pae: ErrorFormats = Field(
        ["json"],
        description="files of the predicted aligned error: any of json (as in the AlphaFold "
        "database), npz and cif (a file that the structure's mmCIF names, large), or none",
    )
    archive: bool = Field(
        False,
        description="write tar archives of compressed files, with an index, instead of folders",
    )
    archive_records: Whole = Field(
        500_000,
        gt=0,
        multiple_of=1_000,
        description="records of the input in an archive, a multiple of 1,000",
    )

    _each_once = field_validator("formats", "pae")(each_once)


class FoldSection(OwnModel, JobSettings, FoldSettings, StructureSettings):
    """The settings of `fold` in the workflow, with its model and its files."""

    job_residues: Whole = Field(
        100_000,
        gt=0,
        description="residues of one job, roughly, if `shards` is auto",
        json_schema_extra=EXECUTION,
    )

    def computing(self) -> FoldSettings:
        """Return the settings without those of the files, which are written after folding."""
        return self.part(FoldSettings)


class LabelSettings(Section):
    """Which labels to report for a sequence or residue that may have several."""

    threshold: Annotated[float, BeforeValidator(not_boolean)] = Field(
        0.5,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="multi-label models: lowest probability of a label that is reported",
    )


CLASSIFIERS = {
    "EsmForSequenceClassification": "sequences",
    "EsmForTokenClassification": "residues",
}
"""What the models of `classify` classify, by their class (`architectures` in config.json)."""


class ClassifySettings(ComputeSettings):
    """How `classify` runs a model."""

    of: Literal["auto", "sequences", "residues"] = Field(
        "auto",
        description="what the model classifies: sequences, residues or auto (as its config.json "
        "says; in the workflow, set it for a hub model, which is not downloaded yet)",
    )
    long: Literal["auto", "skip", "truncate", "full"] = Field(
        "auto",
        description="sequences longer than the position table: skip, truncate, full or auto (skip; "
        "full for models without a table, such as ESM-2)",
    )


ArraySettings: TypeAlias = ClassifySettings | EmbedSettings | FoldSettings
"""Sections of the tasks that compute arrays for each sequence."""


class ClassifySection(OwnModel, JobSettings, ClassifySettings, LabelSettings):
    """The settings of `classify` in the workflow, with its model."""

    def computing(self) -> ClassifySettings:
        """Return the settings without those of the table, which is written from the results."""
        return self.part(ClassifySettings)
