"""A bar on a terminal, silence elsewhere."""

import io
import sys

import pytest

from esm_pipeline.tasks.common.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(monkeypatch, stream, **options):
    """Three thousand residues, standard error being `stream`; returns what was written to it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("embed", 3000, "residues", **options) as advance:
        for _ in range(3):
            advance(1000)
    return stream.getvalue()


def test_a_bar_on_a_terminal(monkeypatch):
    text = run(monkeypatch, Terminal())
    assert "embed" in text
    assert "3,000 of 3,000 residues" in text


def test_quiet_on_a_terminal(monkeypatch):
    assert run(monkeypatch, Terminal(), quiet=True) == ""


def test_silence_in_a_log_file(monkeypatch):
    assert run(monkeypatch, io.StringIO()) == ""


def test_an_error_inside_ends_the_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(ValueError, match="inside"), progress("embed", 1, "residues"):
        raise ValueError("inside")
    assert terminal.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"
