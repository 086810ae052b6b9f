"""`embed` as a function: sequences in, arrays out; a data frame in, a data frame out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_pipeline.arrays import Float32, Int64
from esm_pipeline.errors import InputError, number_of
from esm_pipeline.formats.results.embeddings import (
    FIXED_SIZE,
    LAYERED,
    Embeddings,
    ResidueArray,
)
from esm_pipeline.formats.results.nearest import Metric, Neighbour, nearest_rows
from esm_pipeline.settings.sections import EmbedSettings
from esm_pipeline.tasks.common.functions import (
    CommonOptions,
    ComputedRecords,
    FunctionCall,
    NamedSequences,
    model_or_name,
    read_sequences,
    with_index,
)

if TYPE_CHECKING:
    import pandas as pd

    from esm_pipeline.tasks.common.functions import AnyModel, Sequences

EMBED = "embed"
Included: TypeAlias = Literal["mean", "bos", "residue", "contacts"]


@dataclass(frozen=True, repr=False)
class EmbedResult:
    """The embeddings of N sequences, in input order.

    `ids` are theirs, `layers` those that were stored, 0 being the embedding. `mean`, `bos` and
    `residue` are of the last of these; `at(layer)` has them of another one. `result["P1"]` and
    `result[0]` are the embeddings of one record. `records` is a data frame with the outcome of each
    record: id, length, status, reason, notes, duplicate_of.
    """

    ids: list[str]
    layers: list[int]
    records: pd.DataFrame
    _found: ComputedRecords
    _arrays: Mapping[str, Any]
    """Dataset → (N, D), or N arrays."""

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        stored = ", ".join(self.kinds)
        layers = ", ".join(map(str, self.layers))
        records = number_of(len(self), "record")
        return f"<EmbedResult: {records}, {stored}, layers {layers or 'none'}>"

    def keys(self) -> list[str]:
        """The ids of the records that were computed, in input order."""
        return self._found.computed_ids()

    def __contains__(self, key: object) -> bool:
        """Whether a computed record has `key` as its id, a name in it, or its position."""
        return self._found.has(key)

    @property
    def kinds(self) -> list[str]:
        """What was stored: some of mean, bos, residue and contacts."""
        return list(dict.fromkeys(name.split("/")[0] for name in self._arrays))

    @property
    def mean(self) -> Float32:
        """(N, D) means over the residues; NaN for a record that was not computed."""
        found: Float32 = self._stored("mean")
        return found

    @property
    def bos(self) -> Float32:
        """(N, D) representations of the token before the first residue; NaN as in `mean`."""
        found: Float32 = self._stored("bos")
        return found

    @property
    def residue(self) -> list[ResidueArray]:
        """(R, D) representations of the residues of each record; (0, D) where there are none.

        float16, or float32 with `residue_dtype="float32"`.
        """
        found: list[ResidueArray] = self._stored("residue")
        return found

    @property
    def contacts(self) -> list[NDArray[np.float16]]:
        """(R, R) contact probabilities of each record, 0 to 1; (0, 0) where there are none."""
        found: list[NDArray[np.float16]] = self._stored("contacts")
        return found

    def at(self, layer: int) -> EmbedResult:
        """The same with the arrays of another stored layer. Raises InputError."""
        layer = self.layers[-1] if layer == -1 and self.layers else layer
        if layer not in self.layers:
            stored = ", ".join(map(str, self.layers))
            raise InputError(f"embed: layer {layer} was not stored, only {stored}; see `layers`")
        kept = {
            name: values
            for name, values in self._arrays.items()
            if name.rpartition("/")[2] in (str(layer), "contacts")
        }
        return EmbedResult(self.ids, [layer], self.records, self._found, kept)

    def nearest(
        self, query: int | str | ArrayLike, k: int = 10, *, metric: Metric = "cosine"
    ) -> list[Neighbour]:
        """The `k` records whose means are nearest to that of a record, or to a vector (D,).

        As `nearest` of `open_results`, which does the same in a file of any size.
        """
        own = self._found.place(EMBED, query) if isinstance(query, int | str) else None
        vector = query if own is None else self.mean[own]
        found = nearest_rows(ComputedMeans(self.mean), vector, k, metric, own)
        return [Neighbour(self.ids[place], place, *rest) for place, *rest in found]

    def __getitem__(self, key: int | str) -> EmbeddedSequence:
        """The embeddings of one record, by position or id. Raises InputError."""
        return EmbeddedSequence(self, self._found.place(EMBED, key))

    def _stored(self, kind: str) -> Any:
        name = f"{kind}/{self.layers[-1]}" if kind in LAYERED and self.layers else kind
        if name not in self._arrays:
            stored = ", ".join(self.kinds)
            raise InputError(f"embed: '{kind}' was not asked for, only {stored}; set include")
        return self._arrays[name]


@dataclass(frozen=True)
class ComputedMeans:
    """Means (N, D) in memory, without those of records that were not computed."""

    values: Float32

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""
        return self.values.shape

    def indexed_blocks(self, rows: int) -> Iterator[tuple[Int64, Float32]]:
        """All rows, with their places."""
        for first in range(0, len(self.values), rows):
            part = self.values[first : first + rows]
            yield np.arange(first, first + len(part)), part


@dataclass(frozen=True)
class EmbeddedSequence:
    """The embeddings of one record, of the last layer of `result`."""

    result: EmbedResult
    place: int

    def __repr__(self) -> str:
        return f"<EmbeddedSequence {self.id!r}>"

    @property
    def id(self) -> str:
        """Its id."""
        return self.result.ids[self.place]

    @property
    def mean(self) -> Float32:
        """(D,) mean over the residues."""
        one: Float32 = self.result.mean[self.place]
        return one

    @property
    def bos(self) -> Float32:
        """(D,) representation of the token before the first residue."""
        one: Float32 = self.result.bos[self.place]
        return one

    @property
    def residue(self) -> ResidueArray:
        """(R, D) representation of each residue."""
        return self.result.residue[self.place]

    @property
    def contacts(self) -> NDArray[np.float16]:
        """(R, R) contact probabilities."""
        return self.result.contacts[self.place]


@overload
def embed(
    sequences: pd.DataFrame,
    model: AnyModel,
    *,
    layers: int | Sequence[int] = -1,
    include: Included | Sequence[Included] = "mean",
    residue_dtype: Literal["float16", "float32"] | None = None,
    long: Literal["auto", "skip", "truncate", "full"] | None = None,
    **options: Unpack[CommonOptions],
) -> pd.DataFrame: ...
@overload
def embed(
    sequences: Sequences,
    model: AnyModel,
    *,
    layers: int | Sequence[int] = -1,
    include: Included | Sequence[Included] = "mean",
    residue_dtype: Literal["float16", "float32"] | None = None,
    long: Literal["auto", "skip", "truncate", "full"] | None = None,
    **options: Unpack[CommonOptions],
) -> EmbedResult: ...
def embed(
    sequences: Sequences | pd.DataFrame,
    model: AnyModel,
    *,
    layers: int | Sequence[int] = -1,
    include: Included | Sequence[Included] = "mean",
    residue_dtype: Literal["float16", "float32"] | None = None,
    long: Literal["auto", "skip", "truncate", "full"] | None = None,
    **options: Unpack[CommonOptions],
) -> EmbedResult | pd.DataFrame:
    """Embed protein sequences, as `esm-pipeline embed` does.

    `sequences`: a list of text, a mapping from id to sequence, a pandas Series (its index has the
    ids), a data frame with a column `sequence` and perhaps `id`, the path of a FASTA file, or one
    sequence. `model`: a folder, a hub id, "demo", or a loaded model of any class; for many calls,
    give `optimize_for_inference(model)`.

    `layers`: 0 (embedding) to n, -1 for the last. `include`: any of mean, bos, residue, contacts.
    `residue_dtype` (float16 by default), `long` and the other options are those of the command:
    revision, dtype, device, token_budget, threads, quiet, on_failure, unknown_residues,
    internal_stops, gaps, nucleotides, genetic_code, max_letters. A record that cannot be computed
    is a warning, or an error with `on_skipped="error"`; its numbers are NaN.

    Returns an `EmbedResult`, all of it in memory; for millions of sequences, run the command and
    read its file with `open_results`. For a data frame, returns a data frame with the same index
    and the columns status, reason and `{kind}_{layer}_{place}`, such as mean_33_0, to join to it.
    Raises InputError, WeightsError, CapacityError; EsmPipelineError for failed records.
    """
    own = {
        "layers": [layers] if isinstance(layers, int) else list(layers),
        "include": [include] if isinstance(include, str) else list(include),
        "residue_dtype": residue_dtype,
        "long": long,
    }
    call = FunctionCall(EMBED, model, options, own, EmbedSettings)
    settings = call.settings(EmbedSettings)
    in_frame = type(sequences).__name__ == "DataFrame"
    if in_frame and not {*settings.include} <= {*FIXED_SIZE}:
        raise InputError(
            "embed: a data frame has a row for each record, which residue and contacts do not fit "
            "into; leave them out, or give frame['sequence']"
        )
    from esm_pipeline.tasks.common.compute import write_rows
    from esm_pipeline.tasks.common.plan import SequencePlan
    from esm_pipeline.tasks.embed.representations import Encoder

    with call.computing(settings) as folder:
        encoder = Encoder(model_or_name(model), call.run.revision, settings)
        sequence_set, given = read_sequences(EMBED, sequences, call.cleaning, folder)
        with sequence_set:
            plan = SequencePlan(sequence_set, encoder.policy)
            write_rows(encoder, plan, folder / "embeddings.h5", quiet=call.run.quiet)
            found = ComputedRecords.of(sequence_set.records(), plan.outcomes(), given)
        arrays = embedded_arrays(folder / "embeddings.h5", len(found.ids))
    see = "the column 'reason'" if in_frame else "`records`"
    call.require_outcomes(found.outcomes, found.ids, see)
    if in_frame:
        return embedding_frame(found, arrays, given)
    return EmbedResult(found.ids, encoder.layers, found.table(given), found, arrays)


def embedded_arrays(path: Path, count: int) -> dict[str, Any]:
    """Dataset → (N, D) with NaN for records without a row, or N arrays of different lengths."""
    arrays: dict[str, Any] = {}
    with Embeddings.open(path) as results:
        index, row, part = results.index, results.row, results.one
        for kind in results.kinds:
            for layer in results.layers if kind in LAYERED else [0]:
                name = f"{kind}/{layer}" if kind in LAYERED else kind
                if kind in FIXED_SIZE:
                    values = part.array(name).at(row)
                    whole = np.full((count, *values.shape[1:]), np.nan, values.dtype)
                    whole[index] = values
                    arrays[name] = whole
                    continue
                width = part.array(name).shape[1:]
                empty = np.empty((0, *width) if width else (0, 0), part.array(name).dtype)
                per_record = [empty] * count
                rows = {one: read_row(results, name, one) for one in np.unique(row).tolist()}
                for place, one in zip(index.tolist(), row.tolist(), strict=True):
                    per_record[place] = rows[one]
                arrays[name] = per_record
    return arrays


def read_row(results: Embeddings, name: str, row: int) -> NDArray[Any]:
    """The values of one sequence: (R, D), or (R, R) for contacts."""
    if name != "contacts":
        return results.one.values(name, "residue", row)
    size = results.one.length(row)
    return results.one.values(name, "pair", row).reshape(size, size)


def embedding_frame(
    found: ComputedRecords, arrays: Mapping[str, Any], given: NamedSequences | None
) -> pd.DataFrame:
    """The columns status, reason and those of the command's table, with the index of the frame."""
    import pandas as pd

    columns: dict[str, Any] = {
        "status": [outcome.status for outcome in found.outcomes],
        "reason": [outcome.reason for outcome in found.outcomes],
    }
    for name, values in arrays.items():
        for place in range(values.shape[1]):
            columns[f"{name.replace('/', '_')}_{place}"] = values[:, place]
    return with_index(pd.DataFrame(columns), given)
