"""Predicted structures as mmCIF with the categories of ModelCIF. Written by biotite.

The pLDDT of the C-alpha is the local quality of each residue; B-factors are the pLDDT of each atom.
The predicted aligned errors are in an associated file, `structure/pae.py`, which this one names.
Peers: the AlphaFold database; python-modelcif, which reads and writes the same items.

Version 1.4.2 of the dictionary finds nothing wrong. Later ones deprecate the items of model groups
in `_ma_model_list` in favour of categories that 1.4.2 does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from esm_pipeline.arrays import Int64
from esm_pipeline.structure import residues
from esm_pipeline.structure.residues import residue_name
from esm_pipeline.structure.structure import (
    PLACED_OXYGEN,
    Structure,
    ascii_text,
    atom_array,
    chain_name,
)

if TYPE_CHECKING:
    from biotite.structure import AtomArray
    from biotite.structure.io.pdbx import CIFBlock

DICTIONARY = ("mmcif_ma.dic", "1.4.2")
C_ALPHA = residues.BACKBONE.index("CA")
LINE = 80
RESERVED = re.compile(r"[$\[\]_#;]|(data|loop|save|stop|global)_|[?.]$", re.IGNORECASE)
"""Beginnings that are reserved in an unquoted value; biotite quotes values with a space."""


class ErrorFile(NamedTuple):
    """The file with the aligned errors of a structure: its path from the folder of the structure.

    `member` is its name if `path` is an archive.
    """

    path: str
    member: str = ""


def cif_text(
    structure: Structure,
    name: str,
    title: str,
    facts: Mapping[str, str],
    *,
    description: str = "",
    errors: ErrorFile | None = None,
) -> str:
    """The text of an mmCIF file with the data block `name`; `facts`: the model and its settings.

    description: of the molecule, by default the title. errors: the file with the aligned errors, if
    there is one. Raises InputError for a structure without atoms.
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
        **sequence_categories(structure, entities, description or title),
        **model_categories(facts),
        **quality_categories(structure, errors),
        **(associated_categories(name, errors) if errors else {}),
        "atom_type": {"symbol": sorted(set(atoms.element.tolist()))},
    }
    if not facts:
        del described["ma_software_parameter"]
    for category, columns in described.items():
        block[category] = CIFCategory({key: CIFColumn(as_texts(v)) for key, v in columns.items()})
    set_atoms(block, atoms, np.array(entities)[structure.chains[atoms.residue]])
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
    structure: Structure, entities: Sequence[int], description: str
) -> dict[str, dict[str, object]]:
    """The categories that describe chains, entities and residues."""
    unique = dict(zip(entities, structure.sequences, strict=True))
    chains = [chain_name(chain) for chain in range(len(entities))]
    strands = {
        entity: ",".join(c for c, e in zip(chains, entities, strict=True) if e == entity)
        for entity in unique
    }
    kinds = sorted(set(structure.names))
    rows = [
        (entity, number, residue_name(letter))
        for entity, sequence in unique.items()
        for number, letter in enumerate(sequence, 1)
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
            "pdbx_description": [
                free(description if len(unique) == 1 else f"{description}, chain {one}")
                for one in strands.values()
            ],
            "pdbx_number_of_molecules": [entities.count(entity) for entity in unique],
        },
        "entity_poly": {
            "entity_id": list(unique),
            "type": ["polypeptide(L)"] * len(unique),
            "nstd_monomer": ["no"] * len(unique),
            "pdbx_strand_id": list(strands.values()),
            "pdbx_seq_one_letter_code": [in_lines(with_codes(one)) for one in unique.values()],
            "pdbx_seq_one_letter_code_can": [in_lines(one) for one in unique.values()],
        },
        "entity_poly_seq": dict(
            zip(
                ("entity_id", "num", "mon_id", "hetero"),
                [*map(list, zip(*rows, strict=True)), ["n"] * len(rows)],
                strict=True,
            )
        ),
        "pdbx_poly_seq_scheme": residue_scheme(structure, entities),
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


def with_codes(sequence: str) -> str:
    """A sequence in which residues other than the 20 amino acids are codes, such as `(UNK)`."""
    return "".join(
        letter if letter in residues.LETTERS[: residues.UNKNOWN] else f"({residue_name(letter)})"
        for letter in sequence
    )


def residue_scheme(structure: Structure, entities: Sequence[int]) -> dict[str, object]:
    """The residues of all chains with their numbers; those without atoms have `?` of an author."""
    numbers, chains = structure.numbers.tolist(), structure.chains.tolist()
    there = structure.present.tolist()
    seen = [number if one else "" for number, one in zip(numbers, there, strict=True)]
    found = [name if one else "" for name, one in zip(structure.names, there, strict=True)]
    names = [chain_name(chain) for chain in chains]
    return {
        "asym_id": names,
        "entity_id": [entities[chain] for chain in chains],
        "seq_id": numbers,
        "mon_id": structure.names,
        "ndb_seq_num": numbers,
        "pdb_seq_num": numbers,
        "auth_seq_num": seen,
        "pdb_mon_id": found,
        "auth_mon_id": found,
        "pdb_strand_id": names,
        "pdb_ins_code": ["."] * len(numbers),
        "hetero": ["n"] * len(numbers),
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
            "parameter_group_id": 1 if names else ".",
        },
        "ma_protocol_step": {
            "ordinal_id": 1,
            "protocol_id": 1,
            "step_id": 1,
            "method_type": "modeling",
            "step_name": "structure prediction with a protein language model",
            "details": PLACED_OXYGEN,
            "software_group_id": 1,
            "input_data_group_id": 1,
            "output_data_group_id": 2,
        },
        "ma_data_group": {"ordinal_id": [1, 2], "group_id": [1, 2], "data_id": [1, 2]},
        "ma_model_list": {
            "ordinal_id": 1,
            "model_id": 1,
            "model_group_id": 1,
            "model_name": "predicted structure",
            "model_group_name": "prediction",
            "data_id": 2,
            "model_type": "Ab initio model",
        },
    }


def global_metrics(structure: Structure) -> dict[str, float]:
    """The confidences of a whole structure, by the names of ModelCIF's types."""
    named = {"pLDDT": structure.mean_plddt, "pTM": structure.ptm}
    return named if structure.iptm is None else {**named, "ipTM": structure.iptm}


def metric_of_errors(structure: Structure) -> int:
    """The id of the metric of aligned errors: after the global ones and the local pLDDT."""
    return len(global_metrics(structure)) + 2


def quality_categories(
    structure: Structure, errors: ErrorFile | None
) -> dict[str, dict[str, object]]:
    """The categories of quality: pLDDT, global and of each residue, pTM, and ipTM of a complex.

    With `errors`, the aligned errors in another file are defined too.
    """
    named = global_metrics(structure)
    there = np.flatnonzero(structure.present)
    names = [chain_name(chain) for chain in range(len(structure.ends))]
    count = len(named)
    defined = [*((name, "global") for name in named), ("pLDDT", "local")]
    defined += [("PAE", "local-pairwise")] if errors else []
    return {
        "ma_qa_metric": {
            "id": list(range(1, len(defined) + 1)),
            "mode": [mode for _, mode in defined],
            "name": [name for name, _ in defined],
            "type": [name for name, _ in defined],
            "software_group_id": [1] * len(defined),
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


def associated_categories(name: str, errors: ErrorFile) -> dict[str, dict[str, object]]:
    """The categories that name the file with the aligned errors."""
    content: dict[str, object] = {"file_content": "local pairwise QA scores"}
    whole: dict[str, object] = {"id": 1, "entry_id": name, "file_url": errors.path}
    if not errors.member:
        file = {**whole, "file_type": "file", "file_format": "cif", **content}
        return {"ma_entry_associated_files": file}
    return {
        "ma_entry_associated_files": {
            **whole,
            "file_type": "archive",
            "file_format": "other",  # the dictionary has no tar
            "file_content": "archive with multiple files",
        },
        "ma_associated_archive_file_details": {
            "id": 1,
            "archive_file_id": 1,
            "file_path": errors.member,
            "file_format": "other",  # compressed, and the dictionary has no gzip in an archive
            **content,
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
