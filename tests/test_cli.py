"""The command line: exit codes, errors on one line, flags that follow from the settings."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from esm_pipeline import cli, flags
from esm_pipeline.errors import InputError
from esm_pipeline.formats.records import write_records
from esm_pipeline.settings.sections import EmbedSettings
from esm_pipeline.tasks import COMMANDS
from esm_pipeline.tasks.run import shard, verdict

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def ending(monkeypatch, tmp_path):
    """A function that runs a task which ends with the error given to it."""

    def run(error):
        def fail(args):
            raise error

        monkeypatch.setattr(verdict, "run", fail)
        return cli.main(["verdict", "--out", str(tmp_path / "out"), "records.tsv"])

    return run


def test_errors_of_the_input_are_reported_a_line_each(ending, capsys):
    assert ending(InputError("a: wrong\nb: wrong too")) == 2
    assert capsys.readouterr().err.splitlines() == [
        "esm-pipeline verdict: a: wrong",
        "esm-pipeline verdict: b: wrong too",
    ]


def test_a_terminal_gets_nothing_to_obey(ending, capsys):
    assert ending(InputError("é\x1b[2J\x85\u202e\udcff.fasta: wrong")) == 2
    told = r"é\x1b[2J\x85\u202e\udcff.fasta: wrong"
    assert capsys.readouterr().err == f"esm-pipeline verdict: {told}\n"
    with pytest.raises(SystemExit):
        cli.main(["verdict", "a", "--out=x", "--b\n\x1bc"])
    assert r"unrecognized arguments: --b\n\x1bc (see" in capsys.readouterr().err


def test_a_full_disk_is_reported_with_its_place(ending, capsys):
    assert ending(OSError(errno.ENOSPC, "no space", "/data/out.h5")) == 2
    assert "/data/out.h5: no space left on the disk; free some" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ENOENT, errno.EISDIR, errno.ELOOP])
def test_a_path_that_cannot_be_used_is_reported(ending, capsys, number):
    assert ending(OSError(number, os.strerror(number), "/data/out")) == 2
    told = f"esm-pipeline verdict: /data/out: {os.strerror(number)}; choose another place\n"
    assert capsys.readouterr().err == told
    assert ending(OSError(number, os.strerror(number), ".out.x", None, "/data/out")) == 2
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("x" * 300, "File name too long; choose another place"),
        ("/dev/null", "/dev/null: not a regular file"),
        ("/dev/null/out", "/dev/null: "),
        ("/proc/none/out", "/proc/none: No such file or directory; choose another place"),
    ],
)
def test_an_output_that_cannot_be_is_one_line(tmp_path, capsys, place, told):
    records = tmp_path / "records.tsv"
    write_records(records, [], ["embed"])
    assert cli.main(["verdict", "--out", place, str(records)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_an_interrupt_exits_as_shells_expect(ending):
    assert ending(KeyboardInterrupt()) == 130


@pytest.mark.parametrize("bug", [KeyError("x"), OSError(errno.EBADF, "bad"), ZeroDivisionError()])
def test_a_bug_keeps_its_traceback(ending, bug):
    with pytest.raises(type(bug)):
        ending(bug)


def test_failures_set_the_exit_code():
    assert [flags.exit_code(n, how) for n in (0, 3) for how in ("error", "keep")] == [0, 0, 1, 0]


def run(*arguments):
    command = [sys.executable, "-m", "esm_pipeline", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_help_names_every_task():
    told = run("--help").stdout
    for name, command in COMMANDS.items():
        assert f"\n  {name} " in told
        assert command.help.split(",")[0] in " ".join(told.split())


def test_unknown_task_and_flag_take_one_line():
    for arguments, told in ((["emb"], "did you mean embed?"), (["verdict", "--x"], "required")):
        result = run(*arguments)
        assert result.returncode == 2
        assert told in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_flags_follow_from_the_settings():
    parser = cli.Parser(prog="x")
    flags.add_flags(parser, EmbedSettings)
    args = parser.parse_args(["--layers=-1, 3", "--token-budget", "77"])
    section = flags.section_from(EmbedSettings, args)
    assert section == EmbedSettings(layers=[-1, 3], token_budget=77)
    text = parser.format_help()
    for name, field in EmbedSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert " ".join((field.description or "").split()) in " ".join(text.split())


def test_a_bad_value_names_the_command_line():
    args = argparse.Namespace(**dict.fromkeys(EmbedSettings.model_fields))
    args.include = "mean,colour"
    with pytest.raises(InputError, match=r"command line: --include = 'colour'"):
        flags.section_from(EmbedSettings, args)


def test_a_value_that_begins_with_a_dash_and_a_flag_cut_short(capsys):
    for arguments, told in (
        (["--layers", "-1,0"], "where a value begins with '-', write --flag=VALUE"),
        (["--mod", "demo"], "unrecognized arguments: --mod; did you mean --model?"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["embed", *arguments, "in.fasta", "out.h5"])
        assert told in capsys.readouterr().err


def array_memory_error():
    """NumPy's own kind of MemoryError."""
    with pytest.raises(MemoryError) as error:
        np.empty(2**62, np.uint8)
    return error.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        array_memory_error(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=["Python", "NumPy", "a GPU", "PyTorch", "the system"],
)
def test_memory_that_runs_out_is_one_line(error, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(shard, "open_sequences", fail)
    (tmp_path / "in.fasta").write_text(">a\nMK\n")
    code = cli.main(["shard", "--bundles=1", f"--out={tmp_path}", str(tmp_path / "in.fasta")])
    assert (code, capsys.readouterr().err) == (
        2,
        "esm-pipeline shard: out of memory; use a machine with more, or request more for the job\n",
    )


def test_another_runtime_error_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "open_sequences", lambda *_, **__: exec("raise RuntimeError('bug')"))
    (tmp_path / "in.fasta").write_text(">a\nMK\n")
    with pytest.raises(RuntimeError, match="bug"):
        cli.main(["shard", "--bundles=1", f"--out={tmp_path}", str(tmp_path / "in.fasta")])
