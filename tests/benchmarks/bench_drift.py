"""How far bfloat16 and int8 are from float32: logits, embeddings, scores of variants, confidences.

    python -m tests.benchmarks.bench_drift [--model demo] [--count 12]

On real proteins that int8 did not find its steps on. Values are taken as users get them: by
`iter_packed`, and by the `score` command, every substitution of every protein. Spearman's
correlation is of the scores of one protein, the least of all proteins; the rest is relative to the
root mean square of what it is of. Confidences are of a folding model with random weights, since no
other is at hand: a small language model, and 8 blocks of the published widths.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from esm_pipeline import (
    EsmForMaskedLM,
    EsmForProteinFolding,
    demo_model,
    iter_packed,
    optimize_for_inference,
)
from esm_pipeline.cli import main as esm_pipeline
from tests.benchmarks.bench_fold import spread
from tests.benchmarks.bench_fold_memory import build
from tests.benchmarks.machine import DTYPES
from tests.benchmarks.proteins import proteins, write_fasta

Floats = NDArray[np.float64]
TRUNK_BLOCKS, FOLDED = 8, 6
FOLDING: dict[str, dict[str, torch.dtype]] = {
    "float32": {"dtype": torch.float32},
    "language model in bfloat16": {"dtype": torch.bfloat16},
    "trunk's pairs in bfloat16": {"trunk_dtype": torch.bfloat16},
    "both": {"dtype": torch.bfloat16, "trunk_dtype": torch.bfloat16},
}


def values(model: EsmForMaskedLM, sequences: list[str], output: str) -> dict[int, Floats]:
    """Logits or states of each sequence."""
    found = iter_packed(model, sequences, output=output)  # type: ignore[arg-type]
    return {i: value[1:-1].double().numpy() for i, value in found}


def scores(model: str, fasta: Path, dtype: str) -> pd.DataFrame:
    """Every substitution of every protein: columns protein and score."""
    out = fasta.with_name(f"{dtype}.tsv")
    arguments = ["score", "--saturation", "--model", model, "--dtype", dtype, "--quiet", fasta, out]
    assert esm_pipeline([str(one) for one in arguments]) == 0
    return pd.read_csv(out, sep="\t")


def relative(one: Floats, other: Floats) -> tuple[float, float]:
    """Root mean square and largest difference, beside the root mean square of `other`."""
    size, gap = np.sqrt((other**2).mean()), one - other
    return float(np.sqrt((gap**2).mean()) / size), float(np.abs(gap).max() / size)


def compare(dtype: str, model: str, sequences: list[str], fasta: Path) -> dict[str, object]:
    """A row of the table."""
    plain = EsmForMaskedLM.from_pretrained(demo_model() if model == "demo" else model)
    fast = optimize_for_inference(plain, DTYPES[dtype])
    row: dict[str, object] = {"dtype": dtype}
    for output in ("logits", "representation"):
        found, wanted = values(fast, sequences, output), values(plain, sequences, output)
        told = relative(*(np.concatenate([x[i] for i in sorted(x)]) for x in (found, wanted)))
        row[output] = "{:.1e} (most {:.1e})".format(*told)
        if output == "representation":
            means = [np.stack([x[i].mean(0) for i in sorted(x)]) for x in (found, wanted)]
            row["mean embedding"] = "{:.1e} (most {:.1e})".format(*relative(*means))
    found, wanted = scores(model, fasta, dtype), scores(model, fasta, "float32")
    column = found.columns[-1]
    told = [
        one[column].corr(wanted.loc[one.index, column], method="spearman")
        for _, one in found.groupby(found.columns[0])
    ]
    row["masked marginals, Spearman"] = f"{min(told):.5f}"
    row["largest change"] = f"{(found[column] - wanted[column]).abs().max():.3f}"
    return row


def fold_with(model: EsmForProteinFolding, sequences: list[str]) -> Floats:
    """pLDDT of all residues."""
    found = [model.infer(one, num_recycles=1, compact=True) for one in sequences]
    return np.concatenate([one["plddt"][0, :, 1].double().numpy() for one in found])


def confidences(sequences: list[str]) -> pd.DataFrame:
    """pLDDT with parts of a folding model in bfloat16, beside float32."""
    model = spread(build(TRUNK_BLOCKS))
    wanted = fold_with(model, sequences)
    rows = {}
    for name, options in FOLDING.items():
        gap = np.abs(fold_with(optimize_for_inference(model, **options), sequences) - wanted)
        rows[name] = {"pLDDT, mean": f"{gap.mean():.1e}", "most": f"{gap.max():.1e}"}
    low, high = np.quantile(wanted, [0.05, 0.95])
    print(f"pLDDT of {len(wanted)} residues, 5 % to 95 %: {low:.1f} to {high:.1f}")
    return pd.DataFrame(rows).T


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--count", type=int, default=12, help="proteins")
    args = parser.parse_args()
    torch.manual_seed(0)
    sequences = proteins(args.count)
    with tempfile.TemporaryDirectory() as name:
        fasta = write_fasta(Path(name) / "proteins.fasta", sequences)
        rows = [compare(dtype, args.model, sequences, fasta) for dtype in ("bfloat16", "int8")]
    print(pd.DataFrame(rows).set_index("dtype").T.to_string())
    print()
    with torch.inference_mode():
        print(confidences(sorted(sequences, key=len)[:FOLDED]).to_string())


if __name__ == "__main__":
    main()
