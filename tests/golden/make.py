"""Make the example tree anew, by hand: `python -m tests.golden.make`, then look at the difference.

`model/` (random weights, seed 0) is made only if it is not there, so that the numbers stay.
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from pathlib import Path

from esm_pipeline.formats.checksums import write_digests
from tests.workflow.tools import GOLDEN, GOLDEN_TASKS, config, save_model, snakemake


def main() -> None:
    """Run the workflow in a temporary folder and keep what it leaves but for logs."""
    if not (GOLDEN / "model").exists():
        save_model(GOLDEN / "model")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("my proteins.fasta", "my variants.csv"):
            shutil.copy(GOLDEN / name, folder)
        shutil.copytree(GOLDEN / "model", folder / "model")
        run = snakemake(folder, *config(Path("model"), *GOLDEN_TASKS))
        if run.code:
            raise SystemExit(run.said)
        shutil.rmtree(GOLDEN / "results", ignore_errors=True)
        unwanted = ("logs", "benchmarks", "report.html", ".snakemake_timestamp")
        shutil.copytree(run.results, GOLDEN / "results", ignore=shutil.ignore_patterns(*unwanted))
    hide_the_machine(GOLDEN / "results" / "provenance.json")
    files = {"provenance.json": GOLDEN / "results" / "provenance.json"}
    write_digests(GOLDEN / "results" / "provenance.sha256", files)


def hide_the_machine(path: Path) -> None:
    """Leave the kernel of the machine that made it out of `provenance.json`."""
    facts = json.loads(path.read_text())
    facts["software"]["platform"] = platform.system()
    path.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
