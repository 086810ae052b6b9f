"""Predicted aligned errors as files: the AlphaFold database's JSON, and compact npz.

[i, j] is the error, in Å, expected of residue j where prediction and truth are aligned on residue
i. Kept in steps of 1/8 Å, far below what the number means: 0.125 to 31.75 as one byte.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_pipeline.arrays import Float32, UInt8
from esm_pipeline.errors import InputError

STEP = 0.125
"""Å between neighbouring values of what is kept."""

MOST = 31.75
"""Å, the largest error that the model can predict."""


def to_steps(error: NDArray[np.floating]) -> UInt8:
    """Å → steps of `STEP`, the nearest; 255 for what is no number."""
    steps: UInt8 = np.clip(np.nan_to_num(np.rint(error / STEP), nan=255), 0, 255).astype(np.uint8)
    return steps


def to_angstrom(steps: UInt8) -> Float32:
    """Steps → Å."""
    return steps * np.float32(STEP)


def json_bytes(steps: UInt8) -> bytes:
    """(R, R) steps as the AlphaFold database writes them, in Å with one digit.

    Viewers read it: ChimeraX, PAE Viewer, Mol* and others.
    """
    texts = np.array([f"{value:.1f}" for value in to_angstrom(np.arange(256, dtype=np.uint8))])
    rows = ",".join(f"[{','.join(row)}]" for row in texts[steps].tolist())
    head = f'[{{"predicted_aligned_error":[{rows}]'
    return f'{head},"max_predicted_aligned_error":{MOST}}}]\n'.encode()


def npz_bytes(steps: UInt8) -> bytes:
    """(R, R) steps as npz: `pae` (R, R) uint8, and `step`, the Å that one of them stands for."""
    file = io.BytesIO()
    np.savez_compressed(file, pae=steps, step=np.float32(STEP))
    return file.getvalue()


def read_pae(path: Path) -> Float32:
    """(R, R) Å of a file of either kind. Raises InputError for any other."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return np.asarray(file["pae"] * file["step"], np.float32)
        (found,) = json.loads(path.read_text(encoding="utf-8"))
        return square(found["predicted_aligned_error"])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: no predicted aligned error ({error}); give a .json or .npz of `fold`"
        ) from None


def square(rows: Any) -> Float32:
    """`rows` as an array. Raises ValueError unless there are as many as each is long."""
    values = np.array(rows, np.float32)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError("not a square")
    return values
