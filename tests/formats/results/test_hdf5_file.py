"""A disk that fills up while HDF5 lays a file out: an OSError, and HDF5 notices nothing."""

import errno
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from esm_pipeline.formats.results import hdf5_file as disk
from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.writer import RaggedWriter

ARRAYS = [Array("mean/3", "sequence", (4,), "<f4")]


def entries(count):
    return (RecordRow(f"a name of some length {place}", place, place) for place in range(count))


def lay_out(path, count, named=None):
    """A file of `count` rows with nothing written."""
    named = entries(count) if named is None else named
    with RaggedWriter(path, ARRAYS, np.full(count, 2), count, named, {"format": "f"}):
        pass


@pytest.fixture
def full_after(monkeypatch):
    """Lets so many writes succeed; gives the list of all that were tried."""

    def install(writes):
        whole, tried = disk.write_at, []

        def write_at(file, place, data):
            tried.append(len(data))
            if len(tried) > writes:
                raise OSError(errno.ENOSPC, "No space left on device")
            whole(file, place, data)

        monkeypatch.setattr(disk, "write_at", write_at)
        return tried

    return install


@pytest.mark.parametrize("count", [0, 3, 200])
def test_a_disk_that_fills_at_any_write(tmp_path, full_after, monkeypatch, count):
    tried = full_after(10**9)
    lay_out(tmp_path / "a.h5", count)
    writes = len(tried)
    assert writes > 5
    expected = (tmp_path / "a.h5").read_bytes()
    for enough in range(writes):
        monkeypatch.undo()
        full_after(enough)
        with pytest.raises(OSError, match="No space left") as error:
            lay_out(tmp_path / "a.h5", count)
        assert error.value.errno == errno.ENOSPC
        del error
    monkeypatch.undo()
    lay_out(tmp_path / "a.h5", count)
    assert (tmp_path / "a.h5").read_bytes() == expected


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="no reservations here")
def test_a_disk_too_small_for_what_is_reserved_leaves_no_file_open(tmp_path, monkeypatch):
    def full(file, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    free = os.dup(0)
    os.close(free)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        lay_out(tmp_path / "a.h5", 3)
    again = os.dup(0)
    os.close(again)
    assert again == free


def test_what_hdf5_reads_again_is_what_it_wrote(tmp_path, full_after):
    tried = full_after(0)
    with disk.ForgivingFile(tmp_path / "a") as file:
        for place, data in ((0, b"abcdef"), (3, b"XY"), (10, b"z")):
            file.seek(place)
            file.write(data)
        for place, wanted in ((0, b"abcXYf\0\0"), (4, b"Yf\0\0\0\0z\0"), (20, bytes(8))):
            file.seek(place)
            found = bytearray(8)
            assert (file.readinto(found), bytes(found)) == (8, wanted)
    assert len(tried) == 1


def test_an_impossible_size_is_reported_at_the_end(tmp_path):
    with disk.ForgivingFile(tmp_path / "a") as file:
        file.truncate(-1)
        with pytest.raises(OSError, match="Invalid argument"):
            file.check()


def test_a_full_disk_is_noticed_long_before_the_last_name(tmp_path, full_after):
    """So many names that HDF5 writes some, and reads them again, before it has all."""
    full_after(20)
    named = entries(100_000)
    with pytest.raises(OSError, match="No space left"):
        lay_out(tmp_path / "a.h5", 100_000, named)
    assert next(named).index < 50_000


TERMINATED = """
import os, signal, sys
import numpy as np
from esm_pipeline.formats.results import hdf5_file as disk
from esm_pipeline.formats.results.layout import Array
from esm_pipeline.formats.results.writer import RaggedWriter
class Terminated(disk.ForgivingFile):
    written = 0
    def write(self, data):
        Terminated.written += 1
        if Terminated.written == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):
                pass
        return super().write(data)
disk.ForgivingFile = Terminated
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
RaggedWriter(sys.argv[1], [Array("mean/3", "sequence", (4,), "<f4")], np.zeros(0), 0, [], {})
"""


@pytest.mark.parametrize("write", [1, 4, 8])
def test_a_signal_waits_until_hdf5_is_done(tmp_path, write):
    command = [sys.executable, "-c", TERMINATED, tmp_path / "a.h5", str(write)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (143, "")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["mean/3"].shape == (0, 4)
