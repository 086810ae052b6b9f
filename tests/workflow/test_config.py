"""Checks of the config file before Snakemake reads it: not YAML, or a key twice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from snakemake.common.configfile import load_configfile
from snakemake.exceptions import WorkflowError

from tests.workflow.tools import ROOT


@pytest.fixture(scope="module")
def require_yaml():
    """The function in `config.smk`, which contains no rules and is therefore plain Python."""
    modifier = SimpleNamespace(skip_configfile=True)
    names = {"workflow": SimpleNamespace(modifier=modifier, overwrite_configfiles=[])}
    path = ROOT / "workflow" / "rules" / "config.smk"
    exec(compile(path.read_text(), path, "exec"), names)
    return names["require_yaml"]


NO_SETTINGS = "{p}: no settings in it; write keys such as 'fasta: my.fasta'"
NO_TEXT = "{p}: not UTF-8 text; save it as UTF-8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a:\n\tb: 1\n",
            "{p}:2: not YAML, found character '\\t' that cannot start any token; corr",
        ),
        ("a: 1\nmodel: b: c\n", "{p}:2: not YAML, mapping values are not allowed here; correct th"),
        ("a: [1\nb: 2\n", "{p}:2: not YAML, "),
        ("a: 'b\n", "{p}:2: not YAML, found unexpected end of stream; correct the line"),
        ("a: *b\n", "{p}:1: not YAML, found undefined alias 'b'; correct the line"),
        ("a: \x00\n", "{p}: not YAML ("),
        ("", NO_SETTINGS),
        ("# only\n", NO_SETTINGS),
        ("fasta", NO_SETTINGS),
        ("- fasta\n", NO_SETTINGS),
        ("a: é\n".encode("latin-1"), NO_TEXT),
        ("a: 1\n".encode("utf-16"), NO_TEXT),
        ("a: 1\nb: 2\na: 1\n", "{p}:3: key 'a' already appears in line 1; remove one"),
        ("e:\n  x: 1\n  y:\n  x: 1\n", "{p}:4: key 'x' already appears in line 2; remove one"),
        ("e: {x: 1, x: 2}\n", "{p}:1: key 'x' already appears in line 1; remove one"),
        ("e: [{x: 1, x: 2}]\n", "{p}:1: key 'x' already appears in line 1; remove one"),
        ("1: a\n'1': b\n", "{p}:2: key '1' already appears in line 1; remove one"),
    ],
)
def test_refused(require_yaml, tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WorkflowError) as caught:
        require_yaml(path)
    (line,) = str(caught.value).split("\n")
    assert line.startswith(message.format(p=path))


@pytest.mark.parametrize(
    "text",
    [
        "a: {x: 1}\nb: {x: 1}\n",
        "\ufeffa: 1\n",
        "a: &e {x: 1}\nb: *e\nc: {<<: *e, x: 2}\n",
        '{\n\t"a": 1,\n\t"b": [1, {"c": null}]\n}\n',
        "a: &loop\n  b: *loop\n",
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
    ],
    ids=["same key elsewhere", "mark", "aliases", "JSON with tabs", "loop", "many aliases"],
)
def test_accepted(require_yaml, tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    require_yaml(path)
    assert "a" in load_configfile(path) or "a0" in load_configfile(path)


def test_the_config_as_shipped_is_accepted(require_yaml):
    require_yaml(ROOT / "config" / "config.yaml")
