"""Saturation of one protein beside a loop over transformers, and passes of a deep mutational scan.

    python tests/benchmarks/bench_saturation.py [--size 8M|35M|150M] [--residues 300] [--rounds 3]

Random weights of the true size. The peer runs as well as it can be asked to: sdpa attention, copies
of one length in batches of the size that is fastest for it, logits of all tokens, in turn with ours
in each round; the medians count. The scan has single and double mutants of the same protein.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from esm_pipeline import EsmConfig, EsmForMaskedLM, EsmTokenizer, open_results
from esm_pipeline.cli import main as esm_pipeline
from esm_pipeline.model.weights import reference_state
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
    """Run the command line; seconds that it took in the model, as it tells."""
    start = time.perf_counter()
    assert esm_pipeline([str(argument) for argument in arguments]) == 0
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="35M")
    parser.add_argument("--residues", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--token-budget", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
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
        (folder / "wt.fasta").write_text(f">a\n{sequence}\n")
        options = ["--quiet", "--model", folder / "model", "--threads", args.threads]
        options += ["--token-budget", args.token_budget]
        inputs = ["--saturation", folder / "wt.fasta", folder / "out.h5"]
        trial = {batch: timed(peer, sequence, batch, 2 * max(BATCHES)) for batch in BATCHES}
        best = min(trial, key=trial.__getitem__)
        seconds: dict[str, list[float]] = {name: [] for name in ("peer", "float32", "bfloat16")}
        for _ in range(args.rounds):
            seconds["peer"].append(timed(peer, sequence, best))
            for dtype in ("float32", "bfloat16"):
                seconds[dtype].append(run("score", *options, "--dtype", dtype, *inputs))
                if dtype == "float32":
                    with open_results(folder / "out.h5") as results:
                        found = results["a"].log_odds
        difference = np.abs(found - peer_log_odds(peer, sequence, best)).max()
        print(
            f"ESM-2 {args.size}, every substitution of {args.residues} residues, "
            f"{args.threads} threads, {args.rounds} rounds, medians; max-abs {difference:.1e}"
        )
        base = statistics.median(seconds["peer"])
        for what, told in (
            ("peer", f"transformers, batches of {best}"),
            ("float32", "ours float32, the whole command"),
            ("bfloat16", "ours bfloat16, the whole command"),
        ):
            median = statistics.median(seconds[what])
            print(f"{told:<36}{median:>8.1f} s{base / median:>7.2f} x")
        count_passes(folder, sequence, options, letters)


def timed(peer: torch.nn.Module, sequence: str, batch: int, count: int | None = None) -> float:
    """Seconds that the peer takes."""
    start = time.perf_counter()
    peer_log_odds(peer, sequence, batch, count)
    return time.perf_counter() - start


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
