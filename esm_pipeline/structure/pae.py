"""Predicted aligned errors as files: the AlphaFold database's JSON, compact npz, and mmCIF.

The files have the residues that the structure has: a residue without atoms has no row.

[i, j] is the expected error of residue j, in Å, when prediction and truth are aligned on residue i.
Stored in steps of 1/8 Å, far finer than the accuracy of the prediction: one byte for up to 31.75 Å.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float32, UInt8
from esm_pipeline.structure.modelcif import metric_of_errors
from esm_pipeline.structure.structure import Structure, chain_name

STEP = 0.125
"""Å between neighbouring stored values."""

MOST = 31.75
"""Å: the largest error that the model can predict."""


def to_steps(error: NDArray[np.floating]) -> UInt8:
    """Å → the nearest multiple of `STEP`, 0 to 255; 255 for NaN."""
    steps: UInt8 = np.clip(np.nan_to_num(np.rint(error / STEP), nan=255), 0, 255).astype(np.uint8)
    return steps


def to_angstrom(steps: UInt8) -> Float32:
    """Multiples of `STEP` → Å."""
    return steps * np.float32(STEP)


def json_bytes(structure: Structure) -> bytes:
    """The errors as JSON of the AlphaFold database, in Å with one decimal.

    ChimeraX, PAE Viewer, Mol* and other viewers read it. The chain and number of each row are added
    under the names that AlphaFold 3 uses: residues without atoms have no row.
    """
    texts = np.array([f"{value:.1f}" for value in to_angstrom(np.arange(256, dtype=np.uint8))])
    steps, chains, numbers = error_rows(structure)
    rows = ",".join(f"[{','.join(row)}]" for row in texts[steps].tolist())
    head = f'[{{"predicted_aligned_error":[{rows}]'
    named = f'"token_chain_ids":{compact(chains)},"token_res_ids":{compact(numbers)}'
    return f'{head},"max_predicted_aligned_error":{MOST},{named}}}]\n'.encode()


def compact(values: list[Any]) -> str:
    """JSON without spaces."""
    return json.dumps(values, separators=(",", ":"))


def npz_bytes(structure: Structure) -> bytes:
    """The errors as npz, R residues with atoms.

    `pae` (R, R) uint8; `step`, the size of one step in Å; `chain` and `residue` (R,), the name of
    the chain and the number of each row.
    """
    steps, chains, numbers = error_rows(structure)
    file = io.BytesIO()
    np.savez_compressed(
        file,
        pae=steps,
        step=np.float32(STEP),
        chain=np.array(chains),
        residue=np.array(numbers, np.int32),
    )
    return file.getvalue()


def cif_bytes(structure: Structure, name: str) -> bytes:
    """The errors as the associated file of a ModelCIF file with the data block `name`.

    A row for each pair of residues with atoms, about 40 bytes.
    """
    metric = metric_of_errors(structure)
    steps, chains, numbers = error_rows(structure)
    texts = [f"{value:.3f}" for value in to_angstrom(np.arange(256, dtype=np.uint8)).tolist()]
    kinds = [name for name, there in zip(structure.names, structure.present, strict=True) if there]
    named = [" ".join(map(str, one)) for one in zip(chains, numbers, kinds, strict=True)]
    head = [
        f"data_{name}",
        f"_entry.id {name}",
        "loop_",
        *(f"_ma_qa_metric.{item}" for item in ("id", "mode", "name", "type")),
        f"{metric} local-pairwise PAE PAE",
        "loop_",
        *(f"_ma_qa_metric_local_pairwise.{item}" for item in PAIR_ITEMS),
        "",
    ]
    parts, done = ["\n".join(head)], 0
    for one, row in zip(named, steps.tolist(), strict=True):
        parts += [
            f"{ordinal} 1 {one} {other} {metric} {texts[step]}\n"
            for ordinal, (other, step) in enumerate(zip(named, row, strict=True), done + 1)
        ]
        done += len(row)
    return "".join(parts).encode()


PAIR_ITEMS = (
    *("ordinal_id", "model_id", "label_asym_id_1", "label_seq_id_1", "label_comp_id_1"),
    *("label_asym_id_2", "label_seq_id_2", "label_comp_id_2", "metric_id", "metric_value"),
)


def error_rows(structure: Structure) -> tuple[UInt8, list[str], list[int]]:
    """The errors (R, R) between the R residues with atoms, in steps; their chains and numbers."""
    there = structure.present
    steps = structure.pae if there.all() else structure.pae[there][:, there]
    names = [chain_name(chain) for chain in structure.chains[there].tolist()]
    return steps, names, structure.numbers[there].tolist()
