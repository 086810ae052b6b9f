"""Hostile names: no path, sample, model or revision is taken for anything but itself."""

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
from pathlib import Path

import h5py
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from esm_pipeline.settings import CleaningSettings, EmbedSettings, flags
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
"""Names of files or folders: shell, patterns, options, YAML, no ASCII."""

NAMES = st.sampled_from(HOSTILE) | st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Zl", "Zp"], exclude_characters="/{}<>"),
    min_size=1,
    max_size=40,
).filter(lambda name: name.strip() == name and name.strip(".") and len(name.encode()) < 120)
SAMPLES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
RECORDER = """
cd "$1"; shift
record() { printf '%s\\0' "$@" >&3; printf '\\1\\0' >&3; }
tee() { cat > /dev/null; record tee "$@"; }
set -euo pipefail
for command in "$@"; do eval "$command"; done
"""
"""Runs commands with `record` and `tee` in the place of programs: they tell their arguments."""


MODEL = "-m $(touch pwned) {b} <i> *"


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
    """Shell commands that Snakemake prints, with `record` in the place of the interpreter."""
    start = f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} -P -m esm_pipeline "
    lines = re.findall(r"^ *Shell command: (?!None$)(.*)$", said, re.MULTILINE)
    assert all(line.startswith(start) for line in lines), lines
    return ["record " + line.removeprefix(start) for line in lines]


def words_of(lines: list[str], decoys: list[str]) -> list[list[str]]:
    """The arguments of each program, as bash gives them, in a folder where patterns would match."""
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as told:
        for name in decoys:
            (Path(place) / name).touch()
        before = sorted(os.listdir(place))
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/home/wrong"}
        subprocess.run(
            ["bash", "-c", f"exec 3>&{told.fileno()}\n{RECORDER}", "bash", place, *lines],
            pass_fds=[told.fileno()],
            env=environment,
            check=True,
        )
        assert sorted(os.listdir(place)) == before
        told.seek(0)
        programs = told.read().decode().split("\1\0")
    return [program.split("\0")[:-1] for program in programs if program]


def expected_words(
    out: str, samples: dict[str, list[str]], model: list[str], settings: str
) -> list[list[str]]:
    """What each program of the workflow should be given, one shard a sample."""
    cleaning = shlex.split(flags(CleaningSettings()))
    embed = shlex.split(flags(EmbedSettings()))
    execution = "--device auto --token-budget 16384 --threads 1 --allow-empty --on-failure keep"
    tables = [f"{out}/{sample}/records.tsv" for sample in samples]
    folders = [f"{out}/{sample}" for sample in samples]
    jobs = {
        "provenance": ["provenance", f"--settings={settings}", f"--out={out}/provenance.json"],
        "report": ["report", f"--out={out}/report.html", "--", *folders],
        "verdict": ["verdict", "--on-failure", "error", f"--out={out}/verdict.txt", "--", *tables],
    }
    for sample, files in samples.items():
        own = f"{out}/{sample}"
        shards = f"--out={own}/shards"
        jobs[f"shard/{sample}"] = ["shard", "--shards", "1", *cleaning, shards, "--", *files]
        jobs[f"embed/{sample}/00000"] = [
            *("embed", *model, *embed, *execution.split(), f"--sha256={own}/embed/00000.sha256"),
            *("--", f"{own}/shards/00000.fasta", f"{own}/embed/00000.h5"),
        ]
        jobs[f"gather_embed/{sample}"] = [
            *("aggregate", "embed", f"--records={own}/shards/records.tsv"),
            *(f"--shards-dir={own}/embed", "--shards", "1", f"--out={own}/embeddings.h5"),
            f"--status={own}/embed/status.tsv",
        ]
        jobs[f"records/{sample}"] = [
            *("aggregate", "records", f"--records={own}/shards/records.tsv"),
            *(f"--status=embed={own}/embed/status.tsv", f"--out={own}/records.tsv"),
        ]
    logs = [["tee", "--", f"{out}/logs/{job}.log"] for job in jobs]
    return [*jobs.values(), *logs]


@settings(max_examples=2, phases=[Phase.generate])  # an example takes seconds
@given(
    st.lists(NAMES, min_size=40, max_size=60, unique_by=str.lower),
    st.lists(NAMES, min_size=1, max_size=3),
    st.lists(SAMPLES, min_size=1, max_size=5, unique_by=str.lower),
    NAMES,
    st.none() | NAMES,
)
def test_every_program_is_given_the_words_meant(names, folders, samples, model, revision):
    out = "/".join(folders)
    names = [name for name in names if name.lower() != folders[0].lower()]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in names:
            (folder / name).write_text(">a\nMKV\n")
        files = {sample: names[place :: len(samples)] for place, sample in enumerate(samples)}
        chosen = {"outdir": out, "model": model, "shards": 1}
        chosen |= {"samples": write_table(folder / "table .tsv", files)}
        write_config(folder, **chosen, **({"revision": revision} if revision else {}))
        run = snakemake(folder, "-n", "--printshellcmds", "--cores", "1")
        assert run.code == 0, run.said
        assert sorted(os.listdir(folder)) == sorted({*names, "table .tsv", ".snakemake", "config"})
    lines = commands(run.said)
    words = words_of(lines, names)
    (given,) = (word for program in words for word in program if word.startswith("--settings="))
    assert json.loads(given.removeprefix("--settings=")).items() >= chosen.items()
    flags = [f"--model={model}", *([f"--revision={revision}"] if revision else [])]
    expected = expected_words(out, files, flags, given.removeprefix("--settings="))
    assert sorted(words) == sorted(expected)


def test_words_that_are_not_quoted_would_be_seen():
    """The twin: bash takes apart, replaces or runs what is not quoted."""
    for name in ("a b", "a*", "$HOME", "a;record b", "`record b`", "~", "#x", "a\\b", "a|record b"):
        told = []
        with contextlib.suppress(subprocess.CalledProcessError):
            told = words_of([f"record {name}"], ["a1", "a2"])
        assert told != [["record", name][1:]], name
        assert words_of([f"record {shlex.quote(name)}"], ["a1", "a2"]) == [[name]]


def test_a_whole_run_on_hostile_names(whole_run, model, tmp_path):
    """The records of the shared run in a file each; the output folder is behind a link."""
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
    chosen = {"samples": table, "outdir": outdir, "shards": 2, "model": MODEL}
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
