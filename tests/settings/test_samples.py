"""The table of samples and the paths of the workflow: what is taken, what is refused and how."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.errors import InputError
from esm_pipeline.settings import load_settings
from esm_pipeline.settings.samples import (
    Sample,
    expanded_size,
    read_samples,
    require_usable,
    sample_name,
)
from tests.tasks.common.test_runner import as_nobody


def refusal(function, *arguments) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    (line,) = str(caught.value).split("\n")
    assert line.isprintable()
    return line


TOO_LONG = "a" * 101
QUOTE = "a cell begins with '\"' but does not end with one; close the quotes on the same line"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "t.tsv:1: no column 'sample', only nothing; the table is tab-separated, with"),
        ("sample,fasta\na,b\n", "t.tsv:1: no column 'sample', only 'sample,fasta'; the table is"),
        ("sample fasta\na b\n", "t.tsv:1: no column 'sample', only 'sample fasta'; the table is"),
        ("Sample\tFasta\na\tb\n", "t.tsv:1: no column 'sample', only 'Sample', 'Fasta'; the table"),
        ("sample\na\n", "t.tsv:1: no column 'fasta', only 'sample'; the table"),
        ("a\tx.fasta\n", "t.tsv:1: no column 'sample', only 'a', 'x.fasta'; the table"),
        ("sample\tfasta\tfasta\n", "t.tsv:1: two columns 'fasta'; remove one"),
        ("sample\tvariants\tfasta\tvariants\n", "t.tsv:1: two columns 'variants'; remove one"),
        ("sample\tfasta\tvariants\na\tx\tv{1}\n", "t.tsv:2: 'v{1}': Snakemake reads"),
        (
            "sample\tfasta\tvariants\na\tx\tv\na\ty\tw\n",
            "t.tsv:3: sample 'a' has two variant tables; join them, or make it two samples",
        ),
        ("sample\tfasta\n", "t.tsv: no samples; add a row below the column names"),
        ("sample\tfasta\n\n\t\n \t \n", "t.tsv: no samples; add a row"),
        ("sample\tfasta\na/b\tx\n", "t.tsv:2: sample name 'a/b' cannot name a folder; use up to"),
        ("sample\tfasta\n..\tx\n", "t.tsv:2: sample name '..' cannot name a folder"),
        ("sample\tfasta\n../a\tx\n", "t.tsv:2: sample name '../a' cannot name a folder"),
        ("sample\tfasta\n.a\tx\n", "t.tsv:2: sample name '.a' cannot name a folder"),
        ("sample\tfasta\n-rf\tx\n", "t.tsv:2: sample name '-rf' cannot name a folder"),
        ("sample\tfasta\n/etc\tx\n", "t.tsv:2: sample name '/etc' cannot name a folder"),
        ("sample\tfasta\na b\tx\n", "t.tsv:2: sample name 'a b' cannot name a folder"),
        ("sample\tfasta\n$(id)\tx\n", "t.tsv:2: sample name '$(id)' cannot name a folder"),
        ("sample\tfasta\na;b\tx\n", "t.tsv:2: sample name 'a;b' cannot name a folder"),
        ("sample\tfasta\né\tx\n", "t.tsv:2: sample name '\\xe9' cannot name a folder"),
        ("sample\tfasta\n{a}\tx\n", "t.tsv:2: sample name '{a}' cannot name a folder"),
        (f"sample\tfasta\n{TOO_LONG}\tx\n", f"sample name '{TOO_LONG}' cannot name a folder"),
        ("sample\tfasta\n\tx\n", "t.tsv:2: sample name '' cannot name a folder"),
        ("sample\tfasta\na\tx\nLogs\ty\n", "t.tsv:3: the workflow itself uses the name 'Logs'"),
        *(
            (f"sample\tfasta\n{name}\tx\n", f"t.tsv:2: the workflow itself uses the name '{name}'")
            for name in ("fold_model.json", "Fold_Model.json", "classify_model.json", "Model.json")
        ),
        *(
            (f"sample\tfasta\n{name}\tx\n", f"t.tsv:2: the workflow itself uses the name '{name}'")
            for name in ("models", "benchmarks", "report.html", "provenance.sha256", "VERDICT.txt")
        ),
        ("sample\tfasta\na\t\n", "t.tsv:2: sample 'a' has no fasta; add the path of its file"),
        ("sample\tfasta\na\n", "t.tsv:2: sample 'a' has no fasta; add the path of its file"),
        ("sample\tfasta\na\tx\tb\n", "t.tsv:2: 3 cells, but 2 columns; remove a tab, or add"),
        ("sample\tfasta\na\tx\n\na\tx\n", "t.tsv:4: sample 'a' lists x twice, also in line 2;"),
        ("sample\tfasta\na\tx\na\t./y/../x\n", "t.tsv:3: sample 'a' lists ./y/../x twice, also"),
        ("sample\tfasta\na\tx\nA\ty\n", "t.tsv:3: samples 'a' and 'A' differ only in case and"),
        ('sample\tfasta\na\t"x\nb\ty\nc\tz"\n', f"t.tsv:2: {QUOTE}"),
        ('sample\tfasta\na\t"x" y\n', f"t.tsv:2: {QUOTE}"),
        ('"sample\tfasta\na\tx\n', f"t.tsv:1: {QUOTE}"),
    ],
)
def test_bad_table_is_reported_with_its_line(tmp_path, text, told):
    table = tmp_path / "t.tsv"
    table.write_text(text)
    assert told in refusal(read_samples, str(table))


PACKED = gzip.compress(b"sample\tfasta\na\tx\n")
GOOD = "sample\tfasta\ná\tx\n"
ZIPPED = "a damaged gzip file"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, ": the sample table cannot be read (No such file or directory); check it"),
        (PACKED[:12], f": the sample table cannot be read ({ZIPPED}); check it"),
        (PACKED[:12] + b"\xff" * 9, f": the sample table cannot be read ({ZIPPED}); check it"),
        (PACKED[:-8] + b"damaged.", ": the sample table cannot be read ("),
        (GOOD.encode("utf-16"), ": not a sample table but UTF-16 text, as spreadsheets write it"),
        ("\ufeff".encode("utf-16-be"), ": not a sample table but UTF-16 text, as spreadsheets"),
        (b"PK\x03\x04\x14\0", ": not a sample table but a spreadsheet or an archive; export it as"),
        (GOOD.encode("latin-1"), ":2: not UTF-8 text; save the table as UTF-8"),
    ],
)
def test_table_that_cannot_be_read(tmp_path, content, told):
    table = tmp_path / "t.tsv"
    if content is not None:
        table.write_bytes(content)
    assert f"{table}{told}" in refusal(read_samples, str(table))
    assert "cannot be read (Is a directory)" in refusal(read_samples, str(tmp_path))


def test_table_may_come_from_a_spreadsheet(tmp_path):
    table = tmp_path / "t.tsv"
    rows = ["\ufeffsample\tnote\tfasta\t", "b\tx\ttwo.fa\t\t", "\t\t\t", "", 'a\t\t"o""n,e.fa"']
    text = "\r\n".join([*rows, 'b\ty"\tthree, 4.fa', ""])
    expected = {"b": ["two.fa", "three, 4.fa"], "a": ['o"n,e.fa']}
    old_mac = text.replace("\r\n", "\r")
    for content in (text.encode(), gzip.compress(text.encode()), old_mac.encode()):
        table.write_bytes(content)
        inputs = load_settings({"samples": str(table)}).inputs()
        assert inputs == expected
        assert list(inputs) == list(expected)


def test_tables_of_variants(tmp_path):
    """A sample may have one in any of its rows; the column may be anywhere, or missing."""
    table = tmp_path / "t.tsv"
    table.write_text("variants\tsample\tfasta\n\ta\tx\nv.csv\ta\ty\nv.csv\ta\tz\n\tb\tw\n")
    expected = {"a": Sample(["x", "y", "z"], "v.csv"), "b": Sample(["w"])}
    assert read_samples(str(table)) == expected


def test_one_file_may_be_of_two_samples(tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("sample\tfasta\na\tx\nb\tx\n")
    assert read_samples(str(table)) == {"a": Sample(["x"]), "b": Sample(["x"])}


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("utf-8", "replace")))
def test_any_table_is_taken_or_refused_in_one_line(tmp_path_factory, rest):
    table = tmp_path_factory.mktemp("t") / "t.tsv"
    table.write_bytes(f"sample\tfasta\n{rest}".encode("utf-8", "replace"))
    try:
        samples = read_samples(str(table))
    except InputError as error:
        (line,) = str(error).split("\n")
        assert line.startswith(str(table))
        return
    for sample, (files, variants) in samples.items():
        assert Path(sample).name == sample
        assert set(sample) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
        )
        assert all(files)
        assert variants is None


@pytest.mark.parametrize(
    ("fasta", "name"),
    [
        ("data/my proteins.fasta.gz", "my_proteins"),
        ("x.FAA", "x"),
        ("no_suffix", "no_suffix"),
        ("a.b.c.fa", "a.b.c"),
        ("--.fasta", "sample"),
        ("Logs.fasta", "sample_Logs"),
        ("été.fasta", "t"),
    ],
)
def test_a_single_input_names_its_sample(fasta, name):
    assert sample_name(fasta) == name


@given(st.text(min_size=1, max_size=200))
def test_any_file_name_gives_a_name_that_a_table_takes(tmp_path_factory, name):
    table = tmp_path_factory.mktemp("t") / "t.tsv"
    table.write_text(f"sample\tfasta\n{sample_name(name)}\tx\n")
    assert list(load_settings({"samples": str(table)}).inputs()) == [sample_name(name)]


PATHS = ["a b", "-x", "$(a)", "a'b\"", "a;b&c|d", "*?[a]!", "#%~", "é😀\u202e"]


@pytest.mark.parametrize("path", PATHS)
def test_most_characters_may_stand_in_a_path(path):
    require_usable(path, "fasta")


BRACES = "Snakemake reads braces and angle brackets in a path as wildcards; rename it, or make a"
CONTROL = "a path cannot contain line breaks or control characters; rename"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("a{b", f"'a{{b': {BRACES}"),
        ("a<b>", f"'a<b>': {BRACES}"),
        ("a\x1b[1m", rf"'a\x1b[1m': {CONTROL}"),
        ("a\u2028b", rf"'a\u2028b': {CONTROL}"),
        ("a\0b", rf"'a\x00b': {CONTROL}"),
    ],
)
def test_characters_that_a_path_cannot_have(tmp_path, path, told):
    table = tmp_path / "t.tsv"
    table.write_text(f"sample\tfasta\nb\tx\na\t{path}\n")
    assert f"t.tsv:3: {told}" in refusal(read_samples, str(table))
    for key in ("fasta", "outdir"):
        assert refusal(require_usable, path, key).startswith(f"{key}: {told}")
    assert "'a\\nb': a path cannot contain line breaks" in refusal(require_usable, "a\nb", "fasta")
    assert "'a\\udcff': a path must be UTF-8" in refusal(require_usable, "a\udcff", "fasta")


@pytest.mark.parametrize(
    ("fasta", "refused"),
    [
        ("{out}/a/bundles/00000.fasta", True),
        ("{out}/a/bundles/mine.fasta", True),
        ("{out}/a/embed/x.fasta", True),
        ("{out}/a/records.tsv", True),
        ("{out}/a/scores.json", True),
        ("{out}/a/heatmaps/x.fasta", True),
        ("{out}/a/variants/x.fasta", True),
        ("{out}/models/x.fasta", True),
        ("{out}/a/embeddings.h5", True),
        ("{out}/a", True),
        ("{out}/logs/x.fasta", True),
        ("{out}/report.html", True),
        ("link/a/bundles/00000.fasta", True),
        ("{out}/a/structures/x.fasta", True),
        ("{out}/a/pae/x.fasta", True),
        ("{out}/a/structures.sha256", True),
        ("{out}/a/fold/x.fasta", True),
        ("{out}/A/Structures/x.fasta", True),
        ("{out}/fold_model.json", True),
        ("{out}/provenance.sha256", True),
        ("{out}/a/mine.tsv", False),
        ("{out}/a/proteins.fasta", False),
        ("{out}/a/mine/records.tsv", False),
        ("{out}/b/bundles/00000.fasta", False),
        ("{out}/x.fasta", False),
        ("other/a/bundles/00000.fasta", False),
    ],
)
def test_an_input_where_results_go_is_refused(tmp_path, monkeypatch, fasta, refused):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "t.tsv").write_text(f"sample\tfasta\na\t{fasta.format(out='out')}\n")
    for outdir in ("out", "./other/../out/", str(tmp_path / "out")):
        settings = load_settings({"samples": "t.tsv", "outdir": outdir})
        if refused:
            told = refusal(settings.inputs)
            where = f"is in a folder where the workflow writes results, {settings.outdir}; move"
            assert f": {where}" in told
        else:
            assert list(settings.inputs()) == ["a"]


def test_variants_where_results_go_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"fasta": "a.fasta", "variants": "out/a/scores.tsv", "outdir": "out"}
    told = refusal(load_settings({**config, "tasks": ["score"]}).inputs)
    where = "is in a folder where the workflow writes results, out;"
    assert told.startswith(f"out/a/scores.tsv: {where}")


@pytest.mark.parametrize(
    ("outdir", "told"),
    [
        ("/", "outdir '/': the root of the file system; name a folder in it, such as results"),
        ("//", "the root of the file system"),
        ("/usr/..", "the root of the file system"),
        (".", "outdir '.': the folder where Snakemake runs; name a folder in it, such as results"),
        ("./", "where Snakemake runs"),
        ("a/..", "where Snakemake runs"),
        ("file", "outdir 'file': file is not a folder; choose another one"),
        ("file/below", "outdir 'file/below': file is not a folder; choose another one"),
        ("dangling", "outdir 'dangling': dangling is not a folder; choose another one"),
        ("{x}", f"outdir: '{{x}}': {BRACES}"),
    ],
)
def test_an_unusable_output_folder(tmp_path, monkeypatch, outdir, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    assert told in refusal(load_settings({"fasta": "x", "outdir": outdir}).inputs)


@pytest.mark.parametrize("outdir", ["a", "./a//b/", "../a", "-x/--help", "folder/new", "link"])
def test_output_folders_that_are_fine(tmp_path, monkeypatch, outdir):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    settings = load_settings({"fasta": "x", "outdir": outdir})
    assert settings.inputs() == {"x": ["x"]}
    assert settings.outdir == outdir.replace("./a//b/", "a/b")


def test_size_of_what_is_there(tmp_path):
    fasta = tmp_path / "a.fasta"
    fasta.write_bytes(b"A" * 2500)
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(bytes(range(256)) * 10))
    assert expanded_size(str(fasta)) == 2500
    assert expanded_size(str(packed)) == 2 * packed.stat().st_size


def test_inputs_that_cannot_be_read(tmp_path):
    told = refusal(expanded_size, str(tmp_path / "none.fasta"))
    assert "none.fasta: no such file; check the path, or set 'shards' to a number" in told
    assert ": a folder, not a file; name the FASTA" in refusal(expanded_size, str(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    assert "fifo: not a regular file" in refusal(expanded_size, str(tmp_path / "fifo"))
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0)
        with as_nobody():
            told = refusal(expanded_size, f"{place}/in.fasta")
    assert "in.fasta: cannot be read (Permission denied); check the path and its perm" in told
    too_long = refusal(expanded_size, "x" * 300)
    assert "cannot be read (File name too long); check the path and its permissions" in too_long
