"""Structures as arrays: what is written is read back, and other files are reported."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats.results.layout import RecordRow
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.formats.results.structures import Structures
from tests.folded import made_up, write_arrays

STRUCTURES = [made_up("MKV", seed=1), made_up("GXA", "W", "UB", seed=2), made_up("ACD", seed=3)]
ENTRIES = [RecordRow("a", 0, 0), RecordRow("b", 3, 1), RecordRow("c", 4, 0), RecordRow("d", 7, 2)]


@pytest.fixture
def path(tmp_path):
    return write_arrays(tmp_path / "a.h5", STRUCTURES, ENTRIES, [0, 3, 2])


def test_what_is_written_comes_back(path):
    with Structures.open(path) as arrays:
        for row, wanted in enumerate(STRUCTURES):
            found = arrays.structure(row)
            for name in ("aatype", "chains", "positions", "plddt", "pae"):
                one, other = getattr(found, name), getattr(wanted, name)
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
            assert found.mean_plddt == pytest.approx(wanted.mean_plddt, rel=1e-6)
            assert found.ptm == pytest.approx(wanted.ptm, rel=1e-6)
            assert found.replaced == wanted.replaced
            assert found.omitted == wanted.omitted
            assert found.sequences == wanted.sequences
            assert (found.chain_iptm is None) == (wanted.chain_iptm is None)
            if wanted.chain_iptm is not None:
                np.testing.assert_array_equal(found.chain_iptm, wanted.chain_iptm)
            assert found.iptm == (wanted.iptm and pytest.approx(wanted.iptm, rel=1e-6))
        assert [arrays.flags(row) for row in range(3)] == [[], ["clashes", "long"], ["long"]]
        assert [arrays.chain_count(row) for row in range(3)] == [1, 3, 1]
        assert arrays.attributes["model"] == "some/model"
        assert arrays.index.tolist() == [0, 3, 4, 7]
    assert STRUCTURES[1].numbers.tolist() == [1, 2, 3, 1, 1, 2]
    assert STRUCTURES[1].sequences == ["GXA", "W", "CB"]


def test_a_complex_of_many_chains_has_no_iptm_of_pairs(tmp_path):
    many = made_up(*["G"] * 17)
    write_arrays(tmp_path / "a.h5", [many], [RecordRow("a", 0, 0)])
    with Structures.open(tmp_path / "a.h5") as arrays:
        found = arrays.structure(0).chain_iptm
    assert found.shape == (17, 17)
    assert np.isnan(found).all()


def test_files_of_earlier_versions_are_read(path):
    with h5py.File(path, "a") as file:
        del file["letter"], file["chain_iptm"]
    with Structures.open(path) as arrays:
        found = arrays.structure(1)
    assert found.sequences == ["GXA", "W", "CX"]
    assert (found.replaced, [*found.omitted]) == ({}, ["X"])
    assert np.isnan(found.chain_iptm).all()


def test_records_by_id_and_by_index(path):
    with open_results(path) as results:
        assert isinstance(results, Structures)
        assert results.ids == ["a", "b", "c", "d"]
        one = results["b"]
        assert (one.index, one.length, one.flags) == (3, 6, ["clashes", "long"])
        np.testing.assert_array_equal(one.structure.positions, STRUCTURES[1].positions)
        np.testing.assert_array_equal(one.pae, STRUCTURES[1].pae / np.float32(8))
        np.testing.assert_array_equal(results[4].structure.aatype, STRUCTURES[0].aatype)
        table = results.to_pandas()
    assert list(table) == ["id", "index", "length", "plddt", "ptm", "iptm", "flags"]
    assert table["flags"].tolist() == ["", "clashes;long", "", "long"]
    assert table["length"].tolist() == [3, 6, 3, 3]
    wanted = [STRUCTURES[row].mean_plddt for row in (0, 1, 0, 2)]
    np.testing.assert_allclose(table["plddt"], wanted, rtol=1e-6)
    assert table["iptm"].isna().tolist() == [True, False, True, True]


def test_another_kind_is_reported(path, tmp_path):
    with h5py.File(path, "a") as file:
        del file["ptm"]
    with pytest.raises(InputError, match=r"a\.h5: 'ptm' is not as a task writes it; give"):
        Structures.open(path)
    with h5py.File(tmp_path / "b.h5", "w"):
        pass
    (tmp_path / "c.h5").write_text("no HDF5")
    for name in ("b.h5", "c.h5", "missing.h5"):
        with pytest.raises(InputError) as error:
            Structures.open(tmp_path / name)
        assert "\n" not in str(error.value)
