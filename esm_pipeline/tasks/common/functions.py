"""What the functions `embed`, `score`, `saturation`, `fold` and `classify` share.

They take sequences in Python, and then do what the commands do: the same validation and cleaning,
equal sequences computed once, the same batches, the same outcomes. No sequence is lost silently:
skipped ones are a warning, failed ones an error.
"""

from __future__ import annotations

import difflib
import operator
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Literal,
    NamedTuple,
    SupportsIndex,
    TypeAlias,
    TypedDict,
    TypeVar,
)

from esm_pipeline.errors import (
    AmbiguousIdError,
    EsmPipelineError,
    InputError,
    brief,
    naming_arguments,
)
from esm_pipeline.formats.fasta import FastaRecord
from esm_pipeline.formats.protein_names import names_of
from esm_pipeline.formats.records import FAILED, OK, SKIPPED, Outcome, Record
from esm_pipeline.settings.section import Section, check
from esm_pipeline.settings.sections import CleaningSettings, ComputeSettings
from esm_pipeline.tasks.common.cleaning import residues
from esm_pipeline.tasks.common.sequences import (
    SequenceSet,
    open_sequences,
    proteins,
    read_entries,
)

if TYPE_CHECKING:
    import pandas as pd

    from esm_pipeline.model import EsmPreTrainedModel

    Sequences: TypeAlias = (
        str | os.PathLike[str] | Sequence[str] | Mapping[str, str] | "pd.Series[str]"
    )
    """One sequence or the path of a FASTA file, several sequences, or id → sequence."""
    AnyModel: TypeAlias = str | os.PathLike[str] | EsmPreTrainedModel
    """A model as `--model` takes it, or one that is loaded."""

SEQUENCE_COLUMN, NAME_COLUMN = "sequence", "id"
"""The columns of a data frame of sequences; the second one may be missing."""

PATH_LIKE = re.compile(r"[/\\]|\.[a-z0-9]{1,6}(\.gz)?$")
"""Found in a text that is a path and not a sequence."""

SEQUENCES_AT_ONCE = 4096
MODEL_OPTIONS = ("revision", "dtype", "device")
"""Options that say how to load a model; one that is loaded has them already."""

CALLER_OF_FUNCTION = 3
"""Frames from `require_outcomes` up to the caller of a function such as `embed`."""


class CommonOptions(TypedDict, total=False):
    """Options of all functions, with the names and defaults of the flags of the commands."""

    revision: str | None
    """Commit, tag or branch of a hub model."""
    dtype: Literal["float32", "bfloat16", "int8"]
    device: str
    """auto, cpu, cuda, cuda:N or mps."""
    token_budget: int
    """Most tokens in one batch."""
    threads: int
    """CPU threads; by default those that PyTorch uses."""
    quiet: bool
    """No progress."""
    on_failure: Literal["error", "keep"]
    """Whether a failed record is an error, or its results are missing."""
    on_skipped: Literal["warn", "error"]
    """Whether a record that cannot be computed is a warning or an error."""
    unknown_residues: Literal["replace", "skip"]
    internal_stops: Literal["skip", "replace"]
    gaps: Literal["skip", "remove"]
    nucleotides: Literal["refuse", "translate", "keep"]
    genetic_code: int
    max_letters: int


@dataclass(frozen=True)
class RunOptions:
    """The options that are no settings."""

    revision: str | None
    quiet: bool
    on_failure: str
    on_skipped: str


S = TypeVar("S", bound=Section)


class FunctionCall:
    """A call of the function `name` with its options.

    Raises TypeError for an unknown option, InputError for an option that cannot be used.
    """

    def __init__(
        self,
        name: str,
        model: AnyModel | Iterable[AnyModel],
        options: CommonOptions,
        own: Mapping[str, object],
        *sections: type[Section],
    ) -> None:
        given = {key: value for key, value in {**options, **own}.items() if value is not None}
        every: tuple[type[Section], ...] = (*sections, CleaningSettings)
        known = {field for one in every for field in one.model_fields}
        known |= RunOptions.__annotations__.keys()
        for key in given.keys() - known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"{name}() got an unexpected keyword argument '{key}'{hint}")
        for one in list_of_models(model):
            for key in MODEL_OPTIONS if is_loaded(one) else ():
                if key in given:
                    raise InputError(
                        f"{name}: '{key}' says how to load a model, but this one is loaded; leave "
                        "it out"
                    )
        self.name, self._given = name, given
        self.run = RunOptions(
            revision=self._text("revision"),
            quiet=bool(given.get("quiet", False)),
            on_failure=self._choice("on_failure", "error", "keep"),
            on_skipped=self._choice("on_skipped", "warn", "error"),
        )
        self.cleaning = self.settings(CleaningSettings)

    def settings(self, section: type[S]) -> S:
        """The settings of a section. Raises InputError that names the option."""
        return check(
            section,
            {key: value for key, value in self._given.items() if key in section.model_fields},
            self.name,
        )

    def _choice(self, key: str, *choices: str) -> str:
        value = self._given.get(key, choices[0])
        if value not in choices:
            raise InputError(
                f"{self.name}: '{key}' = {brief(value)}: should be "
                f"{' or '.join(map(repr, choices))}"
            )
        return str(value)

    def _text(self, key: str) -> str | None:
        return str(self._given[key]) if key in self._given else None

    @contextmanager
    def computing(self, settings: ComputeSettings) -> Iterator[Path]:
        """A temporary folder; within, messages name options, and `threads` are set if given."""
        import torch

        from esm_pipeline.model.inference.device import set_threads

        before = torch.get_num_threads()
        with tempfile.TemporaryDirectory(prefix="esm-pipeline-") as folder, naming_arguments():
            if settings.threads:
                set_threads(settings.threads)
            try:
                yield Path(folder)
            finally:
                torch.set_num_threads(before)

    def require_outcomes(self, outcomes: Sequence[Outcome], names: Sequence[str], see: str) -> None:
        """Warn about skipped records, raise an error for failed ones, or as the options say.

        `see` is where the reasons of all are.
        """
        counts = Counter(outcome.status for outcome in outcomes)
        for status in (FAILED, SKIPPED):
            if not counts[status]:
                continue
            first = next(place for place, one in enumerate(outcomes) if one.status == status)
            what = (
                f"{self.name}: {counts[status]:,} of {len(outcomes):,} {status}, the first is "
                f"{names[first]!r}: {outcomes[first].reason}"
            )
            if status == FAILED and self.run.on_failure == "error":
                raise EsmPipelineError(f"{what}; set on_failure to 'keep' to get the others")
            if status == SKIPPED and self.run.on_skipped == "error":
                raise InputError(what)
            warnings.warn(f"{what} ({see} has all reasons)", stacklevel=CALLER_OF_FUNCTION)


def is_loaded(model: object) -> bool:
    """Whether a model is an object, and not the name or path of one."""
    return not isinstance(model, str | os.PathLike)


def list_of_models(model: AnyModel | Iterable[AnyModel]) -> list[AnyModel]:
    """The models, of which there may be one or several."""
    if isinstance(model, str | os.PathLike) or not isinstance(model, Iterable):
        return [model]
    return list(model)


def model_or_name(model: AnyModel) -> str | EsmPreTrainedModel:
    """The model itself, out of the wrappers of other libraries, or its name or path."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    from esm_pipeline.model import EsmPreTrainedModel, plain_model

    found = plain_model(model)
    assert isinstance(found, EsmPreTrainedModel)
    return found


class NamedSequences(NamedTuple):
    """Sequences that were given in Python: ids, sequences, and the index of their data frame."""

    ids: list[str]
    sequences: list[str]
    frame: pd.DataFrame | None = None

    def batches(self) -> Iterator[list[FastaRecord]]:
        """The records, as `read_batches` of a FASTA file yields them."""
        records = zip(self.ids, self.sequences, strict=True)
        numbered = (
            (place, name.encode("utf-8", "surrogatepass"), residues(text))
            for place, (name, text) in enumerate(records, 1)
        )
        while batch := list(islice(numbered, SEQUENCES_AT_ONCE)):
            yield batch


def is_path(sequences: object) -> bool:
    """Whether this is the path of a file, and not a sequence."""
    if isinstance(sequences, os.PathLike):
        return True
    return isinstance(sequences, str) and (
        PATH_LIKE.search(sequences) is not None or os.path.isfile(sequences)
    )


def read_sequences(
    name: str,
    sequences: Sequences | pd.DataFrame,
    cleaning: CleaningSettings,
    folder: Path,
    *,
    complexes: bool = False,
) -> tuple[SequenceSet, NamedSequences | None]:
    """The validated sequences, and what was given unless it was a file.

    `name` is that of the function, for messages; `complexes` as in `open_sequences`. Raises
    InputError if nothing in it can be used.
    """
    if is_path(sequences):
        path = os.path.expanduser(os.fspath(sequences))  # type: ignore[arg-type]
        return open_sequences([path], cleaning, folder, complexes=complexes), None
    given = named_sequences(name, sequences)
    if not given.ids:
        raise InputError(f"{name}: there are no sequences; give at least one")
    batches = given.batches()
    if cleaning.nucleotides == "refuse":
        batches = proteins(batches, "sequences")
    return read_entries(batches, cleaning, folder, complexes=complexes), given


def named_sequences(name: str, sequences: Sequences | pd.DataFrame) -> NamedSequences:
    """Sequences with their ids, by default their positions. Raises InputError."""
    if isinstance(sequences, str):
        return NamedSequences(["0"], [sequences])
    if isinstance(sequences, Mapping):
        return NamedSequences(
            list(map(str, sequences)), text_cells(name, sequences.values(), "sequence")
        )
    kind = type(sequences).__module__.split(".")[0]
    if kind == "pandas":
        return of_pandas(name, sequences)
    if isinstance(sequences, bytes) or not isinstance(sequences, Iterable):
        raise InputError(
            f"{name}: sequences are of type {type(sequences).__name__}; give a list of text, a "
            "mapping from id to sequence, a data frame, or the path of a FASTA file"
        )
    texts = text_cells(name, sequences, "sequence")
    return NamedSequences(list(map(str, range(len(texts)))), texts)


def of_pandas(name: str, sequences: object) -> NamedSequences:
    """The sequences of a data frame or series. Raises InputError for a missing column."""
    import pandas as pd

    if isinstance(sequences, pd.Series):
        ids = list(map(str, sequences.index))
        return NamedSequences(ids, text_cells(name, sequences, "sequence"))
    assert isinstance(sequences, pd.DataFrame)
    columns = list(map(str, sequences.columns))
    if SEQUENCE_COLUMN not in sequences.columns:
        near = difflib.get_close_matches(SEQUENCE_COLUMN, columns, n=1, cutoff=0.5)
        hint = f"rename '{near[0]}'" if near else f"it has {', '.join(columns[:8]) or 'no columns'}"
        raise InputError(f"{name}: the data frame has no column '{SEQUENCE_COLUMN}'; {hint}")
    for column in (SEQUENCE_COLUMN, NAME_COLUMN):
        if columns.count(column) > 1:
            raise InputError(f"{name}: the data frame has two columns '{column}'; rename one")
    named = NAME_COLUMN in sequences.columns
    ids = list(map(str, sequences[NAME_COLUMN] if named else sequences.index))
    texts = text_cells(name, sequences[SEQUENCE_COLUMN], "sequence")
    return NamedSequences(ids, texts, sequences)


def text_cells(name: str, values: Iterable[object], what: str) -> list[str]:
    """Values as text; missing ones (None, NaN) are empty. Raises InputError for anything else."""
    texts = []
    for place, value in enumerate(values):
        if isinstance(value, str):
            texts.append(value)
        elif is_missing_value(value):
            texts.append("")
        else:
            kind = type(value).__name__
            raise InputError(f"{name}: {what} {place} is {brief(value)}, of type {kind}; give text")
    return texts


def is_missing_value(value: object) -> bool:
    """Whether a value is None, NaN, or the missing value of pandas."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value


class ComputedRecords(NamedTuple):
    """What was computed: ids, outcomes, and the records as validated, in input order."""

    ids: list[str]
    outcomes: list[Outcome]
    records: list[Record]

    @classmethod
    def of(
        cls,
        records: Iterable[Record],
        outcomes: Iterable[Outcome],
        given: NamedSequences | None,
    ) -> ComputedRecords:
        """Those of a set of sequences, with the ids as they were given."""
        rows = list(records)
        ids = [record.id for record in rows] if given is None else given.ids
        named = [one._replace(id=name) for one, name in zip(rows, ids, strict=True)]
        return cls(ids, list(outcomes), named)

    def table(self, given: NamedSequences | None) -> pd.DataFrame:
        """A row for each record: id, length, status, reason, notes, duplicate_of.

        Its index is that of the data frame, if one was given.
        """
        import pandas as pd

        rows = zip(self.records, self.outcomes, strict=True)
        table = pd.DataFrame(
            [(one.id, one.length, *outcome, one.notes, one.duplicate_of) for one, outcome in rows],
            columns=["id", "length", "status", "reason", "notes", "duplicate_of"],
        ).astype({"length": "Int64", "duplicate_of": "Int64"})
        return with_index(table, given)

    def place(self, name: str, key: int | str) -> int:
        """The position of a record by its id, a name in it or its position. Raises InputError.

        `name` is that of the function; the record must have been computed.
        """
        if isinstance(key, str):
            key = self._place_of(name, key)
        try:
            key = operator.index(key)
        except TypeError:
            raise InputError(
                f"{name}: {brief(key)} is neither an id nor a position; give one record at a time"
            ) from None
        if not -len(self.ids) <= key < len(self.ids):
            raise IndexError(f"{name}: no record {key}, there are {len(self.ids)}")
        place = key % len(self.ids)
        if self.outcomes[place].status != OK:
            status, reason = self.outcomes[place]
            raise InputError(f"{name}: record {self.ids[place]!r} was {status}: {reason}")
        return place

    def computed_ids(self) -> list[str]:
        """The ids of the records that were computed, in input order."""
        pairs = zip(self.ids, self.outcomes, strict=True)
        return [name for name, outcome in pairs if outcome.status == OK]

    def has(self, key: object) -> bool:
        """Whether a computed record has `key` as its id, a name in it, or its position."""
        if isinstance(key, str):
            places = self._places_of(key)
        elif isinstance(key, SupportsIndex):
            place = operator.index(key)
            places = [place] if -len(self.ids) <= place < len(self.ids) else []
        else:
            return False
        return any(self.outcomes[place].status == OK for place in places)

    def _places_of(self, key: str) -> list[int]:
        """The records with an id or, if none has it, with that name in their ids."""
        places = [place for place, one in enumerate(self.ids) if one == key]
        return places or [place for place, one in enumerate(self.ids) if key in names_of(one)]

    def _place_of(self, name: str, key: str) -> int:
        """The first of the same. Raises InputError if there is none, or they differ."""
        places = self._places_of(key)
        if not places:
            names = [one for text in self.ids for one in names_of(text)]
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "see the ids"
            raise InputError(f"{name}: no record with id {key!r}; {hint}")
        if len({self.records[place].sha256 for place in places}) > 1:
            raise AmbiguousIdError(
                f"{name}: {key!r} names records with different sequences; use a position, such as "
                f"{places[0]}"
            )
        return places[0]


def with_index(table: pd.DataFrame, given: NamedSequences | None) -> pd.DataFrame:
    """The same table, with the index of the data frame that was given, if one was."""
    if given is not None and given.frame is not None:
        table.index = given.frame.index
    return table
