"""Structures for tests, with atoms at random places, and readers of their files."""

from __future__ import annotations

import csv
import gzip
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from esm_pipeline.formats.results.layout import RecordRow
from esm_pipeline.formats.results.structures import ARRAYS, Structures, write_structures
from esm_pipeline.formats.results.writer import RaggedWriter
from esm_pipeline.structure import residues
from esm_pipeline.structure.structure import Structure
from tests.oracles.peptides import HELIX, peptide

EVERY = residues.LETTERS[: residues.UNKNOWN]
FACTS = {"software": "esm_pipeline 0.1", "model": "some/model", "num_recycles": "3"}


def made_up(*chains: str, seed: int = 0, spread: float = 30.0) -> Structure:
    """A structure of `chains`, sequences of letters."""
    random = np.random.default_rng(seed)
    size, count = sum(map(len, chains)), len(chains)
    pairs = np.triu(np.random.default_rng(seed).uniform(size=(count, count)), 1)
    return Structure(
        aatype=residues.encode(residues.folded_sequence("".join(chains))),
        chains=np.repeat(np.arange(len(chains)), [*map(len, chains)]),
        positions=(random.normal(size=(size, 14, 3)) * spread).astype(np.float32),
        plddt=random.uniform(0, 100, size=(size, 14)).astype(np.float32),
        pae=random.integers(2, 255, size=(size, size), dtype=np.uint8),
        mean_plddt=float(random.uniform(0, 100)),
        ptm=float(random.uniform()),
        iptm=float(random.uniform()) if count > 1 else None,
        letters="".join(chains),
        chain_iptm=with_diagonal(pairs + pairs.T) if count > 1 else None,
    )


def built(*chains: str, angles: tuple[float, float] = HELIX) -> Structure:
    """A structure of `chains` with sound geometry, helices by default, 40 Å apart."""
    found = made_up(*chains)
    parts = []
    for number, chain in enumerate(chains):
        positions, _ = peptide(residues.folded_sequence(chain), *angles)
        parts.append(positions.numpy() + np.array([0, 40.0 * number, 0]))
    positions = np.concatenate(parts).astype(np.float32)
    corner = positions[found.present, :4].min((0, 1))
    return replace(found, positions=positions - corner)  # within the range of a PDB file


def with_diagonal(matrix: np.ndarray) -> np.ndarray:
    """The matrix in float32 with nan on its diagonal."""
    found = matrix.astype(np.float32)
    np.fill_diagonal(found, np.nan)
    return found


def write_arrays(
    path: Path,
    structures: list[Structure],
    entries: list[RecordRow],
    bits: list[int] | None = None,
    **attributes: str,
) -> Path:
    """A `structures.h5` with one row a structure."""
    told = {
        "format": Structures.format,
        "model": "some/model",
        "revision": "",
        "weights_sha256": "ab" * 32,
        "dtype": "float32",
        "num_recycles": "3",
        "random_weights": "false",
        "flags": json.dumps(["clashes", "long"]),
        "software": json.dumps({"esm_pipeline": "0.1"}),
        **attributes,
    }
    lengths = np.array([len(one.aatype) for one in structures])
    with RaggedWriter(path, ARRAYS, lengths, len(entries), entries, told) as writer:
        for row, one in enumerate(structures):
            one_bits = bits[row] if bits else 0
            write_structures(writer, np.array([row]), [one], [64 * row], [one_bits])
    return path


def read_pae(path: Path) -> np.ndarray:
    """(R, R) Å of a file of predicted aligned errors, .json or .npz."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return np.asarray(file["pae"] * file["step"], np.float32)
    (found,) = json.loads(path.read_text())
    return np.array(found["predicted_aligned_error"], np.float32)


def read_member(place: Path) -> bytes:
    """A file that `structures.tsv` names, in a folder or an archive."""
    for archive in place.parents:
        if archive.suffix == ".tar":
            with tarfile.open(archive) as file:
                member = file.extractfile(str(place.relative_to(archive)))
                assert member
                return gzip.decompress(member.read())
    return place.read_bytes()


def read_structure(table: Path, key: str | int) -> bytes:
    """The file of the only structure of a record, named by id or index in a `structures.tsv`."""
    column = "id" if isinstance(key, str) else "index"
    with open(table, newline="") as handle:
        rows = [*csv.DictReader(handle, delimiter="\t")]
    (name,) = {row["file"] for row in rows if row[column] == str(key)}
    return read_member(table.parent / name)
