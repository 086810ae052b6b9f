"""One structure with a model of the published size: seconds and memory of loading and folding.

    python -m tests.benchmarks.bench_fold_full [--folder DIR] [--residues 64] [--threads N]

The shapes of ESM-2 3B and of a trunk of 48 blocks. The weights are random: the language model's in
bfloat16, the rest in float32, 8.5 GB in shards in DIR, which is made if it is not there. Needs some
14 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from esm_pipeline import EsmConfig, EsmForProteinFolding, EsmTokenizer, optimize_for_inference
from esm_pipeline.model.base import without_weights
from esm_pipeline.model.checkpoints.weights import reference_state
from esm_pipeline.model.folding.memory import fold_memory
from tests.benchmarks.bench_fold_memory import forget_peak, status
from tests.benchmarks.models import settings

GIGA = 1e9
SHARD = 2 * 10**9
LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def config_of() -> EsmConfig:
    """As the published model's."""
    stem = {**settings("650M"), "hidden_size": 2560, "intermediate_size": 4 * 2560}
    stem |= {"num_hidden_layers": 36, "num_attention_heads": 40}
    folding = {"fp16_esm": False, "trunk": {"num_blocks": 48}}
    return EsmConfig(is_folding_model=True, esmfold_config=folding, **stem)


def weights(config: EsmConfig) -> Iterator[tuple[str, Tensor]]:
    """The parameters by their names in a checkpoint, one at a time."""
    with without_weights():
        model = EsmForProteinFolding(config)
    generator = torch.Generator().manual_seed(0)
    for name, own in reference_state(model).items():
        if not own.is_floating_point():
            continue
        dtype = torch.bfloat16 if name.startswith("esm.") else torch.float32
        value = torch.empty(own.shape)
        if own.ndim > 1:
            value.normal_(0, 0.5 * own.shape[-1] ** -0.5, generator=generator)
        else:
            value.fill_(float(name.endswith("weight")))  # of norms
        yield name, value.to(dtype)


def write(folder: Path) -> None:
    """A checkpoint in shards, never more than one of them in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    config, places, shard = config_of(), {}, {}
    config.architectures = ["EsmForProteinFolding"]

    def put() -> None:
        name = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, value in weights(config):
        shard[name] = value
        if sum(one.nbytes for one in shard.values()) > SHARD:
            put()
    put()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    EsmTokenizer.standard().save_pretrained(folder)


def anonymous() -> int:
    """Bytes of this process that are not pages of files."""
    return status("RssAnon")


def main() -> None:
    """Write what is missing, load, fold, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(tempfile.gettempdir(), "esmfold_random")
    parser.add_argument("--folder", type=Path, default=folder)
    parser.add_argument("--residues", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plain", action="store_true", help="not optimized for inference")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not (args.folder / "config.json").exists():
        write(args.folder)
    start = time.perf_counter()
    if args.plain:
        model = EsmForProteinFolding.from_pretrained(args.folder, stem_dtype=torch.bfloat16)
    else:
        model = optimize_for_inference(
            EsmForProteinFolding.from_pretrained(args.folder, stem_dtype=torch.bfloat16),
            torch.bfloat16,
        )
    told = f"{status('VmHWM') / GIGA:.1f} GB resident at most, {anonymous() / GIGA:.1f} GB its own"
    print(f"loaded in {time.perf_counter() - start:.1f} s: {told}", flush=True)
    forget_peak()
    sequence = (LETTERS * args.residues)[: args.residues]
    start, processor = time.perf_counter(), time.process_time()
    output = model.infer(sequence, num_recycles=0, compact=True)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    assert output.positions is not None
    assert bool(output.positions.isfinite().all())
    beside = fold_memory(model.config, 1, args.residues, None, stem_dtype=torch.bfloat16).total
    print(
        f"{args.residues} residues, one pass, {args.threads} threads: {seconds:.1f} s, "
        f"{processor:.1f} s of processors; {status('VmHWM') / GIGA:.1f} GB resident at most, pages "
        f"of files among them, {anonymous() / GIGA:.1f} GB its own; {beside / GIGA:.2f} GB beside "
        "the weights by the formula"
    )


if __name__ == "__main__":
    main()
