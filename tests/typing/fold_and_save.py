"""Fold sequences, look at the confidence, and save the structures."""

from pathlib import Path
from typing import assert_type

import torch

from esm_pipeline import EsmForProteinFolding, fold

model = EsmForProteinFolding.from_pretrained("demo")
assert_type(model, EsmForProteinFolding)
folded = fold({"P1": "MKTAYIAK", "dimer": "MKV:MKV"}, model, num_recycles=0)
print(folded.table[["id", "plddt", "ptm"]])
for structure in folded:
    path = structure.save(f"{structure.id}.pdb")
    assert_type(path, Path)
    worst = int(structure.plddt.argmin())
    print(path, structure.sequence[worst], structure.mean_plddt, structure.pae.mean())
print(folded["dimer"].iptm, len(folded["P1"].pdb), len(folded[0].cif))

output = model.infer("MKTAYIAK", num_recycles=0)
assert_type(output.plddt, torch.Tensor)
print(output.positions[-1].shape, output.ptm.tolist())
