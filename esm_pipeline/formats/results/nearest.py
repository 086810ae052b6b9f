"""The records whose vectors are nearest to one: all are compared, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_pipeline.arrays import Float32, Float64, Int64
from esm_pipeline.errors import InputError, brief
from esm_pipeline.footprint import FLOAT32

Metric: TypeAlias = Literal["cosine", "euclidean"]
METRICS = ("cosine", "euclidean")

COMPARED_BYTES = 16 << 20
"""Bytes of the vectors that are compared at a time."""

SPARE = 16
"""More candidates than are wanted: the last ones are ordered by exact numbers."""


class Neighbour(NamedTuple):
    """A record and how near it is; a list of them makes a data frame."""

    id: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    """Its position in the input."""
    similarity: float
    """Cosine of the angle between both vectors, -1 to 1; 0 if one of them is zero."""
    distance: float
    """Euclidean distance."""


class Vectors(Protocol):
    """(N, D) vectors, which are read in blocks."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and D."""

    def indexed_blocks(self, rows: int) -> Iterator[tuple[Int64, Float32]]:
        """The vectors, `rows` at a time, with the indices of their records."""


def nearest_rows(
    matrix: Vectors, query: ArrayLike, k: int, metric: Metric, left_out: int | None
) -> list[tuple[int, float, float]]:
    """Place, cosine similarity and distance of the `k` nearest rows; equals in their order.

    `left_out` is the index of a record that does not count; nor do vectors with NaN. Raises
    InputError for a metric, a number or a vector that cannot be used.
    """
    if metric not in METRICS:
        raise InputError(f"metric {metric!r} is not known; use {' or '.join(METRICS)}")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"k is {brief(k)}; give a whole number from 1")
    vector = read_vector(query, matrix.shape[1])
    if metric == "cosine" and left_out is None and not vector.any():
        raise InputError(
            "a vector of zeros to compare, which has no direction; give another one, or set metric "
            "to 'euclidean'"
        )
    wanted = int(k) + SPARE
    places, nearness = np.empty(0, np.int64), np.empty(0, np.float32)
    vectors = np.empty((0, len(vector)), np.float32)
    done = 0
    for index, values in matrix.indexed_blocks(vectors_at_once(len(vector))):
        found = nearness_of(values, vector.astype(np.float32), metric)
        found[np.isnan(found)] = -np.inf
        if left_out is not None:
            found[index == left_out] = -np.inf
        best = largest_first(found, wanted)
        places = np.concatenate([places, best + done])
        nearness = np.concatenate([nearness, found[best]])
        vectors = np.concatenate([vectors, values[best]])
        kept = largest_first(nearness, wanted)
        places, nearness, vectors = places[kept], nearness[kept], vectors[kept]
        done += len(values)
        del index, values  # before the next ones are read
    real = nearness > -np.inf
    places, exact = places[real], vectors[real].astype(np.float64)
    similarity, distance = cosines(exact, vector), np.linalg.norm(exact - vector, axis=1)
    order = np.lexsort((places, -similarity if metric == "cosine" else distance))[:k]
    return [
        (int(places[one]), float(similarity[one]), float(distance[one])) for one in order.tolist()
    ]


def read_vector(query: ArrayLike, width: int) -> Float64:
    """A query as (D,) numbers. Raises InputError."""
    try:
        vector = np.asarray(query, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{brief(query)} is neither an id, an index nor a vector") from None
    if vector.shape != (width,) or not np.isfinite(vector).all():
        raise InputError(
            f"a vector of shape {vector.shape} to compare; give one of {width} finite numbers"
        )
    return vector


def vectors_at_once(width: int) -> int:
    """Rows of a block of vectors of `width` numbers."""
    return max(1, COMPARED_BYTES // (FLOAT32 * width))


def nearness_of(values: Float32, vector: Float32, metric: Metric) -> Float32:
    """(n,) how near each row is: larger is nearer."""
    if metric == "cosine":
        products: Float32 = values @ vector
        norms = np.sqrt(np.einsum("nd,nd->n", values, values))
        np.divide(products, norms, out=products, where=norms > 0)
        return products
    differences = values - vector
    found: Float32 = -np.einsum("nd,nd->n", differences, differences)
    return found


def cosines(vectors: Float64, vector: Float64) -> Float64:
    """(n,) cosine similarities; 0 for vectors of zeros."""
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector)
    products: Float64 = vectors @ vector
    np.divide(products, norms, out=products, where=norms > 0)
    return products


def largest_first(values: NDArray[np.float32], count: int) -> Int64:
    """Places of the `count` largest values, the largest first; equals in their order."""
    if len(values) > count:
        least = np.partition(values, len(values) - count)[len(values) - count]
        above = np.flatnonzero(values > least)
        equal = np.flatnonzero(values == least)[: count - len(above)]
        chosen = np.sort(np.concatenate([above, equal]))
    else:
        chosen = np.arange(len(values))
    return np.asarray(chosen[np.argsort(-values[chosen], kind="stable")], np.int64)
