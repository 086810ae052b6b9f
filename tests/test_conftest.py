"""A skip in CI is a failure: at run time, at collection, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
SKIPS = {
    "run": "import pytest\ndef test_a(): pytest.skip('no reason')\n",
    "mark": "import pytest\n@pytest.mark.skip(reason='no reason')\ndef test_a(): pass\n",
    "collection": "import pytest\npytest.importorskip('no_such_module')\n",
}


def run(tmp_path: Path, sources: dict[str, str], *, ci: bool) -> str:
    """What pytest says of `sources` under the project's conftest."""
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    for name, source in sources.items():
        (tmp_path / f"test_{name}.py").write_text(source)
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors", str(tmp_path)],
        env=environment | ({"CI": "true"} if ci else {}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.parametrize("ci", [False, True])
def test_skips_fail_in_ci_only(tmp_path, ci):
    said = run(tmp_path, SKIPS, ci=ci)
    expected = "1 failed, 2 errors" if ci else "3 skipped"
    counts = said.splitlines()[-1].split(" in ")[0]
    assert sorted(counts.split(", ")) == expected.split(", ")
    assert ("a skip in CI is a failure" in said) is ci


@pytest.mark.parametrize("reason", ["no mkdssp here", "no dictionaries of mmCIF here"])
def test_packages_of_debian_may_be_missing(tmp_path, reason):
    source = f"import pytest\ndef test_a(): pytest.skip({reason!r})\n"
    assert "1 skipped" in run(tmp_path, {"one": source}, ci=True)


def test_a_processor_without_exact_products_may_skip(tmp_path):
    reasons = ("no exact 8-bit product here", "there is no exact 8-bit product here, or so")
    sources = {
        name: f"import pytest\ndef test_a(): pytest.skip({reason!r})\n"
        for name, reason in zip(("expected", "other"), reasons, strict=True)
    }
    assert "1 failed, 1 skipped" in run(tmp_path, sources, ci=True)


def test_expected_failure_is_no_skip(tmp_path):
    source = "import pytest\n@pytest.mark.xfail(strict=True)\ndef test_a(): assert False\n"
    assert "1 xfailed" in run(tmp_path, {"it": source}, ci=True)
