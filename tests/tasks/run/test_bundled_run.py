"""The end of a run of several bundles is that of a run of one, and no result is read twice."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from esm_pipeline.cli import main
from esm_pipeline.formats.checksums import sha256, write_digests
from esm_pipeline.formats.input_checksums import states, write_inputs
from esm_pipeline.formats.records import FAILED, OK, Record
from esm_pipeline.formats.results.layout import Array, RecordRow
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.settings.result_names import bundle_names, of_bundles
from esm_pipeline.tasks.common.model_file import write_model_file
from esm_pipeline.tasks.embed import report as report_embeddings
from esm_pipeline.tasks.fold.tables import ATLAS_TABLE, STRUCTURE_TABLES
from esm_pipeline.tasks.run import provenance, tallies
from tests.folded import made_up as made_up_structure
from tests.folded import write_arrays
from tests.tasks.run.bundled import dealt, made_up, write_bundles, write_statuses

TASKS = ("embed", "classify", "fold")
RECORDS = made_up(60, TASKS)
BUNDLES = 3
FACTS = {"model": "tiny", "weights_sha256": "ab" * 32, "dtype": "float32"}


def write_h5(path: Path, task: str, records: list[Record]) -> None:
    """A result with one row for each record that is ok in `task`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [record for record in records if record.outcomes[task].status == OK]
    entries = [RecordRow(record.id, record.index, row) for row, record in enumerate(kept)]
    if task == "fold":
        structures = [made_up_structure("MKV", seed=record.index) for record in kept]
        write_arrays(path, structures, entries)
        return
    name, kind = ("mean/2", "embeddings") if task == "embed" else ("p", "classes")
    lengths = np.array([record.length for record in kept])
    told = {"format": f"esm-pipeline/{kind}", **FACTS, "labels": '["in","out"]'}
    told["problem_type"] = "single_label_classification"
    values = np.array([[record.index, record.index**2 % 7] for record in kept], np.float32)
    with RaggedWriter(
        path, [Array(name, "sequence", (2,), "<f4")], lengths, len(kept), entries, told
    ) as writer:
        writer.write(name, np.arange(len(kept)), values / 3600 if task == "classify" else values)


def run(*arguments: object) -> None:
    assert main([*map(str, arguments)]) == 0


def write_run(folder: Path, bundles: int) -> str:
    """All results of a run, as the commands of the workflow write them; gives its settings."""
    sample, out = folder / "results" / "in", folder / "results"
    write_bundles(sample, RECORDS, bundles)
    (folder / "in.fasta").write_text(">a\nMKV\n")
    fasta = [str(folder / "in.fasta")]
    write_inputs(sample / "inputs.sha256", fasta, [sha256(Path(fasta[0]))], states(fasta))
    for task, name in (("embed", "embeddings"), ("classify", "classes"), ("fold", "structures")):
        statuses = write_statuses(sample, RECORDS, task, bundles)
        results = [sample / one for one in of_bundles(f"{name}.h5", bundles)]
        for number, (bundle, result) in enumerate(zip(bundle_names(bundles), results, strict=True)):
            write_h5(result, task, dealt(RECORDS, number, bundles))
            listed = {
                f"{bundle}.status.tsv": statuses / f"{bundle}.status.tsv",
                str(Path("..") / result.relative_to(sample)): result,
            }
            write_digests(statuses / f"{bundle}.sha256", listed)
    for bundle in bundle_names(bundles):
        apart = bundles > 1
        told = [f"--records={sample / 'bundles' / bundle}.records.tsv"]
        table = sample / "classify" / f"{bundle}.tsv" if apart else sample / "classes.tsv"
        given = sample / "classes" / f"{bundle}.h5" if apart else sample / "classes.h5"
        status = f"--status={sample / 'classify' / bundle}.status.tsv"
        run("classes", *told, status, given, table)
        status = f"--status={sample / 'fold' / bundle}.status.tsv"
        given = sample / "structures" / f"{bundle}.h5" if apart else sample / "structures.h5"
        place = sample / "structures" / bundle if apart else sample
        run("structures", "--quiet", *told, status, given, place)
    if bundles > 1:
        names = bundle_names(bundles)
        parts = [sample / "classify" / f"{bundle}.tsv" for bundle in names]
        run("aggregate", "tables", f"--out={sample / 'classes.tsv'}", *parts)
        for name in STRUCTURE_TABLES:
            parts = [sample / "structures" / bundle / name for bundle in names]
            flags = [] if name == STRUCTURE_TABLES[0] else ["--any-rows"]
            run("aggregate", "tables", *flags, f"--out={sample / name}", *parts)
        run("aggregate", "atlas", f"--out={sample / ATLAS_TABLE}", sample / STRUCTURE_TABLES[0])
    told = [f"--status={task}={sample / task}" for task in TASKS]
    told += [f"--out={sample / 'records.tsv'}", f"--counts={sample / 'counts' / 'records.json'}"]
    run("aggregate", "records", f"--bundles={sample / 'bundles'}", f"--count={bundles}", *told)
    model = {"format": "esm-pipeline/model", "format_version": 1, "name": "demo", "revision": None}
    for name in ("model.json", "fold_model.json"):
        write_model_file(out / name, {**model, "weights_sha256": "ab" * 32})
    own = {"classify": {"of": "sequences"}, "tasks": TASKS, "on_failure": "keep"}
    return json.dumps({"fasta": fasta[0], "outdir": str(out), "shards": 200 * bundles, **own})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of several bundles and of one: folder and settings."""
    found = {}
    for bundles in (BUNDLES, 1):
        folder = tmp_path_factory.mktemp("run")
        found[bundles] = folder / "results", write_run(folder, bundles)
    return found


@pytest.fixture
def several(made, tmp_path):
    """A copy of the run of several bundles."""
    folder, settings = made[BUNDLES]
    shutil.copytree(folder, tmp_path / "results")
    return tmp_path / "results", settings


def end(out: Path, settings: str) -> None:
    """Verdict, report and provenance, as the workflow makes them."""
    keep = ("--on-failure=keep",)
    for command, name, flags in (
        ("verdict", "verdict.txt", keep),
        ("report", "report.html", ()),
        ("provenance", "provenance.json", ()),
    ):
        run(command, f"--settings={settings}", *flags, f"--out={out / name}")


def test_tables_and_verdict_are_those_of_one_bundle(made):
    texts = {}
    for bundles, (out, settings) in made.items():
        end(out, settings)
        names = ("in/records.tsv", "in/classes.tsv", "verdict.txt", "in/counts/records.json")
        texts[bundles] = {name: (out / name).read_bytes() for name in names}
    assert texts[BUNDLES] == texts[1]


def test_what_was_counted_is_what_is_counted_by_reading(made, tmp_path):
    out, settings = made[BUNDLES]
    for command, name, flags in (
        ("verdict", "v.txt", ["--on-failure=keep", out / "in" / "records.tsv"]),
        ("report", "r.html", [out / "in"]),
    ):
        run(command, *flags, f"--out={tmp_path / name}")
    end(out, settings)
    assert (tmp_path / "v.txt").read_text() == (out / "verdict.txt").read_text()
    assert (tmp_path / "r.html").read_text() == (out / "report.html").read_text()


def test_the_table_of_structures_leads_to_their_files(made):
    out, _ = made[BUNDLES]
    rows = [line.split("\t") for line in (out / "in" / "structures.tsv").read_text().split("\n")]
    column = rows[0].index("file")
    files = [row[column] for row in rows[1:] if len(row) > column and row[column]]
    ok = sum(record.outcomes["fold"].status == OK for record in RECORDS)
    assert len(files) == len({*files}) == ok
    assert all((out / "in" / file).is_file() for file in files)
    assert {file.split("/")[1] for file in files} == {*bundle_names(BUNDLES)}


def test_the_page_is_that_of_one_bundle(made, monkeypatch):
    """The points of the map are other sequences, unless all are in it."""
    drawn = []
    monkeypatch.setattr(
        report_embeddings,
        "embedding_map",
        lambda means, lengths, layer, of: drawn.append((means, lengths, of)) or "<svg/>",
    )
    pages = []
    for out, settings in made.values():
        end(out, settings)
        pages.append((out / "report.html").read_text())
    assert pages[0] == pages[1]
    assert pages[0].count("<svg") == 5
    (means, lengths, of), (others, _, all_) = drawn
    order = np.argsort(means[:, 0])
    assert means[order].tolist() == others.tolist()
    assert of == all_ == len(means)
    assert [RECORDS[int(index)].length for index in means[:, 0]] == lengths.tolist()


def test_a_page_without_a_bundle_would_differ(made, monkeypatch):
    """The twin of the test above."""
    found_as = tallies.found_as
    monkeypatch.setattr(tallies, "found_as", lambda *args: found_as(*args)[:1])
    pages = []
    for out, settings in made.values():
        run("report", f"--settings={settings}", f"--out={out / 'report.html'}")
        pages.append(
            re.findall(r"[\d,]+ records with [\d,]+ diff", (out / "report.html").read_text())
        )
    assert pages[0] != pages[1]


def test_points_are_of_all_bundles(made, monkeypatch):
    drawn = []
    monkeypatch.setattr(report_embeddings, "POINTS", 12)
    monkeypatch.setattr(
        report_embeddings,
        "embedding_map",
        lambda means, lengths, layer, of: drawn.append(means) or "<svg/>",
    )
    out, settings = made[BUNDLES]
    run("report", f"--settings={settings}", f"--out={out / 'report.html'}")
    (means,) = drawn
    assert len(means) == 12
    numbers = [number for number in range(BUNDLES) for _ in dealt(RECORDS, number, BUNDLES)]
    bundles = {
        number
        for number in {*numbers}
        for record in dealt(RECORDS, number, BUNDLES)
        if record.index in means[:, 0]
    }
    assert bundles == {0, 1, 2}


def test_provenance_names_bundles_and_jobs(made, monkeypatch):
    read = []
    for module in (provenance, tallies):
        monkeypatch.setattr(module, "sha256", lambda path: read.append(path) or sha256(path))
    out, settings = made[BUNDLES]
    end(out, settings)
    facts = json.loads((out / "provenance.json").read_text())
    (sample,) = facts["samples"].values()
    assert (sample["bundles"], sample["jobs"]) == (BUNDLES, dict.fromkeys(TASKS, 200 * BUNDLES))
    for name in ("embeddings/00002.h5", "structures/00001/structures.sha256", "classes.tsv"):
        assert sample["results"][name]["sha256"] == sha256(out / "in" / name)
    assert sample["results"]["embeddings/00002.h5"]["model"] == "tiny"
    assert not {"structures/00001/structures", "structures/00001/pae"} & {*sample["results"]}
    assert (
        sum(record.outcomes["embed"].status == FAILED for record in RECORDS)
        == (sample["records"]["embed"]["failed"])
    )
    listed = {path.name for path in read if path.suffix in (".h5", ".tsv")}
    assert listed == {"classes.tsv", *STRUCTURE_TABLES}, "only these are in no list"
    assert facts["not_of_this_run"] == []


def test_a_result_that_changed_after_it_was_listed_is_read_again(several, capsys):
    """The twin of the test above."""
    out, settings = several
    path = out / "in" / "embeddings" / "00001.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code = main(["report", f"--settings={settings}", f"--out={out / 'report.html'}"])
    assert code == 0
    (out / "verdict.txt").touch()
    told = ["provenance", f"--settings={settings}", f"--out={out / 'provenance.json'}"]
    assert main(told) == 2
    assert "embeddings/00001.h5: has changed since it was written" in capsys.readouterr().err


def check(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = main(["verify", "--quiet", str(out)])
    return code, capsys.readouterr().out.replace(f"{out}/", "").splitlines()


def test_verify_reads_the_results_of_all_bundles(several, capsys):
    out, settings = several
    end(out, settings)
    assert check(out, capsys) == (0, [])
    again = "run the workflow again"
    for name, source in (
        ("in/embeddings/00002.h5", "in/embeddings/00002.h5"),
        (next((out / "in/structures/00001/structures").rglob("*.pdb")), "structures.sha256"),
    ):
        path = out / name
        before = path.read_bytes()
        path.write_bytes(before + b"x")
        code, lines = check(out, capsys)
        assert (code, len(lines)) == (1, 1)
        assert f"{path.relative_to(out)}: differs; remove " in lines[0]
        assert lines[0].endswith(f"{source} and {again}")
        path.write_bytes(before)
    extra = out / "in" / "structures" / "00001" / "pae" / "more"
    extra.touch()
    assert check(out, capsys) == (
        1,
        [
            "in/structures/00001/pae/more: not in structures.sha256; remove "
            f"in/structures/00001/structures.sha256 and {again}"
        ],
    )


def test_bundles_of_another_run_are_told(several, capsys):
    out, settings = several
    end(out, settings)
    for name in ("embeddings/00007.h5", "classes/notes", "saturation", "embeddings.h5"):
        (out / "in" / name).touch()
    assert main(["verify", str(out)]) == 0
    *lines, _ = capsys.readouterr().out.replace(f"{out}/", "").splitlines()
    names = ("classes/notes", "embeddings/00007.h5", "embeddings.h5", "saturation")
    assert sorted(lines) == sorted(f"in/{name}: not of this run, and not checked" for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: path.write_text(path.read_text().replace('"ok": ', '"ok": 1', 1)),
            "counts/records.json: damaged, its digest is not that in digests.sha256",
        ),
        (lambda path: path.unlink(), "counts/records.json: no such file; run the workflow again"),
    ],
)
@pytest.mark.parametrize("command", ["verdict", "report", "provenance"])
def test_counts_that_were_changed_are_one_line(several, capsys, command, change, message):
    out, settings = several
    ending = {"verdict": "txt", "report": "html", "provenance": "json"}[command]
    for name in ("verdict.txt", "report.html"):
        (out / name).touch()
    change(out / "in" / "counts" / "records.json")
    told = [command, f"--settings={settings}", f"--out={out / f'x.{ending}'}"]
    capsys.readouterr()
    assert main(told) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (out / f"x.{ending}").exists()


def test_counts_of_other_tasks_are_one_line(several, capsys):
    out, settings = several
    fewer = json.dumps(json.loads(settings) | {"tasks": ["embed", "fold"]})
    assert main(["verdict", f"--settings={fewer}", f"--out={out / 'x.txt'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has embed and classify and fold, but this run has embed and fold; remove it" in line
