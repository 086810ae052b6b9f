"""What holds for every test: no network, no silent skips in CI, the same properties every time.

And one thread a process where several run side by side.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Generator

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # before anything loads the libraries that read these
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

hypothesis.settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("project")

MAY_SKIP_IN_CI = (
    "tests/workflow/test_conda.py::test_with_a_real_conda",  # no registry of CI's holds conda
    "tests/model/test_cuda.py",  # needs a graphics card
    "tests/test_disk.py::test_a_disk_",  # mounts a disk in memory, which not every machine allows
    "tests/workflow/test_disk.py",  # the same
)
"""Beginnings of the ids of tests that may be skipped in CI."""

NO_DSSP, NO_DICTIONARIES = "no mkdssp here", "no dictionaries of mmCIF here"
"""Why tests of structure files may be skipped: they need packages of Debian, see `.ci/run`."""

NO_FOLDCOMP = "no foldcomp here"
"""Why any test may be skipped on Linux on arm64, for which foldcomp has no wheel."""

NO_EXACT_PRODUCT = "no exact 8-bit product here"
"""Why any test may be skipped in CI: int8 needs a processor that has one (VNNI)."""


def forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure in CI, unless the test or the reason is expected there."""
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    expected = hasattr(report, "wasxfail") or report.nodeid.startswith(MAY_SKIP_IN_CI)
    reasons = [NO_EXACT_PRODUCT, NO_DSSP, NO_DICTIONARIES]
    reasons += [NO_FOLDCOMP] if platform.machine() == "aarch64" else []
    expected = expected or why.endswith(tuple(f": {reason}" for reason in reasons))
    if report.skipped and not expected and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = (
            f"a skip in CI is a failure, and tests/conftest.py does not list it: {why}"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Have what is made once for each user made before there are several processes to make it."""
    import matplotlib.font_manager  # noqa: F401 - its list of fonts


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process for each core that this one may use, be it half of one in silicon."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes that are not ASCII by their argument.

    A gzip file holds the time, and processes that run tests side by side must find the same ids.
    """
    return argname if isinstance(val, bytes) and not val.isascii() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: item.path.parent.name != "workflow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    forbid_skip(report)
    return report
