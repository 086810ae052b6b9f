"""Where `structures` writes: never over what it reads, the same with -O, an index of nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from esm_pipeline import cli
from esm_pipeline.formats.records import Record, write_records
from esm_pipeline.formats.results.layout import RecordRow
from tests.folded import made_up, write_arrays


@pytest.fixture
def inputs(tmp_path):
    """A record with a structure, one without."""
    write_arrays(tmp_path / "in.h5", [made_up("MKV")], [RecordRow("a", 0, 0)])
    found = Record(0, "a", "", 3, "", "ok").with_outcome("fold", "ok")
    other = Record(1, "b", "", 9, "", "ok").with_outcome("fold", "skipped", "why")
    write_records(tmp_path / "records.tsv", [found, other], ["fold"])
    return tmp_path


@pytest.fixture
def write(inputs, esm):
    """Write files into `out`; gives the folder."""

    def run(*flags):
        given = ("--quiet", f"--records={inputs / 'records.tsv'}", *flags)
        assert esm("structures", *given, inputs / "in.h5", inputs / "out") == (0, [])
        return inputs / "out"

    return run


def test_nothing_depends_on_assertions(inputs):
    given = [f"--records={inputs / 'records.tsv'}", inputs / "in.h5", inputs / "out"]
    command = [sys.executable, "-O", "-m", "esm_pipeline", "structures", *map(str, given)]
    subprocess.run(command, check=True, capture_output=True)
    assert len((inputs / "out/structures.tsv").read_text().splitlines()) == 3
    assert len((inputs / "out/structures.sha256").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["structures.tsv", "flags.tsv", "structures.sha256"])
@pytest.mark.parametrize("what", ["--records", "--status", "arrays"])
def test_what_it_reads_is_never_replaced(write, inputs, esm, name, what):
    out = write()
    taken = out / name
    arrays, given = inputs / "in.h5", [f"--records={inputs / 'records.tsv'}"]
    if what == "arrays":
        arrays = arrays.rename(taken)
    else:
        (inputs / "records.tsv").rename(taken)
        given.append(f"{what}={taken}")
    before = taken.read_bytes()
    code, said = esm("structures", *given, arrays, out)
    assert (code, len(said)) == (2, 1)
    assert f"{taken}: is given for two files" in said[0]
    assert taken.read_bytes() == before


@pytest.mark.parametrize("command", ["structures", "verify"])
def test_fewer_threads_than_none_are_one_line(capsys, command):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--threads", "-3", "x", "y"])
    said = capsys.readouterr().err.splitlines()
    assert (ended.value.code, len(said)) == (2, 1)
    assert "argument --threads: '-3' is not a number from 0 to 1,024" in said[0]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], ["pae", "structures"]),
        (["--pae=none"], ["structures"]),
        (["--formats=foldcomp"], ["pae"]),
        (["--archive=false"], []),
    ],
)
def test_no_structures_have_an_index_without_rows(inputs, write, flags, wanted):
    write_arrays(inputs / "in.h5", [], [])
    write_records(inputs / "records.tsv", [], ["fold"])
    out = write("--archive=true", *flags)
    found = sorted(str(path.relative_to(out)) for path in out.rglob("index.tsv"))
    assert found == [f"{name}/index.tsv" for name in wanted]
    listed = (out / "structures.sha256").read_text()
    for name in found:
        data = (out / name).read_bytes()
        assert data == b"index\tid\tfile\tarchive\toffset\tsize\n"
        assert f"{hashlib.sha256(data).hexdigest()}  {name}\n" in listed


@pytest.mark.parametrize("flag", ["--pae=none", "--pae="])
def test_no_aligned_errors(write, flag):
    write()
    out = write(flag)
    assert not (out / "pae").exists()
