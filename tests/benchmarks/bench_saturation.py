"""Saturation of one protein beside a loop over transformers, and passes of a deep mutational scan.

    python -m tests.benchmarks.bench_saturation [--saturation-size 35M] [--residues 300] [--whole]

Random weights of the true size. The peer runs as well as it can be asked to: sdpa attention, copies
of one length in batches of the size that is fastest for it, logits of all tokens. All compute some
of the masked copies in turn, round by round. With `--whole` the whole command runs instead, start
and files included, and a scan of single and double mutants.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from esm_pipeline import EsmTokenizer
from esm_pipeline.cli import main as esm_pipeline
from esm_pipeline.settings.sections import ScoreSettings
from esm_pipeline.tasks.score.forward_passes import LanguageModel, one_masked
from tests.benchmarks.models import write_checkpoint
from tests.benchmarks.peers import BASE, dtype_of, reference
from tests.benchmarks.plan import Plan, add_fields, add_flags, plan_of, show
from tests.benchmarks.table import Case, Row

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
BATCHES = (4, 8, 16, 32)
MUTANTS = 5_000
TOKEN_BUDGET = 16_384
OURS = ("ours float32", "ours bfloat16")


def peer_log_odds(
    model: torch.nn.Module, sequence: str, batch: int, count: int | None = None
) -> np.ndarray:
    """(residues, 20) by transformers, `batch` copies at a time; of the first `count` residues."""
    tokenizer = EsmTokenizer.standard()
    tokens = tokenizer([sequence], return_tensors="pt").input_ids
    columns = tokenizer.convert_tokens_to_ids(list(AMINO_ACIDS))
    found = []
    with torch.inference_mode():
        for places in torch.arange(1, 1 + (count or len(sequence))).split(batch):
            copies = tokens.repeat(len(places), 1)
            copies[torch.arange(len(places)), places] = tokenizer.mask_token_id
            logits = model(copies, attention_mask=torch.ones_like(copies)).logits
            log_p = logits[torch.arange(len(places)), places].log_softmax(-1)
            wild_type = log_p.gather(1, tokens[0, places, None])
            found.append(log_p[:, columns] - wild_type)
    return torch.cat(found).numpy()


def scan(sequence: str, letters: random.Random) -> list[str]:
    """Single and double mutants, each once."""

    def one() -> str:
        at = letters.randrange(len(sequence))
        return f"{sequence[at]}{at + 1}{letters.choice(AMINO_ACIDS.replace(sequence[at], ''))}"

    singles: set[str] = set()
    while len(singles) < min(MUTANTS, 19 * len(sequence)):
        singles.add(one())
    doubles: set[str] = set()
    while len(doubles) < MUTANTS:
        first, second = one(), one()
        if first[1:-1] != second[1:-1]:
            doubles.add(f"{first}:{second}")
    return [*sorted(singles), *sorted(doubles)]


def run(*arguments: object) -> float:
    """Run the command line; seconds that it took."""
    start = time.perf_counter()
    assert esm_pipeline([str(argument) for argument in arguments]) == 0
    return time.perf_counter() - start


class Ours:
    """The masked copies of a protein as `score --saturation` computes them."""

    def __init__(self, folder: Path, sequence: str, dtype: str, budget: int) -> None:
        settings = ScoreSettings(dtype=dtype, device="cpu", token_budget=budget)
        self.model, self.sequence, self.budget = (
            LanguageModel(str(folder), None, settings),
            sequence,
            budget,
        )
        self.model.load()

    def log_odds(self, count: int) -> np.ndarray:
        """(count, 20) of the first residues."""
        place = np.arange(1, count + 1)
        tokens = np.full(count, len(self.sequence) + 2)
        passes = one_masked(np.zeros(count, np.int64), place, place - 1, tokens, 0)
        found = np.empty((count, 20))
        for answers in self.model.run_passes(passes, lambda _: [self.sequence], self.budget):
            own = answers.log_p[np.arange(len(answers.slot)), answers.wild_type]
            found[answers.slot] = answers.log_p[:, self.model.amino_acids()] - own[:, None]
        return found


def protein(residues: int) -> str:
    """Random residues."""
    return "".join(random.Random(0).choices(AMINO_ACIDS, k=residues))


def measure(plan: Plan) -> list[Case]:
    """Masked copies by the peer and by ours."""
    torch.set_num_threads(plan.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = write_checkpoint(plan.saturation_size, Path(name))
        return [compare(folder, protein(plan.residues), plan)]


def compare(folder: Path, sequence: str, plan: Plan) -> Case:
    """Time the peer and ours in turn."""
    peer, copies, size = reference(folder), plan.copies, plan.saturation_size
    models = {way: Ours(folder, sequence, dtype_of(way), TOKEN_BUDGET) for way in OURS}
    trial = {batch: timed(peer_log_odds, peer, sequence, batch, copies) for batch in BATCHES}
    best = min(trial, key=lambda batch: trial[batch])
    expected = peer_log_odds(peer, sequence, best, copies)
    rows = {way: Row(way) for way in (BASE, *OURS)}
    for way, model in models.items():
        rows[way].max_abs = float(np.abs(model.log_odds(copies) - expected).max())
    for _ in range(plan.rounds):
        rows[BASE].values.append(timed(peer_log_odds, peer, sequence, best, copies))
        for way, model in models.items():
            rows[way].values.append(timed(model.log_odds, copies))
    return Case(
        f"saturation, ESM-2 {size}, {copies} of the masked copies of {len(sequence)} residues",
        BASE,
        list(rows.values()),
        residues=copies * len(sequence),
        note=f"transformers in batches of {best}, the fastest for it; max-abs of log-odds",
    )


def whole(plan: Plan) -> None:
    """Time the whole command, and scans."""
    with tempfile.TemporaryDirectory() as name:
        folder, sequence = Path(name), protein(plan.residues)
        model = write_checkpoint(plan.saturation_size, folder / "model")
        (folder / "wt.fasta").write_text(f">a\n{sequence}\n")
        options = ["--quiet", "--model", model, "--threads", plan.threads]
        options += ["--token-budget", TOKEN_BUDGET]
        inputs = ["--saturation", folder / "wt.fasta", folder / "out.h5"]
        seconds = run("score", *options, *inputs)
        print(f"the whole command, {plan.residues} residues: {seconds:.1f} s")
        count_passes(folder, sequence, options, random.Random(0))


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_flags(parser)
    add_fields(parser, ("saturation_size", "residues", "copies"))
    parser.add_argument("--whole", action="store_true", help="run the whole command instead")
    args = parser.parse_args()
    if args.whole:
        whole(plan_of(args))
    else:
        show(measure(plan_of(args)), args)


def count_passes(
    folder: Path, sequence: str, options: list[object], letters: random.Random
) -> None:
    """Score a scan and print how often the model ran."""
    import contextlib
    import io

    mutants = scan(sequence, letters)
    (folder / "scan.csv").write_text("mutant\n" + "".join(f"{one}\n" for one in mutants))
    for strategy in ("masked_marginal", "wt_marginal"):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            seconds = run(
                *("score", *options[1:], "--strategy", strategy, "--variants"),
                *(folder / "scan.csv", folder / "wt.fasta", folder / "out.csv"),
            )
        passes = re.search(r"([\d,]+) passes", said.getvalue())
        assert passes
        print(f"scan of {len(mutants):,} variants, {strategy}: {passes[1]} passes, {seconds:.1f} s")


if __name__ == "__main__":
    main()
