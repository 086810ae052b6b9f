"""Hostile names: no path, sample, model or revision is interpreted as anything else."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from esm_pipeline.errors import IN_WORKFLOW
from tests.workflow.tools import EMBED, RECORDS, ROOT, SAMPLE, snakemake, write_fasta

HOSTILE = [
    *("a b", "it's", 'a"b', "$(touch pwned)", "`touch pwned`", ";touch pwned;", "&touch pwned&"),
    *(
        "|touch pwned",
        ">pwned"[1:],
        "a*b",
        "?",
        "[a]",
        "!x",
        "#x",
        "a#b",
        "%d",
        "~",
        "~root",
        "$HOME",
    ),
    *("-x", "--help", "--", "-", "=", "a=b", "a:b", "a,b", "(a)", "^a$", "\\", "a\\nb", "'", '"'),
    *(
        "é",
        "😀",
        "\u202egnp",
        "a\u00a0b",
        "NA",
        "null",
        "0",
        "on",
        "@x",
        "+",
        ".x",
        "..x",
        "x" * 90,
    ),
]
"""Names of files or folders: shell, patterns, options, YAML, not ASCII."""

OTHERS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"], exclude_characters="/{}<>"),
    min_size=1,
    max_size=40,
).filter(lambda name: name.strip() == name and name.strip(".") and name not in HOSTILE)
DENSE = (st.sampled_from(HOSTILE) | OTHERS).map(lambda name: f"{name} '$(touch pwned)\";*#&")
RECORDER = """
command_not_found_handle() {
    while read -r; do :; done
    printf '%s\\0' "$@" >&3
    printf '\\1\\0' >&3
}
set -euo pipefail
cd "$1"
shift
for command in "$@"; do eval "$command"; done
"""
"""Runs commands without programs: each prints its name and arguments instead."""

MODEL = "-m $(touch pwned) [b] 'i' *"


def write_config(folder: Path, **settings: object) -> None:
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text(json.dumps(settings))


def write_table(path: Path, samples: dict[str, list[str]]) -> str:
    with open(path, "w", encoding="utf-8", newline="") as handle:
        rows = csv.writer(handle, "excel-tab")
        rows.writerow(["sample", "fasta"])
        rows.writerows((sample, file) for sample, files in samples.items() for file in files)
    return path.name


def commands(said: str) -> list[str]:
    """Shell commands that Snakemake prints, with a word in place of the interpreter."""
    variables = f"PYTHONPATH={shlex.quote(str(ROOT))} {IN_WORKFLOW}=1"
    start = f"{variables} {shlex.quote(sys.executable)} -P -m"
    lines = re.findall(r"^ *Shell command: (?!None$)(.*)$", said, re.MULTILINE)
    assert sum(line.startswith(start) for line in lines) > 8
    return [line.replace(start, "python", 1) for line in lines]


def programs(lines: list[str], decoys: list[str]) -> list[list[str]]:
    """Name and arguments of each program, as bash passes them where patterns would match files."""
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as output:
        for name in decoys:
            (Path(place) / name).touch()
        before = sorted(os.listdir(place))
        subprocess.run(
            ["/bin/bash", "-c", f"exec 3>&{output.fileno()}\n{RECORDER}", "bash", place, *lines],
            pass_fds=[output.fileno()],
            env={"PATH": "/nowhere", "HOME": "/home/wrong"},
            stdin=subprocess.DEVNULL,
            check=True,
        )
        assert sorted(os.listdir(place)) == before
        output.seek(0)
        records = output.read().decode().split("\1\0")[:-1]
    return sorted(record.split("\0")[:-1] for record in records)


def dry_run(files: list[str], outdir: str, model: str, revision: str) -> list[list[str]]:
    """The programs that the workflow would start for two samples of these files."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in files:
            (folder / name).write_text(">a\nMKV\n")
        table = write_table(folder / "-t able", {"a.-_1": files[::2], "B": files[1::2]})
        chosen = {"samples": table, "outdir": outdir, "model": model, "revision": revision}
        write_config(folder, **chosen, shards=1)
        run = snakemake(folder, "-n", "--printshellcmds", "--cores", "1")
        assert run.code == 0, run.said
        assert sorted(os.listdir(folder)) == sorted({*files, table, ".snakemake", "config"})
    return programs(commands(run.said), files)


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A word with plain names replaced; in settings, which are JSON, in each of their texts."""
    if isinstance(value, dict):
        return {key: renamed(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [renamed(inner, names) for inner in value]
    if isinstance(value, str) and value.startswith("--settings="):
        return json.dumps(renamed(json.loads(value.removeprefix("--settings=")), names))
    for plain, name in names.items() if isinstance(value, str) else ():
        value = value.replace(plain, name)
    return value


MORE = 10  # files with names that are drawn


@cache
def plain_run() -> tuple[list[str], list[list[str]]]:
    """Plain names for everything, and the programs that the workflow starts with them."""
    files = [f"Q{number:03d}Q" for number in range(len(HOSTILE) + MORE)]
    words = dry_run(files, "QoutQ", "QmodelQ", "QrevisionQ")
    assert len(words) > 20
    return [*files, "QoutQ", "QmodelQ", "QrevisionQ"], words


@settings(max_examples=3, phases=[Phase.generate])  # an example takes seconds
@given(
    st.lists(OTHERS, min_size=MORE, max_size=MORE, unique=True),
    st.lists(DENSE, min_size=1, max_size=3).map("/".join),
    DENSE,
    DENSE,
)
def test_every_program_gets_the_intended_words(more, outdir, model, revision):
    """The same words as with plain names, except the names: hostile ones, and random ones."""
    files = [*HOSTILE, *more]
    plain, words = plain_run()
    names = dict(zip(plain, [*files, outdir, model, revision], strict=True))
    expected = sorted([renamed(word, names) for word in program] for program in words)
    found = dry_run(files, outdir, model, revision)
    assert [[renamed(word, {}) for word in program] for program in found] == expected


def test_no_name_can_be_taken_for_an_option():
    """A word that begins with a name comes after `--`."""
    plain, words = plain_run()
    seen = 0
    for program in words:
        for place, word in enumerate(program):
            if word.startswith(tuple(plain)):
                assert "--" in program[:place], program
                seen += 1
    assert seen > len(plain)


def test_unquoted_words_would_be_noticed():
    """The twin: bash splits, expands or runs what is not quoted."""
    for name in ("a b", "a*", "$HOME", "a;say b", "`say b`", "~", "#x", "a\\b", "a|say b"):
        found = []
        with contextlib.suppress(subprocess.CalledProcessError):
            found = programs([f"say {name}"], ["a1", "a2"])
        assert found != [["say", name]], name
        assert programs([f"say {shlex.quote(name)}"], ["a1", "a2"]) == [["say", name]]


def test_a_whole_run_on_hostile_names(whole_run, model, tmp_path):
    """The records of the shared run, one in each file; the output folder is a link."""
    here, there = tmp_path / "it's $(touch pwned)", tmp_path / "the re"
    here.mkdir()
    there.mkdir()
    (here / "li nk;").symlink_to(there)
    outdir = "../it's $(touch pwned)//li nk;/-o $(touch pwned)&*#%'\"!é/"
    shutil.copytree(model, here / MODEL)
    names = ["-x.fasta", "--help", "$(touch pwned)", "a;touch pwned;.fa", "`touch pwned`", "&"]
    names += ["*", 'it\'s "a" #1 %s', "é 😀 \u202egnp.fasta", "a\\nb|touch pwned"]
    for name, (header, sequence) in zip(names, RECORDS.items(), strict=True):
        write_fasta(here / name, {header: sequence})
    table = write_table(here / "-t $(touch pwned).tsv", {SAMPLE: names})
    chosen = {
        "samples": table,
        "outdir": outdir,
        "shards": 2,
        "shard": {"least": 1},
        "model": MODEL,
    }
    write_config(here, **chosen, embed=yaml.safe_load(f"{{{EMBED}}}"))
    before = set(tmp_path.rglob("*"))
    run = snakemake(here, "--cores", "2")
    assert run.code == 0, run.said
    made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    results = there / "-o $(touch pwned)&*#%'\"!é"
    outside = {path for path in made if not path.is_relative_to(results)}
    assert all(path.is_relative_to(here / ".snakemake") for path in outside)
    expected = {path.relative_to(whole_run.results) for path in whole_run.results.rglob("*")}
    assert {path.relative_to(results) for path in results.rglob("*")} == expected
    ours, theirs = results / SAMPLE, whole_run.results / SAMPLE
    assert (ours / "records.tsv").read_bytes() == (theirs / "records.tsv").read_bytes()
    with h5py.File(ours / "embeddings.h5") as one, h5py.File(theirs / "embeddings.h5") as other:
        for dataset in ("id", "row", "mean/2", "residue/2", "contacts"):
            assert one[dataset][...].tolist() == other[dataset][...].tolist()
    sample = json.loads((results / "provenance.json").read_text())["samples"][SAMPLE]
    assert [file["path"] for file in sample["fasta"]] == names
