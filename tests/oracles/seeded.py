"""Numbers that follow from a seed and a name alone, whatever versions are installed. Needs numpy.

PCG64's raw stream is fixed for ever; what `numpy.random.Generator` makes of it may change.
"""

from __future__ import annotations

import zlib

import numpy as np


def uniform(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float64 numbers between −1 and 1."""
    stream = np.random.PCG64([seed, zlib.crc32(name.encode())])
    bits = stream.random_raw(int(np.prod(shape))) >> np.uint64(11)
    return (bits * 2.0**-52 - 1).reshape(shape)


def weight(key: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A weight of the reference's `key`, at which every part of a model matters."""
    noise = uniform(key, shape, seed)
    is_norm = key.endswith("weight") and len(shape) == 1
    return 1 + 0.3 * noise if is_norm else 0.5 * noise


def residues(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Token ids of the 20 amino acids."""
    return np.floor(14 + 10 * uniform(name, shape, seed)).astype(np.int64)
