"""Peak memory of real jobs beside what they ask for.

    python -m tests.benchmarks.bench_requests [--sizes 8M 35M …]

Random weights of the sizes of ESM-2, on the CPU. Each point is the command of a task in a process
of its own: the most that was resident at any time, the mapped pages of the weights included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from esm_pipeline.model import EsmConfig, resolve_checkpoint
from esm_pipeline.settings.sections import EmbedSettings, JobLimits, StrategySettings
from esm_pipeline.tasks.common.model_file import describe_model, write_model_file
from esm_pipeline.tasks.common.requests import Need
from esm_pipeline.tasks.embed.work import embed_need
from esm_pipeline.tasks.score.work import saturation_need
from tests.benchmarks.models import write_checkpoint

SIZES = ("8M", "35M", "150M")
LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
COMMAND = "import sys; from esm_pipeline.cli import main; sys.exit(main(sys.argv[1:]))"
MEGA_BYTES = 1e6
UNIT = 1 if sys.platform == "darwin" else 1024


class Point(NamedTuple):
    """A job: so many sequences of one length, and settings."""

    residues: int
    count: int
    task: str = "embed"
    settings: dict[str, Any] = {}  # noqa: RUF012  # never changed

    @property
    def flags(self) -> list[str]:
        """The words of the command line."""
        texts = {
            name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
            for name, value in self.settings.items()
        }
        flags = [f"--{name.replace('_', '-')}={text}" for name, text in texts.items()]
        return [*flags, *(["--saturation"] if self.task == "score" else [])]

    def asked(self, model: Path) -> int:
        """Bytes that it asks for."""
        needed: Callable[..., Need]
        needed, section = {
            "embed": (embed_need, EmbedSettings),
            "score": (saturation_need, StrategySettings),
        }[self.task]
        lengths = np.full(self.count, self.residues)
        settings = section(**self.settings)
        need = needed([model], settings, lengths, settings.threads)
        given = {"threads": settings.threads, "attempt": 1, "limits": JobLimits(), "where": "job"}
        found = need.request(settings, **given)
        return int(found.mem_mb * MEGA_BYTES)


DTYPES = ("float32", "bfloat16", "int8")
POINTS = [
    *(Point(10, 1, settings={"dtype": dtype, "threads": 1}) for dtype in DTYPES),
    *(
        Point(300, 32 * threads, settings={"dtype": dtype, "threads": threads})
        for dtype in DTYPES
        for threads in (1, 2)
    ),
    *(Point(3000, 2, settings={"dtype": dtype, "threads": 1}) for dtype in DTYPES),
    Point(1000, 5, settings={"include": ["contacts"], "threads": 1}),
    Point(3000, 2, settings={"include": ["contacts"], "threads": 1}),
    Point(300, 32, settings={"include": ["residue"], "layers": [0, 1, 2, 3, 4, 5], "threads": 1}),
    Point(200, 2, "score", {"threads": 1}),
    Point(100, 2, "score", {"dtype": "bfloat16", "threads": 1}),
]


def measure(point: Point, model: Path, folder: Path) -> int:
    """Bytes at peak of the job."""
    rng = np.random.default_rng(1)
    fasta = folder / "in.fasta"
    with open(fasta, "w") as file:
        for number in range(point.count):
            text = LETTERS[rng.integers(0, 20, point.residues)].tobytes().decode()
            file.write(f">{number}\n{text}\n")
    words = [point.task, f"--model={model}", "--device=cpu", "--quiet", *point.flags]
    words += ["--", str(fasta), str(folder / "out.h5")]
    child = subprocess.Popen([sys.executable, "-c", COMMAND, *words])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {child.returncode}")
    return usage.ru_maxrss * UNIT


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    args = parser.parse_args()
    print("model  residues count  measured   asked MB          settings")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            checkpoint = resolve_checkpoint(str(write_checkpoint(size, folder / "model")))
            config, model = EsmConfig.from_pretrained(checkpoint.source), folder / "model.json"
            write_model_file(model, describe_model(checkpoint, config))
            for point in POINTS:
                real, told = measure(point, model, folder), point.asked(model)
                row = f"{size:<6}{point.residues:>9,}{point.count:>6}"
                row += f"{real / MEGA_BYTES:>10,.0f}{told / MEGA_BYTES:>8,.0f} MB"
                flags = " ".join([point.task, *point.flags])
                print(f"{row}{told / real - 1:>+8.0%}  {flags}", flush=True)


if __name__ == "__main__":
    main()
