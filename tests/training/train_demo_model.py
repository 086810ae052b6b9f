"""Train the packaged demo model: a small ESM-2, by masked language modelling on UniProt proteins.

The data are the 20,000 sequences of `DB.fasta.gz` in Debian's package mmseqs2-examples:

    apt-get download mmseqs2-examples && dpkg-deb -x mmseqs2-examples_*.deb mmseqs2-examples
    python tests/training/train_demo_model.py --out demo_model \\
        mmseqs2-examples/usr/share/doc/mmseqs2/example-data/DB.fasta.gz

Held-out proteins are drawn at random; every training sequence that shares more than 2 % of its
6-mers with one of them is dropped (proteins with 52 % identical residues share about as many).
Training draws families evenly, and a member of each at random, as ESM-2 did with UniRef clusters,
because some proteins have dozens of relatives in the data and others none. The same data, seed,
steps and thread count give the same weights on the same machine.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from Bio import SeqIO

from esm_pipeline.model import EsmConfig, EsmForMaskedLM, EsmTokenizer, PackedLayout

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
KMER = 6
SHARED_KMERS = 0.02
FAMILY_KMER = 8
FAMILY_HASHES = 32
HELD_OUT = 400
CROPS, CROP_SHARES = (254, 510, 1022), (0.5, 0.3, 0.2)
"""Most residues of a window in a batch, and the share of batches. With short windows alone, the
cheapest, perplexity on whole proteins rose after a million residues while it fell on windows."""

MASKED = 0.15
CONFIG = EsmConfig(
    vocab_size=33,
    mask_token_id=32,
    pad_token_id=1,
    hidden_size=192,
    num_hidden_layers=4,
    num_attention_heads=6,
    intermediate_size=768,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=512,  # of a table that rotary models save but never use
    layer_norm_eps=1e-5,
    position_embedding_type="rotary",
    emb_layer_norm_before=False,
    token_dropout=True,
    architectures=["EsmForMaskedLM"],
)


class Data(NamedTuple):
    """Token ids of the proteins, without BOS and EOS; the training ones by family."""

    families: list[list[np.ndarray]]
    held_out: list[np.ndarray]
    digest: str
    dropped: int


def load(path: Path, seed: int) -> Data:
    """Read, remove exact duplicates, split, and drop training sequences near the held-out ones."""
    packed = path.read_bytes()
    plain = gzip.decompress(packed)
    text = plain.decode("ascii")
    unique = {str(r.seq).upper() for r in SeqIO.parse(io.StringIO(text), "fasta")}
    sequences = sorted(unique)
    order = np.random.default_rng(seed).permutation(len(sequences))
    held_out = [sequences[i] for i in order[:HELD_OUT]]
    rest = [sequences[i] for i in order[HELD_OUT:]]
    near = near_duplicates(rest, held_out)
    tokenizer = EsmTokenizer.standard()
    train = [sequence for sequence, is_near in zip(rest, near, strict=True) if not is_near]
    groups: dict[int, list[np.ndarray]] = {}
    for sequence, family in zip(train, families(train), strict=True):
        groups.setdefault(family, []).append(tokenizer.encode_residues(sequence)[1:-1])
    held = [tokenizer.encode_residues(s)[1:-1] for s in held_out]
    return Data(list(groups.values()), held, hashlib.sha256(plain).hexdigest(), int(near.sum()))


def kmers(sequences: list[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct k-mers of each sequence as numbers, and the sequence each belongs to; flat."""
    codes, owners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for place, sequence in enumerate(sequences):
        letters = np.frombuffer(sequence.encode(), np.uint8).astype(np.int64) - ord("A")
        if len(letters) >= size:
            windows = np.lib.stride_tricks.sliding_window_view(letters, size)
            own = np.unique(windows @ (32 ** np.arange(size)))
            codes.append(own)
            owners.append(np.full(len(own), place))
    return np.concatenate(codes), np.concatenate(owners)


def near_duplicates(rest: list[str], held_out: list[str]) -> np.ndarray:
    """(len(rest),) bool: shares more than SHARED_KMERS of its k-mers with one held-out sequence."""
    held_codes, held_owners = kmers(held_out, KMER)
    order = np.argsort(held_codes, kind="stable")
    held_codes, held_owners = held_codes[order], held_owners[order]
    codes, owners = kmers(rest, KMER)
    first = np.searchsorted(held_codes, codes, "left")
    counts = np.searchsorted(held_codes, codes, "right") - first
    hits = np.repeat(np.arange(len(codes)), counts)
    offsets = np.arange(len(hits)) - np.repeat(np.cumsum(counts) - counts, counts)
    pairs = owners[hits] * len(held_out) + held_owners[np.repeat(first, counts) + offsets]
    pair, shared = np.unique(pairs, return_counts=True)
    smaller = np.minimum(
        np.bincount(owners, minlength=len(rest))[pair // len(held_out)],
        np.bincount(held_owners, minlength=len(held_out))[pair % len(held_out)],
    )
    near = np.zeros(len(rest), bool)
    near[pair[shared > SHARED_KMERS * smaller] // len(held_out)] = True
    return near


def families(sequences: list[str]) -> list[int]:
    """A number for each sequence, shared by those that are linked, as in Linclust.

    Sequences are linked that share one of their FAMILY_HASHES k-mers of lowest hash.
    """
    codes, owners = kmers(sequences, FAMILY_KMER)
    hashes = (codes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(16)
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    rank = np.arange(len(owners)) - np.searchsorted(owners, owners, "left")
    hashes, owners = hashes[rank < FAMILY_HASHES], owners[rank < FAMILY_HASHES]
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    family = list(range(len(sequences)))

    def root(one: int) -> int:
        while family[one] != one:
            family[one] = family[family[one]]
            one = family[one]
        return one

    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    for one, other in zip(owners[same].tolist(), owners[same + 1].tolist(), strict=True):
        family[root(one)] = root(other)
    return [root(one) for one in range(len(sequences))]


def batches(
    families: list[list[np.ndarray]], tokens: int, rng: np.random.Generator
) -> Iterator[list[np.ndarray]]:
    """Endless batches of windows: every epoch one window of one member of every family."""
    while True:
        batch: list[np.ndarray] = []
        size = 0
        crop = rng.choice(CROPS, p=CROP_SHARES)
        for place in rng.permutation(len(families)):
            sequence = families[place][rng.integers(len(families[place]))]
            start = rng.integers(0, max(1, len(sequence) - crop + 1))
            window = np.concatenate(([0], sequence[start : start + crop], [2]))
            if size + len(window) > tokens:
                yield batch
                batch, size = [], 0
                crop = rng.choice(CROPS, p=CROP_SHARES)
            batch.append(window)
            size += len(window)


def pack(batch: list[np.ndarray]) -> tuple[torch.Tensor, PackedLayout]:
    """Sequences of equal length side by side, laid end to end."""
    batch = sorted(batch, key=len)
    layout = PackedLayout.from_lengths([len(one) for one in batch])
    return torch.from_numpy(np.concatenate(batch)), layout


def corrupt(
    tokens: torch.Tensor, residues: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """BERT's rule: of 15 % of the residues 80 % become <mask>, 10 % another residue, 10 % stay.

    Returns the corrupted tokens (T,) and where a loss is taken (T,) bool.
    """
    draw = torch.rand(tokens.shape, generator=generator)
    chosen = torch.isin(tokens, residues) & (draw < MASKED)
    fate = torch.rand(tokens.shape, generator=generator)
    others = residues[torch.randint(len(residues), tokens.shape, generator=generator)]
    corrupted = torch.where(chosen & (fate < 0.8), CONFIG.mask_token_id, tokens)
    corrupted = torch.where(chosen & (fate >= 0.9), others, corrupted)
    return corrupted, chosen


def masked_logits(
    model: EsmForMaskedLM, tokens: torch.Tensor, layout: PackedLayout, where: torch.Tensor
) -> torch.Tensor:
    """Logits of the chosen tokens alone: (chosen, V)."""
    x = model.esm.embeddings(tokens, layout)
    # explicit attention: in windows of 256 its gradient takes half the fused kernel's time
    for step in model.esm.encoder.steps(x, layout, with_maps=model.training):
        x = step.x
    return model.logits(x[where])


@torch.no_grad()
def evaluate(
    model: EsmForMaskedLM, data: Data, residues: torch.Tensor, seed: int
) -> dict[str, float]:
    """Masked-residue perplexity and accuracy on the held-out proteins, and of two baselines.

    15 % of the standard residues of each protein are masked, the same ones at every call; uniform
    over 20 residues, and the residue frequencies of the training data, judge the same places.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = np.bincount(np.concatenate([s for f in data.families for s in f]), minlength=33)
    frequencies = torch.zeros(33)
    frequencies[residues] = torch.from_numpy(counts).float()[residues]
    log_frequencies = (frequencies / frequencies.sum()).log()
    loss, right, base, common, places = 0.0, 0, 0.0, 0, 0
    for sequence in data.held_out:
        tokens = torch.from_numpy(np.concatenate(([0], sequence, [2])))
        draw = torch.rand(tokens.shape, generator=generator)
        where = torch.isin(tokens, residues) & (draw < MASKED)
        if not bool(where.any()):
            continue
        shown = torch.where(where, CONFIG.mask_token_id, tokens)
        logits = masked_logits(model, shown, PackedLayout.from_lengths([len(tokens)]), where)
        truth = tokens[where]
        loss += float(F.cross_entropy(logits.double(), truth, reduction="sum"))
        right += int((logits.argmax(1) == truth).sum())
        base -= float(log_frequencies[truth].double().sum())
        common += int((truth == log_frequencies.argmax()).sum())
        places += len(truth)
    return {
        "places": places,
        "perplexity": math.exp(loss / places),
        "accuracy": right / places,
        "perplexity_frequencies": math.exp(base / places),
        "accuracy_frequencies": common / places,
        "perplexity_uniform": float(len(residues)),
        "accuracy_uniform": 1 / len(residues),
    }


def optimizers(model: EsmForMaskedLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for everything else."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layer." in name]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices, lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, flat, linear to zero over the last half."""
    return min(1.0, (step + 1) / 100, 2 * (steps - step) / steps)


def draw_curve(folder: Path) -> None:
    """Draw `curve.png` from what training left in `folder`: held-out perplexity, baseline."""
    from matplotlib.figure import Figure

    rows = np.genfromtxt(folder / "training.tsv", names=True)
    baseline = json.loads((folder / "training.json").read_text())["perplexity_frequencies"]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(baseline, color="0.5", linestyle="--", label="residue frequencies")
    axes.plot(rows["residues"] / 1e6, rows["held_out_perplexity"], "o-", ms=3, label="demo model")
    axes.set_xlabel("million residues of training")
    axes.set_ylabel("held-out perplexity")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(folder / "curve.png", dpi=120)


def train(args: argparse.Namespace) -> None:
    """Train, print and record the curve, save the model with its digest and figures."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    data = load(args.fasta, args.seed)
    residues = torch.tensor(EsmTokenizer.standard().convert_tokens_to_ids(list(RESIDUES)))
    proteins = sum(map(len, data.families))
    print(
        f"proteins: {proteins} train, in {len(data.families)} families; {len(data.held_out)} held "
        f"out, {data.dropped} dropped",
        flush=True,
    )
    model = EsmForMaskedLM(CONFIG)
    torch.nn.init.zeros_(model.esm.contact_head.regression.weight)  # no structures: untrained
    model.train()
    optimisers = optimizers(model, args.rate)
    generator = torch.Generator().manual_seed(args.seed)
    stream = batches(data.families, args.tokens, np.random.default_rng(args.seed + 1))
    args.out.mkdir(parents=True, exist_ok=True)
    curve = args.out / "training.tsv"
    curve.write_text(
        "step\tresidues\tseconds\ttrain_perplexity\theld_out_perplexity\theld_out_accuracy\n"
    )
    began, seen, recent = time.perf_counter(), 0, []
    for step in range(args.steps):
        tokens, layout = pack(next(stream))
        shown, where = corrupt(tokens, residues, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
            logits = masked_logits(model, shown, layout, where)
        loss = F.cross_entropy(logits.float(), tokens[where])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = args.rate * schedule(step, args.steps)
            optimiser.step()
            optimiser.zero_grad()
        seen += layout.tokens - 2 * len(layout.lengths)
        recent.append(loss.item())
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            model.eval()
            figures = evaluate(model, data, residues, args.seed)
            model.train()
            line = (
                f"{step + 1}\t{seen}\t{time.perf_counter() - began:.0f}\t"
                f"{math.exp(np.mean(recent)):.3f}\t{figures['perplexity']:.3f}\t{figures['accuracy']:.4f}"
            )
            print(line, flush=True)
            with curve.open("a") as out:
                out.write(line + "\n")
            recent = []
    model.save_pretrained(args.out)
    EsmTokenizer.standard().save_pretrained(args.out)
    record = {
        **figures,
        "parameters": model.num_parameters(),
        "data_sha256": data.digest,
        "training_proteins": proteins,
        "training_families": len(data.families),
        "held_out_proteins": len(data.held_out),
        "dropped_near_duplicates": data.dropped,
        "residues_seen": seen,
        "steps": args.steps,
        "tokens_per_step": args.tokens,
        "seed": args.seed,
        "threads": args.threads,
        "peak_rate": args.rate,
        "bfloat16": args.bfloat16,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - began),
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    draw_curve(args.out)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fasta", type=Path, help="DB.fasta.gz of mmseqs2-examples")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=200, help="steps between evaluations")
    parser.add_argument("--bfloat16", action="store_true", help="products in bfloat16")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
