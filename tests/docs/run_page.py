"""Run the blocks of one page as a reader would: `python run_page.py BLOCKS.json OUTPUTS.json`.

Shell blocks share a working directory and the variables of one terminal, Python blocks share one
session of Python, which is in the same directory. The output of each block is written to
OUTPUTS.json as long as all goes well; the first block that fails ends the run with exit code 1.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

SAVE = """
declare -px >"$TERMINAL/variables"; pwd >"$TERMINAL/folder"
"""
"""After a block: what the next one finds."""


def run_shell(text: str, terminal: Path, before: str) -> str:
    """Run a shell block in the terminal's directory, with its variables; return what it printed."""
    variables = terminal / "variables"
    load = f'. "{variables}" 2>/dev/null\n' if variables.exists() else ""
    script = f"{load}set -euo pipefail\n{before}\n{text}{SAVE}"
    result = subprocess.run(
        ["bash", "-c", script],
        env=os.environ | {"TERMINAL": str(terminal)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        raise RuntimeError(f"exit code {result.returncode}\n{result.stdout}")
    os.chdir((terminal / "folder").read_text().removesuffix("\n"))
    return result.stdout


def run_python(text: str, place: str, session: dict[str, Any]) -> str:
    """Run a Python block in the session; return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, place, "exec"), session)
    return printed.getvalue()


def main(blocks: Path, outputs: Path) -> int:
    """Run all blocks; return the exit code."""
    session: dict[str, Any] = {"__name__": "__main__"}
    task = json.loads(blocks.read_text())
    said: list[str] = []
    with tempfile.TemporaryDirectory() as terminal:
        for block in task["blocks"]:
            try:
                if block["language"] == "python":
                    printed = run_python(block["text"], block["place"], session)
                else:
                    printed = run_shell(block["text"], Path(terminal), task["before"])
            except BaseException as error:
                trace = "" if isinstance(error, RuntimeError) else traceback.format_exc()
                print(f"{block['place']}: this block fails: {error}\n{trace}\n{block['text']}")
                return 1
            said.append(printed)
            outputs.write_text(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
