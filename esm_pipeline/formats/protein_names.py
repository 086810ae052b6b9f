"""The names in an id: `sp|P62593|BLAT_ECOLX` has an accession and an entry name."""

from __future__ import annotations

import re

DATABASES = frozenset(
    ("sp", "tr", "ref", "gi", "gb", "emb", "dbj", "pir", "prf", "lcl", "gnl", "tpg", "tpe", "tpd")
)
"""Tags of databases in ids of UniProt and NCBI, `sp|P62593|BLAT_ECOLX`, `ref|NP_000509.1|`."""

ISOFORM = re.compile(r"-\d+$")
VERSION = re.compile(r"(-\d+|\.\d+)$")
ACCESSIONS = (
    re.compile(r"[OPQ]\d[A-Z\d]{3}\d|[A-NR-Z]\d([A-Z][A-Z\d]{2}\d){1,2}", re.I),
    re.compile(r"[NXYWA]P_\d+", re.I),
    re.compile(r"[NX]M_\d+", re.I),
    re.compile(r"ENS[A-Z]*P\d+", re.I),
    re.compile(r"ENS[A-Z]*T\d+", re.I),
)
"""Accessions of UniProt, and of proteins and transcripts in RefSeq and Ensembl.

Without version and isoform.
"""

UNIPROT = ACCESSIONS[0]
ENTRY_NAME = re.compile(r"[A-Z\d]{1,10}_[A-Z9][A-Z\d]{2,4}")
"""UniProt's `HBB_HUMAN`: a protein and a species."""


UNIPROT_ID = re.compile(r"(?:sp|tr)\|([A-Za-z0-9]+(?:-[0-9]+)?)(?:\||$)")
"""An id as in FASTA files of UniProt, `sp|P69905|HBA_HUMAN`, with its accession."""


def names_of(identifier: str) -> list[str]:
    """The names of a record: its id, and the parts of it between `|`, without tags of databases.

    The entry name of an isoform, `sp|P62593-2|BLAT_ECOLX`, is left out: it is that of the canonical
    protein.
    """
    parts = [part for part in identifier.split("|") if part and part.lower() not in DATABASES]
    if identifier.lower().startswith("pdb|"):  # pdb|4HHB|A: entry and chain alone are no names
        parts = []
    if len(parts) > 1 and ISOFORM.search(parts[0]) and is_accession(parts[0]):
        parts = parts[:1]
    return list(dict.fromkeys([identifier, *parts]))


def names_in(text: str) -> set[str]:
    """The names of a protein in one text: `sp|P62593|BLAT_ECOLX`, `NM_000518.5(HBB)`."""
    if "|" in text:
        return set(names_of(text))
    gene = gene_in(text)
    return {text} if gene is None else {text.partition("(")[0], gene} - {""}


def gene_in(text: str) -> str | None:
    """The gene in brackets after a name, `NM_000518.5(HBB)`."""
    gene = text.partition("(")[2]
    return gene.removesuffix(")") if gene.endswith(")") else None


def base_name(name: str) -> str:
    """A name, or the accession in it, in lower case, without isoform and version."""
    parts = [part for part in name.split("|") if part.lower() not in DATABASES]
    return VERSION.sub("", next(filter(None, parts), name).lower())


def is_accession(name: str, *databases: re.Pattern[str]) -> bool:
    """Whether `name` is an accession of one of the databases, by default of any."""
    bare = VERSION.sub("", name)
    return any(database.fullmatch(bare) for database in databases or ACCESSIONS)


def uniprot_accession(identifier: str) -> str:
    """The accession in an id of UniProt; any other id as it is."""
    found = UNIPROT_ID.match(identifier)
    return found[1] if found else identifier
