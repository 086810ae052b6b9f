"""What folding returns as structures, one for each sequence, and as the text of PDB files.

The one module of the model that knows a file format: the reference's class writes PDB text itself.
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
from esm_pipeline.structure.structure import MEANINGLESS, RANDOM, Structure, pdb_text

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
    "mask": "attention_mask",
    "atoms": "atom37_atom_exists",
}
"""What is taken of the model's output."""


def structures_of(output: EsmForProteinFoldingOutput | Mapping[str, Tensor]) -> Iterator[Structure]:
    """The structure of each sequence of a batch, padding left out.

    So are residues whose atoms a script has taken out of `atom37_atom_exists`, a linker of its own.
    """
    arrays = {name: in_memory(output[field]) for name, field in FIELDS.items()}
    arrays["positions"] = arrays["positions"][-1]  # of the last block
    taken = residues.ATOM14_MASK[arrays["aatype"]].any(-1) & ~arrays.pop("atoms").any(-1)
    for place, shown in enumerate(arrays.pop("mask").astype(bool) & ~taken):
        one = {name: value[place] for name, value in arrays.items()}
        one["error"] = one["error"][shown][:, shown]
        one |= {name: one[name][shown] for name in ("aatype", "chains", "positions", "plddt")}
        yield predicted(one)


def in_memory(values: Tensor) -> NDArray[Any]:
    """`values` as an array; floats in float32."""
    values = values.detach()
    array: NDArray[Any] = (values.float() if values.is_floating_point() else values).cpu().numpy()
    return array


def predicted(one: dict[str, NDArray[Any]]) -> Structure:
    """A structure of what the output says of one sequence, by the names of `FIELDS`."""
    aatype = one["aatype"].astype(np.int64)
    there = residues.ATOM14_MASK[aatype]
    by_atom = np.take_along_axis(one["plddt"], residues.ATOM14_TO_ATOM37[aatype], axis=1)
    iptm = float(one["iptm"])
    return Structure(
        aatype=aatype,
        chains=one["chains"].astype(np.int64),
        positions=np.where(there[..., None], one["positions"], 0).astype(np.float32),
        plddt=np.where(there, by_atom, 0).astype(np.float32),
        pae=to_steps(one["error"]),
        mean_plddt=float(one["mean_plddt"]),
        ptm=float(one["ptm"]),
        iptm=None if np.isnan(iptm) else iptm,
    )


def pdb_texts(
    output: EsmForProteinFoldingOutput | Mapping[str, Tensor], *, random: bool = False
) -> list[str]:
    """The PDB file of each sequence of a batch; `random` weights are told in it.

    Raises InputError for a structure without atoms, or one that does not fit into such a file.
    """
    remark = {"": MEANINGLESS} if random else {}
    return [
        pdb_text(structure, "Predicted structure", remark | structure.facts)
        for structure in structures_of(output)
    ]
