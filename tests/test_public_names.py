"""The public names of the package: each can be imported, and editors know its type."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import esm_pipeline


@pytest.mark.parametrize("name", esm_pipeline.__all__)
def test_a_public_name_is_what_its_module_defines(name):
    assert getattr(esm_pipeline, name).__name__ == name
    assert name in dir(esm_pipeline)


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'esm_pipeline' has no attribute 'EsmModle'"):
        _ = esm_pipeline.EsmModle


def test_editors_see_every_public_name():
    source = Path(esm_pipeline.__file__)
    imported = {
        alias.name
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("esm_pipeline.")
        for alias in node.names
    }
    assert imported - {"__version__"} == set(esm_pipeline.__all__)
    assert source.with_name("py.typed").exists()
