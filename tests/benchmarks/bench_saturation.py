"""Saturation of one protein beside a loop over transformers, and passes of a deep mutational scan.

    python -m tests.benchmarks.bench_saturation [--size 8M|35M|150M] [--residues 300] [--copies 32]

Random weights of the true size. The peer runs as well as it can be asked to: sdpa attention, copies
of one length in batches of the size that is fastest for it, logits of all tokens. Both compute some
of the masked copies in turn, round by round; the fastest round counts, on the clock and of the
processor, for other work on the machine only makes rounds slower. With `--whole` the whole command
runs too, start and files included, and a scan of single and double mutants.
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
import transformers

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmTokenizer
from esm_pipeline.cli import main as esm_pipeline
from esm_pipeline.model.weights import reference_state
from esm_pipeline.sections import ScoreSettings
from esm_pipeline.tasks.marginals import LanguageModel, one_masked
from tests.benchmarks.bench_model import SIZES, settings

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
BATCHES = (4, 8, 16, 32)
MUTANTS = 5_000


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
        for answers in self.model.ask(passes, lambda _: [self.sequence], self.budget):
            own = answers.log_p[np.arange(len(answers.slot)), answers.wild_type]
            found[answers.slot] = answers.log_p[:, self.model.amino_acids()] - own[:, None]
        return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="35M")
    parser.add_argument("--residues", type=int, default=300)
    parser.add_argument("--copies", type=int, default=32, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--token-budget", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--whole", action="store_true", help="run the whole command as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    letters = random.Random(0)
    sequence = "".join(letters.choices(AMINO_ACIDS, k=args.residues))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = EsmForMaskedLM(EsmConfig(**settings(args.size))).eval()
        ours.save_pretrained(folder / "model")
        EsmTokenizer.standard().save_pretrained(folder / "model")
        peer = transformers.EsmForMaskedLM(transformers.EsmConfig(**settings(args.size))).eval()
        peer.load_state_dict(reference_state(ours), strict=False)
        del ours
        (folder / "wt.fasta").write_text(f">a\n{sequence}\n")
        compare(peer, folder / "model", sequence, args)
        options = ["--quiet", "--model", folder / "model", "--threads", args.threads]
        options += ["--token-budget", args.token_budget]
        if args.whole:
            inputs = ["--saturation", folder / "wt.fasta", folder / "out.h5"]
            seconds = run("score", *options, *inputs)
            print(f"the whole command, {args.residues} residues: {seconds:.1f} s")
            count_passes(folder, sequence, options, letters)


def compare(peer: torch.nn.Module, folder: Path, sequence: str, args: argparse.Namespace) -> None:
    """Time the peer and ours in turn, and print the fastest rounds."""
    copies = args.copies
    trial = {batch: timed(peer_log_odds, peer, sequence, batch, copies) for batch in BATCHES}
    best = min(trial, key=lambda batch: trial[batch][1])
    models = {
        dtype: Ours(folder, sequence, dtype, args.token_budget) for dtype in ("float32", "bfloat16")
    }
    found = models["float32"].log_odds(copies)
    difference = np.abs(found - peer_log_odds(peer, sequence, best, copies)).max()
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("peer", *models)}
    for _ in range(args.rounds):
        rounds["peer"].append(timed(peer_log_odds, peer, sequence, best, copies))
        for dtype, model in models.items():
            rounds[dtype].append(timed(model.log_odds, copies))
    print(
        f"ESM-2 {args.size}, {copies} masked copies of {args.residues} residues, {args.threads} "
        f"threads, {args.rounds} rounds in turn, the fastest; max-abs {difference:.1e}"
    )
    for what, told in (
        ("peer", f"transformers, batches of {best}"),
        ("float32", "ours float32"),
        ("bfloat16", "ours bfloat16"),
    ):
        clock, processor = map(min, zip(*rounds[what], strict=True))
        base = list(map(min, zip(*rounds["peer"], strict=True)))
        print(
            f"{told:<28}{clock:>8.2f} s on the clock{base[0] / clock:>7.2f} x"
            f"{processor:>9.2f} s of processor{base[1] / processor:>7.2f} x"
        )


def timed(function: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Seconds on the clock and of the processor that a call takes."""
    clock, processor = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - clock, time.process_time() - processor


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
