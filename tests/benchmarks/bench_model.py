"""Our packed models beside transformers on real proteins: residues/s, ratios, share of the floor.

    python tests/benchmarks/bench_model.py [--size 8M|35M|150M] [--rounds 3] [--threads N]

Random weights of the true size, the demo proteins, logits of every residue. The peer runs as well
as it can be asked to: sdpa attention, sorted by length, padded batches of 4,096 tokens. All run in
turn in each round; the medians count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from Bio import SeqIO

from esm_pipeline import (
    EsmConfig,
    EsmForMaskedLM,
    EsmTokenizer,
    demo_model,
    iter_packed,
    optimize_for_inference,
)
from esm_pipeline.model.weights import reference_state
from esm_pipeline.tasks.batching import token_batches

SIZES = {"8M": (6, 320, 20), "35M": (12, 480, 20), "150M": (30, 640, 20), "650M": (33, 1280, 20)}
PEER_BUDGET = 4096
Run = Callable[[], dict[int, torch.Tensor]]


def settings(size: str) -> dict[str, object]:
    """The config of a published ESM-2."""
    layers, width, heads = SIZES[size]
    return {
        "vocab_size": 33,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "layer_norm_eps": 1e-5,
    }


def peer_run(model: torch.nn.Module, sequences: list[str]) -> Run:
    """The peer over all sequences, in padded batches of like length."""
    tokenizer = EsmTokenizer.standard()
    lengths = np.array([len(sequence) for sequence in sequences])

    def run() -> dict[int, torch.Tensor]:
        found = {}
        with torch.inference_mode():
            for batch in token_batches(lengths, PEER_BUDGET):
                encoded = tokenizer(
                    [sequences[i] for i in batch], padding=True, return_tensors="pt"
                )
                logits = model(**encoded).logits
                for row, place in enumerate(batch.tolist()):
                    found[place] = logits[row, : lengths[place] + 2]
        return found

    return run


def our_run(model: EsmForMaskedLM, sequences: list[str]) -> Run:
    """Our model over all sequences, packed."""

    def run() -> dict[int, torch.Tensor]:
        with torch.inference_mode():
            return dict(iter_packed(model, sequences, tokenizer=EsmTokenizer.standard()))

    return run


def matrix_rate(dtype: torch.dtype, width: int) -> float:
    """Operations/s that this machine's matrix product reaches at the model's shapes, best of 5."""
    x = torch.randn(4096, width).to(dtype)
    w = torch.ops.mkldnn._reorder_linear_weight(torch.randn(4 * width, width).to(dtype), 4096)
    seconds = []
    with torch.inference_mode():
        for _ in range(5):
            start = time.perf_counter()
            torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "none")
            seconds.append(time.perf_counter() - start)
    return 2 * 4096 * width * 4 * width / min(seconds)


def operations(size: str, lengths: list[int]) -> float:
    """Multiplications and additions of the layers over all tokens: projections and attention."""
    layers, width, _ = SIZES[size]
    return sum(layers * (24 * width**2 * n + 4 * width * n * n) for n in (x + 2 for x in lengths))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="35M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    records = SeqIO.parse(demo_model().parent / "demo.fasta", "fasta")
    sequences = [str(record.seq).replace("*", "") for record in records]
    ours = EsmForMaskedLM(EsmConfig(**settings(args.size))).eval()
    peer = transformers.EsmForMaskedLM(transformers.EsmConfig(**settings(args.size))).eval()
    peer.load_state_dict(reference_state(ours), strict=False)
    runs = {
        "transformers float32": peer_run(peer, sequences),
        "ours float32": our_run(ours, sequences),
        "ours float32, optimised": our_run(optimize_for_inference(ours), sequences),
        "ours bfloat16, optimised": our_run(
            optimize_for_inference(ours, torch.bfloat16), sequences
        ),
    }
    results = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    lengths = [len(sequence) for sequence in sequences]
    work = operations(args.size, lengths)
    base = statistics.median(seconds["transformers float32"])
    size = f"{len(sequences)} proteins, {sum(lengths)} residues"
    print(f"ESM-2 {args.size}, {size}, {args.threads} threads")
    print(f"{'':<26}{'residues/s':>11}{'x peer':>8}{'% floor':>9}{'max-abs':>10}")
    for name, own in seconds.items():
        median = statistics.median(own)
        dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
        share = work / median / matrix_rate(dtype, SIZES[args.size][1])
        worst = max(
            float((logits.float() - results["transformers float32"][place]).abs().max())
            for place, logits in results[name].items()
        )
        speed = sum(lengths) / median
        print(f"{name:<26}{speed:>11.0f}{base / median:>8.2f}{share:>9.0%}{worst:>10.1e}")


if __name__ == "__main__":
    main()
