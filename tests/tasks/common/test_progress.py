"""A bar on a terminal, lines elsewhere: at once, then from time to time, and none after the end."""

import io
import re
import sys
import threading
import time
import tracemalloc

import pytest

from esm_pipeline.model.checkpoints.hub_client import download_bars
from esm_pipeline.tasks.common import progress as module
from esm_pipeline.tasks.common.progress import (
    SILENT,
    Amounts,
    ProgressState,
    Speaker,
    downloads_shown,
    duration,
    format_amount,
    progress,
    size_text,
    step,
    waiting,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


RESIDUES = Amounts(3, "sequences", work=3000.0, rated=3000, rate="residues")


def run(monkeypatch, stream, **options):
    """Three sequences of a thousand residues, standard error being `stream`; what was written."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("embed", RESIDUES, **options) as advance:
        for _ in range(3):
            advance(1, work=1000.0, rated=1000)
    return stream.getvalue()


def test_a_bar_on_a_terminal(monkeypatch):
    text = run(monkeypatch, Terminal())
    assert "embed" in text
    assert "3 of 3 sequences" in text


def test_quiet(monkeypatch):
    assert run(monkeypatch, Terminal(), quiet=True) == ""
    assert run(monkeypatch, io.StringIO(), quiet=True) == ""


def test_a_line_at_once_in_a_log_file(monkeypatch):
    assert run(monkeypatch, io.StringIO()) == "embed: 3 sequences, 3,000 residues\n"


def test_an_error_inside_ends_the_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(ValueError, match="inside"), progress("embed", Amounts(1, "sequences")):
        raise ValueError("inside")
    assert terminal.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


def wait_for(condition):
    """Wait until it holds, a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_lines_come_in_the_middle_of_a_batch_and_none_after_the_end(monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 0.02)
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with progress("embed", RESIDUES) as advance:
        wait_for(lambda: log.getvalue().count("\n") >= 3)  # nothing is done yet
        assert "embed: 0 of 3 sequences (0 % of the work), 0 s so far\n" in log.getvalue()
        advance(1, work=1000.0, rated=1000)
        wait_for(lambda: "1 of 3 sequences (33 % of the work)" in log.getvalue())
    said = log.getvalue()
    assert "progress" not in {thread.name for thread in threading.enumerate()}
    time.sleep(0.1)
    assert log.getvalue() == said


def test_an_error_inside_ends_the_lines(monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(ValueError, match="inside"), progress("embed", RESIDUES):
        raise ValueError("inside")
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_a_closed_log_ends_no_work(monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    log.close()
    Speaker("embed")("loading demo")


def state_after(batches, amounts, now):
    """The state at `now`, with `batches` of (time, items, work, rated); it began at 0."""
    state = ProgressState("embed", amounts, 0.0)
    for when, items, work, rated in batches:
        state.advance(when, items, work, rated)
    return state.line(now)


def test_the_line_of_the_documentation():
    amounts = Amounts(40_000, "sequences", work=100.0, rated=10_000_000, rate="residues")
    line = state_after([(246.0, 1200, 2.963, 199_752)], amounts, 246.0)
    assert line == (
        "embed: 1,200 of 40,000 sequences (2 % of the work), 812 residues/s, 2 h 14 min left"
    )


def test_the_time_left_follows_the_work_and_not_the_number():
    """Long sequences come first: one of ten is half of the work."""
    amounts = Amounts(10, "sequences", work=18.0)
    line = state_after([(60.0, 1, 9.0, 1)], amounts, 60.0)
    assert "1 of 10 sequences (50 % of the work)" in line
    assert line.endswith(", 1 min left")
    by_number = state_after([(60.0, 1, None, None)], Amounts(10, "sequences"), 60.0)
    assert by_number.endswith("1 of 10 sequences (10 %), 0.017 sequences/s, 9 min left")


def test_sorted_sequences_end_when_it_was_said():
    """A simulated run, the longest first, whose batches take what the cost says."""
    lengths = list(range(1000, 10, -10))
    cost = [length * (7680 + length) / 1e6 for length in lengths]  # seconds
    amounts = Amounts(
        len(lengths), "sequences", work=sum(cost), rated=sum(lengths), rate="residues"
    )
    state, now = ProgressState("embed", amounts, 0.0), 0.0
    by_count = []
    for length, seconds in zip(lengths, cost, strict=True):
        now += seconds
        state.advance(now, 1, seconds, length)
        left = sum(cost) - now
        if now > 20 and left > 1:
            assert state.seconds_left(now) == pytest.approx(left, rel=1e-6)
            by_count.append(now / state.items * (len(lengths) - state.items) / left)
    assert max(by_count) > 1.5, "which the number of sequences would not have shown"


def test_a_slower_machine_is_noticed():
    """The speed is that of the last minutes, not of all the time."""
    state, now = ProgressState("embed", Amounts(10_000, "sequences"), 0.0), 0.0
    for _ in range(1000):
        now += 1.0
        state.advance(now, 1, None, None)
    for _ in range(100):
        now += 10.0
        state.advance(now, 1, None, None)
    assert state.seconds_left(now) == pytest.approx(10.0 * (10_000 - 1100), rel=0.02)


def test_many_short_batches_take_no_memory():
    state = ProgressState("verify", Amounts(10**6, "files"), 0.0)
    tracemalloc.start()
    try:
        for number in range(100_000):
            state.advance(number / 1000, 1, None, None)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
    assert state.seconds_left(100.0) == pytest.approx(900, rel=0.01)


def test_the_batch_that_runs_counts_as_long_as_batches_take():
    state = ProgressState("fold", Amounts(4, "sequences"), 0.0)
    state.advance(100.0, 1, None, None)
    state.advance(200.0, 1, None, None)
    assert state.seconds_left(200.0) == 200
    assert state.seconds_left(250.0) == 150
    assert state.seconds_left(900.0) == 100, "it takes longer than usual, how long is not known"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.2, "0 s"), (45, "45 s"), (59.4, "59 s"), (59.6, "1 min"), (3570, "1 h 0 min")),
        *((8040, "2 h 14 min"), (172_800 + 4 * 3600, "2 d 4 h")),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((999, "999 bytes"), (1000, "1.0 kB"), (7_654_321, "7.7 MB"), (2_609_000_000, "2.6 GB")),
        *((123_000_000_000, "123 GB"), (5e12, "5.0 TB"), (5e15, "5,000 TB")),
    ],
)
def test_size(count, text):
    assert size_text(count) == text


def test_one_is_no_plural():
    units = [format_amount(1, unit) for unit in ("sequences", "forward passes", "structures")]
    assert units == ["1 sequence", "1 forward pass", "1 structure"]
    assert format_amount(1200, "forward passes") == "1,200 forward passes"


def test_a_short_step_says_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with step("shard: reading a.fasta", Amounts(100, "bytes")) as advance:
        advance(100)
    with waiting("report: drawing"), step("shard: reading standard input", Amounts(0, "bytes")):
        pass
    assert log.getvalue() == ""


def test_a_long_step_says_how_much_is_read(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with step("shard: reading a.fasta", Amounts(4_000_000, "bytes")) as advance:
        advance(1_000_000)
        pattern = r"shard: reading a.fasta: 1.0 MB of 4.0 MB \(25 %\), \S+ \S+/s, \S+ \S+ left"
        wait_for(lambda: re.match(pattern, log.getvalue()))
    with waiting("report: drawing", first=0.01):
        wait_for(lambda: log.getvalue().endswith("report: drawing …\n"))
    said = log.getvalue()
    with waiting("report: drawing", quiet=True, first=0.0):
        time.sleep(0.05)
    assert log.getvalue() == said


BAR = "huggingface_hub.snapshot_download"
"""What the library calls the bar of the bytes that are written."""


def test_downloads_are_reported_in_lines(monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with downloads_shown(Speaker("embed"), "lab/model"):
        kind = download_bars()
        received = kind(total=0, unit="B", name=f"{BAR}.transfer")
        files, written = kind(total=3, name=BAR), kind(total=0, unit="B", name=BAR)
        files.update(1)
        received.update(99)
        written.total = 26_000_000
        written.update(13_000_000)
        wait_for(lambda: log.getvalue().count("\n") >= 2)
        assert log.getvalue().startswith("embed: downloading lab/model: 26.0 MB\n")
        half = "embed: downloading lab/model: 13.0 MB of 26.0 MB (50 %), "
        assert log.getvalue().splitlines()[1].startswith(half)
        written.update(13_000_000)
        time.sleep(0.05)
        said = log.getvalue()
        time.sleep(0.05)
    assert log.getvalue() == said, "nothing more once all is there"


def test_small_downloads_and_quiet_ones_are_not(monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    for say, total in ((Speaker("embed"), 1000), (SILENT, 26_000_000)):
        with downloads_shown(say, "lab/model"):
            bar = download_bars()(total=total, unit="B", name=BAR)
            bar.update(total)
    assert log.getvalue() == ""
    assert download_bars()(total=1, unit="B", name=BAR).update(1) is None, "nobody is told"
