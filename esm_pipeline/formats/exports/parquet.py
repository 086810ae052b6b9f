"""Embeddings as Parquet: a row for each record, its numbers in one column of lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from esm_pipeline.formats.results.chosen import ChosenRecords
from esm_pipeline.formats.results.embedding_tables import width_of
from esm_pipeline.formats.tables.base import ROWS_AT_ONCE

METADATA_KEY = "esm_pipeline"
"""Where the schema has what describes the file, as JSON."""


def write_lists(
    target: Path, records: ChosenRecords, dataset: str, attributes: Mapping[str, Any]
) -> None:
    """Write index, id, length and the vector of each record, in a column named after the kind.

    `dataset` is mean/33 or bos/33; `attributes` go into the metadata of the schema.
    """
    import pyarrow
    import pyarrow.parquet

    width = width_of(records, dataset)
    vector = pyarrow.list_(pyarrow.float32(), width)
    kinds = {"index": pyarrow.int64(), "id": pyarrow.string(), "length": pyarrow.int64()}
    kinds[dataset.partition("/")[0]] = vector
    about = {METADATA_KEY: json.dumps({**attributes}, ensure_ascii=False)}
    schema = pyarrow.schema([*kinds.items()], metadata=about)
    with pyarrow.parquet.ParquetWriter(target, schema) as writer:
        for block in records.blocks(ROWS_AT_ONCE):
            numbers = pyarrow.array(np.ascontiguousarray(block.values(dataset)).ravel())
            columns = [
                pyarrow.array(block.index),
                pyarrow.array(block.ids, pyarrow.string()),
                pyarrow.array(block.lengths.astype(np.int64)),
                pyarrow.FixedSizeListArray.from_arrays(numbers, type=vector),
            ]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
