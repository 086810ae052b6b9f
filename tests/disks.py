"""Disks in memory, of any size, that only one process and what it starts can see."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands import contents
from tests.forked import Ended, Forked

PAGE = 4  # KiB: what such a disk gives and takes
WITHIN = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-Urm")


def can_mount() -> bool:
    """Whether this machine lets us have disks of our own."""
    if shutil.which("unshare") is None:
        return False
    command = [*WITHIN, "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_a_disk = pytest.mark.skipif(not can_mount(), reason="no disk of its own can be mounted here")


class Disk:
    """A disk in memory, which only the processes of `forked` see: they at `path`, we at `seen`."""

    def __init__(self, forked: Forked, path: Path) -> None:
        self._forked, self.path = forked, path
        path.mkdir()
        self._call("mount", "-t", "tmpfs", "-o", "mode=755", "none", path)
        self.seen = Path(f"{forked.root}{path}")

    def _call(self, *command: object) -> None:
        assert self._forked.call(*command) == Ended(0, "")

    def set(self, options: str) -> None:
        """Change its size (`size=8k`, `nr_inodes=2`), or have it read only (`ro`)."""
        self._call("mount", "-o", f"remount,{options}", "none", self.path)

    @property
    def used(self) -> int:
        """KiB in use."""
        return PAGE * sum(-(-len(data) // (PAGE << 10)) for data in contents(self.seen).values())
