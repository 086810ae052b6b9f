"""Output of folding → structures, one for each sequence, and the text of PDB files.

Writes PDB text, because the reference class does; the format itself is in `structure/pdb.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esm_pipeline.model.folding.output import EsmForProteinFoldingOutput
from esm_pipeline.structure import residues
from esm_pipeline.structure.pae import to_steps
from esm_pipeline.structure.pdb import pdb_text
from esm_pipeline.structure.structure import MEANINGLESS, RANDOM, Structure

__all__ = ["RANDOM", "pdb_texts", "structures_of"]

FIELDS = {
    "aatype": "aatype",
    "chains": "chain_index",
    "positions": "positions",
    "plddt": "plddt",
    "error": "predicted_aligned_error",
    "mean_plddt": "mean_plddt",
    "ptm": "ptm",
    "iptm": "iptm",
    "chain_iptm": "chain_iptm",
    "mask": "attention_mask",
    "atoms": "atom37_atom_exists",
}
"""The fields of the model's output that a structure needs."""


def structures_of(output: EsmForProteinFoldingOutput | Mapping[str, Tensor]) -> Iterator[Structure]:
    """The structure of each sequence of a batch, without padding.

    Residues whose atoms a script has removed from `atom37_atom_exists`, such as its own linker, are
    left out too.
    """
    arrays = {name: to_array(output[field]) for name, field in FIELDS.items()}
    arrays["positions"] = arrays["positions"][-1]  # after the last block
    removed = residues.ATOM14_MASK[arrays["aatype"]].any(-1) & ~arrays.pop("atoms").any(-1)
    for place, kept in enumerate(arrays.pop("mask").astype(bool) & ~removed):
        one = {name: value[place] for name, value in arrays.items()}
        one["error"] = one["error"][kept][:, kept]
        one |= {name: one[name][kept] for name in ("aatype", "chains", "positions", "plddt")}
        yield build_structure(one)


def to_array(values: Tensor) -> NDArray[Any]:
    """A tensor as an array; floats in float32."""
    values = values.detach()
    array: NDArray[Any] = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return array


def build_structure(one: dict[str, NDArray[Any]]) -> Structure:
    """A structure from the output for one sequence, under the names of `FIELDS`."""
    aatype = one["aatype"].astype(np.int64)
    has_atom = residues.ATOM14_MASK[aatype]
    by_atom = np.take_along_axis(one["plddt"], residues.ATOM14_TO_ATOM37[aatype], axis=1)
    iptm, count = float(one["iptm"]), int(one["chains"].max(initial=0)) + 1
    return Structure(
        aatype=aatype,
        chains=one["chains"].astype(np.int64),
        positions=np.where(has_atom[..., None], one["positions"], 0).astype(np.float32),
        plddt=np.where(has_atom, by_atom, 0).astype(np.float32),
        pae=to_steps(one["error"]),
        mean_plddt=float(one["mean_plddt"]),
        ptm=float(one["ptm"]),
        iptm=None if np.isnan(iptm) else iptm,
        chain_iptm=None if np.isnan(iptm) else one["chain_iptm"][:count, :count],
    )


def pdb_texts(
    output: EsmForProteinFoldingOutput | Mapping[str, Tensor], *, random: bool = False
) -> list[str]:
    """The PDB file of each sequence of a batch; a remark says if weights are `random`.

    Raises InputError for a structure without atoms, or one that does not fit into a PDB file.
    """
    remark = {"": MEANINGLESS} if random else {}
    return [
        pdb_text(structure, "Predicted structure", remark | structure.facts)
        for structure in structures_of(output)
    ]
