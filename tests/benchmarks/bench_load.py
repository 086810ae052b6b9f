"""Loading a model from a warm disk: ours beside transformers, a fresh process each time.

    python -m tests.benchmarks.bench_load [--quick] [--rounds 5] [--threads N]

Imports are not counted: from the call of `from_pretrained` to the model, and to the first logits of
a short protein, since weights that are mapped from the file are read when they are first used.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.benchmarks.models import write_checkpoint
from tests.benchmarks.peers import reference
from tests.benchmarks.plan import Plan, run_alone
from tests.benchmarks.proteins import proteins
from tests.benchmarks.table import Case, Row

ROOT = Path(__file__).resolve().parents[2]
BASE = "transformers float32"
LOADED = (BASE, "ours float32", "ours float32, optimized", "ours bfloat16, optimized")


def loader(way: str) -> Callable[[Path], torch.nn.Module]:
    """What loads a model; its library is imported by then."""
    if way == BASE:
        import transformers

        assert transformers.EsmForMaskedLM  # imported here, not when it is first asked for
        return reference
    from esm_pipeline import EsmForMaskedLM, optimize_for_inference

    if not way.endswith("optimized"):
        return EsmForMaskedLM.from_pretrained
    dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
    return lambda folder: optimize_for_inference(EsmForMaskedLM.from_pretrained(folder), dtype)


def once(way: str, folder: Path, threads: int) -> tuple[float, float]:
    """Seconds to the model, and to its first logits; in a process that did nothing before."""
    from esm_pipeline import EsmTokenizer

    torch.set_num_threads(threads)
    told = EsmTokenizer.standard()(proteins(1), return_tensors="pt")
    load = loader(way)
    start = time.perf_counter()
    model = load(folder).eval()
    loaded = time.perf_counter() - start
    with torch.inference_mode():
        model(**told)
    return loaded, time.perf_counter() - start


def apart(way: str, folder: Path, threads: int) -> tuple[float, float]:
    """The same in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_load", "--once"]
    found = subprocess.run(
        [*command, json.dumps([way, str(folder), threads])],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    )
    loaded, answered = json.loads(found.stdout)
    return loaded, answered


def measure(plan: Plan) -> list[Case]:
    """Two cases: the model, and the first logits."""
    rows = {way: (Row(way), Row(way)) for way in LOADED}
    with tempfile.TemporaryDirectory() as name:
        folder = write_checkpoint(plan.load_size, Path(name))
        for way in LOADED:  # the disk is warm after this
            apart(way, folder, plan.threads)
        for _ in range(plan.rounds):
            for way, both in rows.items():
                for row, seconds in zip(both, apart(way, folder, plan.threads), strict=True):
                    row.values.append(seconds)
    model, answer = zip(*rows.values(), strict=True)
    size = f"ESM-2 {plan.load_size}"
    note = (
        f"of a protein of {len(proteins(1)[0])} residues; a fresh process each time, imports apart"
    )
    return [
        Case(f"loading {size} from a warm disk", BASE, list(model)),
        Case(f"loading {size} and first logits", BASE, list(answer), note=note),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        print(json.dumps(once(*json.loads(sys.argv[2]))))
    else:
        run_alone(__doc__, measure, ("load_size",))
