"""Predicted structures as mmCIF with the categories of ModelCIF. Written by biotite.

The pLDDT of the C-alpha is the local quality of each residue; B-factors are the pLDDT of each atom.
Peers: the AlphaFold database; python-modelcif, which reads and writes the same items.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.structure import residues
from esm_pipeline.structure.structure import Structure, ascii_text, atom_array, chain_name

if TYPE_CHECKING:
    from biotite.structure import AtomArray
    from biotite.structure.io.pdbx import CIFBlock

DICTIONARY = ("mmcif_ma.dic", "1.4.9")
C_ALPHA = residues.BACKBONE.index("CA")
LINE = 80
RESERVED = re.compile(r"[$\[\]_#;]|(data|loop|save|stop|global)_|[?.]$", re.IGNORECASE)
"""Beginnings that are reserved in an unquoted value; biotite quotes values with a space."""


def cif_text(structure: Structure, name: str, title: str, facts: Mapping[str, str]) -> str:
    """The text of an mmCIF file with the data block `name`; `facts`: the model and its settings.

    Raises InputError for a structure without atoms.
    """
    from biotite.structure.io.pdbx import CIFBlock, CIFCategory, CIFColumn, CIFFile

    entities = entities_of(structure)
    atoms = atom_array(structure)
    block = CIFBlock()
    described: dict[str, dict[str, object]] = {
        "entry": {"id": name},
        "audit_conform": dict(zip(("dict_name", "dict_version"), DICTIONARY, strict=True)),
        "struct": {
            "entry_id": name,
            "title": free(title),
            "pdbx_structure_determination_methodology": "computational",
        },
        **sequence_categories(structure, entities),
        **model_categories(facts),
        **quality_categories(structure),
    }
    for category, columns in described.items():
        block[category] = CIFCategory({key: CIFColumn(as_texts(v)) for key, v in columns.items()})
    set_atoms(block, atoms, np.array(entities)[structure.chains[structure.atoms[0]]])
    return str(CIFFile({name: block}).serialize())


def as_texts(values: object) -> list[str]:
    """One value or several as text; `?` for an empty one."""
    several = values if isinstance(values, (list, tuple)) else [values]
    return [str(value) or "?" for value in several]


def free(text: str) -> str:
    """Any text as a value; a reserved beginning gets a space before it."""
    found = ascii_text(text)
    return f" {found}" if RESERVED.match(found) else found


def entities_of(structure: Structure) -> list[int]:
    """The entity of each chain, from 1: chains of the same sequence are one entity."""
    found: dict[str, int] = {}
    return [found.setdefault(sequence, len(found) + 1) for sequence in structure.sequences]


def sequence_categories(
    structure: Structure, entities: Sequence[int]
) -> dict[str, dict[str, object]]:
    """The categories that describe chains, entities and residues."""
    unique = dict(zip(entities, structure.sequences, strict=True))
    chains = [chain_name(chain) for chain in range(len(entities))]
    strands = {
        entity: ",".join(c for c, e in zip(chains, entities, strict=True) if e == entity)
        for entity in unique
    }
    kinds = sorted({residues.RESIDUE_NAMES[number] for number in set(structure.aatype.tolist())})
    rows = [
        (entity, number, residues.RESIDUE_NAMES[kind])
        for entity, sequence in unique.items()
        for number, kind in enumerate(residues.encode(sequence).tolist(), 1)
    ]
    return {
        "chem_comp": {
            "id": kinds,
            "type": ["peptide linking" if k == "GLY" else "L-peptide linking" for k in kinds],
            "ma_provenance": ["CCD Core"] * len(kinds),
        },
        "entity": {
            "id": list(unique),
            "type": ["polymer"] * len(unique),
            "src_method": ["man"] * len(unique),
            "pdbx_number_of_molecules": [entities.count(entity) for entity in unique],
        },
        "entity_poly": {
            "entity_id": list(unique),
            "type": ["polypeptide(L)"] * len(unique),
            "nstd_monomer": ["no"] * len(unique),
            "pdbx_strand_id": list(strands.values()),
            "pdbx_seq_one_letter_code": [
                in_lines(one.replace("X", "(UNK)")) for one in unique.values()
            ],
            "pdbx_seq_one_letter_code_can": [in_lines(one) for one in unique.values()],
        },
        "entity_poly_seq": dict(
            zip(
                ("entity_id", "num", "mon_id", "hetero"),
                [*map(list, zip(*rows, strict=True)), ["n"] * len(rows)],
                strict=True,
            )
        ),
        "struct_asym": {"id": chains, "entity_id": list(entities)},
        "ma_target_entity": {
            "entity_id": list(unique),
            "data_id": [1] * len(unique),
            "origin": ["designed"] * len(unique),
        },
        "ma_target_entity_instance": {
            "asym_id": chains,
            "entity_id": list(entities),
            "details": ["."] * len(chains),
        },
    }


def in_lines(sequence: str) -> str:
    """A sequence in lines of `LINE` letters."""
    return "\n".join(sequence[start : start + LINE] for start in range(0, len(sequence), LINE))


def model_categories(facts: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """The categories that describe how the model was made."""
    names = [free(name) if name else "remark" for name in facts]
    return {
        "ma_data": {
            "id": [1, 2],
            "name": ["target sequence", "predicted structure"],
            "content_type": ["target", "model coordinates"],
        },
        "software": {
            "pdbx_ordinal": 1,
            "name": "esm_pipeline",
            "classification": "model building",
            "type": "package",
            "version": facts.get("software", "?"),
        },
        "ma_software_parameter": {
            "parameter_id": list(range(1, len(names) + 1)),
            "group_id": [1] * len(names),
            "data_type": ["string"] * len(names),
            "name": names,
            "value": [free(value) for value in facts.values()],
        },
        "ma_software_group": {
            "ordinal_id": 1,
            "group_id": 1,
            "software_id": 1,
            "parameter_group_id": 1,
        },
        "ma_protocol_step": {
            "ordinal_id": 1,
            "protocol_id": 1,
            "step_id": 1,
            "method_type": "modeling",
            "step_name": "structure prediction with a protein language model",
            "software_group_id": 1,
            "input_data_group_id": 1,
            "output_data_group_id": 2,
        },
        "ma_data_group": {"ordinal_id": [1, 2], "group_id": [1, 2], "data_id": [1, 2]},
        "ma_model_list": {
            "ordinal_id": 1,
            "model_name": "predicted structure",
            "data_id": 2,
            "model_type": "Ab initio model",
        },
        "ma_model_group": {"id": 1, "name": "prediction"},
        "ma_model_group_link": {"group_id": 1, "model_id": 1},
    }


def quality_categories(structure: Structure) -> dict[str, dict[str, object]]:
    """The categories of quality: pLDDT, global and of each residue, pTM, and ipTM of a complex."""
    named = {"pLDDT": structure.mean_plddt, "pTM": structure.ptm}
    if structure.iptm is not None:
        named["ipTM"] = structure.iptm
    there = np.flatnonzero(residues.ATOM14_MASK[structure.aatype, C_ALPHA])
    names = [chain_name(chain) for chain in range(len(structure.ends))]
    count = len(named)
    return {
        "ma_qa_metric": {
            "id": list(range(1, count + 2)),
            "mode": [*["global"] * count, "local"],
            "name": [*named, "pLDDT"],
            "type": [*named, "pLDDT"],
            "software_group_id": [1] * (count + 1),
        },
        "ma_qa_metric_global": {
            "ordinal_id": list(range(1, count + 1)),
            "model_id": [1] * count,
            "metric_id": list(range(1, count + 1)),
            "metric_value": [
                f"{value:.{2 if name == 'pLDDT' else 4}f}" for name, value in named.items()
            ],
        },
        "ma_qa_metric_local": {
            "ordinal_id": list(range(1, len(there) + 1)),
            "model_id": [1] * len(there),
            "label_asym_id": [names[structure.chains[residue]] for residue in there],
            "label_seq_id": structure.numbers[there].tolist(),
            "label_comp_id": [residues.RESIDUE_NAMES[kind] for kind in structure.aatype[there]],
            "metric_id": [count + 1] * len(there),
            "metric_value": [f"{value:.2f}" for value in structure.plddt[there, C_ALPHA]],
        },
    }


def set_atoms(block: CIFBlock, atoms: AtomArray, entities: Int64) -> None:
    """Write the atoms, with (N,) `entities`, with as many decimals as a PDB file."""
    from biotite.structure.io.pdbx import set_structure

    atoms.set_annotation("label_entity_id", entities)
    set_structure(block, atoms)
    written = block["atom_site"]
    for axis, name in enumerate(("Cartn_x", "Cartn_y", "Cartn_z")):
        written[name] = [f"{value:.3f}" for value in atoms.coord[:, axis].tolist()]
    written["B_iso_or_equiv"] = [f"{value:.2f}" for value in atoms.b_factor.tolist()]
    written["occupancy"] = ["1.00"] * len(entities)
