"""`structures.parquet`: the names, scale and filters of the ESM Metagenomic Atlas."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest
from Bio.SeqUtils.CheckSum import crc64 as biopython_crc64
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.formats import atlas_table
from esm_pipeline.formats.atlas_table import write_atlas_table
from esm_pipeline.formats.records import format_row
from esm_pipeline.formats.sequence_checksums import crc64
from esm_pipeline.formats.structure_files import STRUCTURE_COLUMNS

OF_ATLAS = ["id", "ptm", "plddt", "num_conf", "len", "sequenceChecksum"]
"""Columns of the Atlas that describe a structure, in its order."""

OK = {
    **{"status": "ok", "chains": "1", "num_recycles": "3", "file": "structures/00000/0_a.pdb"},
    **{"length": "60", "num_conf": "52", "crc64": "0123456789ABCDEF", "flags": "clashes;long"},
}
ROWS = [
    {**OK, "index": "0", "id": "a", "plddt": "87.53", "ptm": "0.8111"},
    {**OK, "index": "1", "id": 'NA "b"', "plddt": "70.00", "ptm": "0.9000", "iptm": "0.5000"},
    {"index": "2", "id": "c", "status": "skipped", "reason": "too long", "length": "1500"},
    {**OK, "index": "3", "id": "d", "plddt": "70.01", "ptm": "0.7000", "chunk_size": "64"},
    {**OK, "index": "4", "id": "", "plddt": "99.00", "ptm": "0.7001", "flags": ""},
]


def write(folder: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    lines = [[row.get(name, "") for name in STRUCTURE_COLUMNS] for row in rows]
    text = "".join(map(format_row, [STRUCTURE_COLUMNS, *lines]))
    (folder / "structures.tsv").write_text(text)
    write_atlas_table(folder / "structures.tsv", folder / "structures.parquet")
    return folder / "structures.parquet"


def test_every_record_with_the_columns_and_the_scale_of_the_atlas(tmp_path):
    table = pd.read_parquet(write(tmp_path))
    assert list(table.columns[: len(OF_ATLAS)]) == OF_ATLAS
    renamed = {"len": "length", "sequenceChecksum": "crc64"}
    assert {renamed.get(name, name) for name in table} == {*STRUCTURE_COLUMNS}
    assert table["index"].tolist() == [0, 1, 2, 3, 4]
    assert table["id"].tolist() == ["a", 'NA "b"', "c", "d", ""]
    assert table.plddt.dropna().tolist() == [0.8753, 0.7, 0.7001, 0.99]
    assert table.iloc[0][["num_conf", "len", "sequenceChecksum"]].tolist() == [
        *(52, 60, "0123456789ABCDEF")
    ]


def test_the_filters_of_the_atlas(tmp_path):
    """The line of the documentation, and what the Atlas says of records without a structure."""
    path = write(tmp_path)
    table = pd.read_parquet(path)
    assert table[(table.plddt > 0.7) & (table.ptm > 0.7)]["id"].tolist() == ["a", ""]
    assert table[~table.plddt.isna()]["index"].tolist() == [0, 1, 3, 4]
    assert table[table.plddt.isna()]["len"].tolist() == [1500]
    filters = [("plddt", ">", 0.7), ("ptm", ">", 0.7)]
    assert pyarrow.parquet.read_table(path, filters=filters)["index"].to_pylist() == [0, 4]


def test_what_is_missing_is_null_and_what_is_empty_is_a_text(tmp_path):
    table = pyarrow.parquet.read_table(write(tmp_path)).to_pylist()
    skipped = {name for name, value in table[2].items() if value is None}
    assert skipped == {
        *("ptm", "plddt", "num_conf", "sequenceChecksum", "chains", "iptm", "num_recycles"),
        *("chunk_size", "file"),
    }
    assert (table[2]["flags"], table[2]["reason"], table[4]["id"]) == ("", "too long", "")
    assert [row["chunk_size"] for row in table] == [None, None, None, 64, None]


def test_it_is_written_in_blocks_of_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(atlas_table, "ROWS_AT_ONCE", 2)
    path = write(tmp_path)
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 3
    before = path.read_bytes()
    assert write(tmp_path).read_bytes() == before


def test_no_records_are_a_table(tmp_path):
    assert list(pd.read_parquet(write(tmp_path, []))) == atlas_table.SCHEMA.names


def test_a_cell_that_is_no_number_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"structures\.tsv: not a structures\.tsv .*; check"):
        write(tmp_path, [{**ROWS[0], "plddt": "high"}])


@given(st.text("ACDEFGHIKLMNPQRSTVWYXUBZO:", max_size=80))
def test_the_checksum_is_that_of_uniprot(sequence):
    assert f"CRC-{crc64(sequence)}" == biopython_crc64(sequence)


def test_a_checksum_of_uniprot():
    """P01308, human insulin: 110 AA; 11981 MW; C2C3B23B85E520E5 CRC64."""
    sequence = (
        "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGGGPGAGSLQPLALEGSLQ"
        "KRGIVEQCCTSICSLYQLENYCN"
    )
    assert crc64(sequence) == "C2C3B23B85E520E5"
