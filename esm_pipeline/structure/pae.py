"""Predicted aligned errors as files: the AlphaFold database's JSON, and compact npz.

[i, j] is the expected error of residue j, in Å, when prediction and truth are aligned on residue i.
Stored in steps of 1/8 Å, far finer than the accuracy of the prediction: one byte for up to 31.75 Å.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float32, UInt8

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


def json_bytes(steps: UInt8) -> bytes:
    """(R, R) steps as JSON of the AlphaFold database, in Å with one decimal.

    ChimeraX, PAE Viewer, Mol* and other viewers read it.
    """
    texts = np.array([f"{value:.1f}" for value in to_angstrom(np.arange(256, dtype=np.uint8))])
    rows = ",".join(f"[{','.join(row)}]" for row in texts[steps].tolist())
    head = f'[{{"predicted_aligned_error":[{rows}]'
    return f'{head},"max_predicted_aligned_error":{MOST}}}]\n'.encode()


def npz_bytes(steps: UInt8) -> bytes:
    """(R, R) steps as npz: `pae` (R, R) uint8, and `step`, the size of one step in Å."""
    file = io.BytesIO()
    np.savez_compressed(file, pae=steps, step=np.float32(STEP))
    return file.getvalue()
