"""Real proteins of membranes and of the cell's fluid, and a classifier that tells them apart.

What they are is read in their descriptions. Made from the example data of MMseqs2 by
`python -m tests.membrane DB.fasta.gz QUERY.fasta.gz`; `data/membrane/README.md` tells how.
"""

from __future__ import annotations

import gzip
import random
import re
import sys
import warnings
from pathlib import Path

import torch

from esm_pipeline import EsmForSequenceClassification, EsmTokenizer
from esm_pipeline.formats.fasta import read_fasta

DATA = Path(__file__).parent / "data" / "membrane"
KNOWN, UNSEEN = DATA / "known.fasta.gz", DATA / "unseen.fasta.gz"
LABELS = {0: "soluble", 1: "membrane"}
HELD_OUT, LEARNED = 40, 100  # of each label, at most
ALIKE = 0.02  # share of 6-mers

IN_MEMBRANES = re.compile(
    r"\b(permease|transmembrane|antiporter|symporter|exporter|uptake protein|membrane protein"
    r"|transporter|olfactory receptor|G-protein coupled receptor|ion channel|cytochrome b"
    r"|NADH-quinone oxidoreductase subunit [AHJKMN]|cytochrome c oxidase subunit [123]"
    r"|Prolipoprotein diacylglyceryl transferase|translocase subunit SecY)\b",
    re.IGNORECASE,
)
IN_THE_FLUID = re.compile(
    r"\b(ribosomal protein|tRNA ligase|kinase|dehydrogenase|DNA polymerase|RNA polymerase"
    r"|elongation factor|initiation factor|transferase|synthetase|hydrolase|reductase|isomerase"
    r"|transcription(al)? (factor|regulator)|aldolase|protease)\b",
    re.IGNORECASE,
)
UNCLEAR = re.compile(
    "fragment|ATP-binding|ATPase|toxin|binding protein|substrate|periplasmic|outer membrane"
    "|peripheral|histidine kinase|sensor|receptor kinase|receptor-like|accessory|associated|related"
    "|fusion|lipoprotein|domain|regulator of|like",
    re.IGNORECASE,
)

Proteins = list[tuple[str, str]]
"""Headers and sequences."""


def label_of(header: str) -> str | None:
    """What the description of a protein says it is; None if that is not clear."""
    told = header.partition(" ")[2].partition(" OS=")[0]
    inside, outside = IN_MEMBRANES.search(told), IN_THE_FLUID.search(told)
    if UNCLEAR.search(told) or bool(inside) == bool(outside):
        return None
    return LABELS[1] if inside else None if "membrane" in told.lower() else LABELS[0]


def read(path: Path) -> Proteins:
    return [(header.decode(), sequence.decode()) for _, header, sequence in read_fasta(str(path))]


def labels(path: Path) -> list[str]:
    """Those of all proteins of a file."""
    found = [label_of(header) for header, _ in read(path)]
    return [label for label in found if label is not None]


def words(sequence: str) -> set[str]:
    return {sequence[place : place + 6] for place in range(len(sequence) - 5)}


def are_relatives(one: set[str], other: set[str]) -> bool:
    return len(one & other) > ALIKE * min(len(one), len(other))


def train(folder: Path) -> Path:
    """The packaged model with a head, trained for seconds: the head and the last layer."""
    number = {label: place for place, label in LABELS.items()}
    sequences = [sequence[:100] for _, sequence in read(KNOWN)]
    wanted = torch.tensor([number[label] for label in labels(KNOWN)])
    tokenizer = EsmTokenizer.from_pretrained("demo")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a head that has to be trained is what is wanted
        model = EsmForSequenceClassification.from_pretrained("demo", id2label=LABELS)
    model.esm.requires_grad_(False)
    model.esm.encoder.layer[-1].requires_grad_(True)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(4):
        for part in torch.randperm(len(wanted), generator=generator).split(16):
            chosen = [sequences[place] for place in part.tolist()]
            batch = tokenizer(chosen, padding=True, return_tensors="pt")
            loss = model(**batch, labels=wanted[part]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def usable(paths: list[str]) -> dict[str, Proteins]:
    """Different proteins of 60 to 400 residues, all of the 20, by their labels."""
    found: dict[str, str] = {}
    for path in paths:
        for header, sequence in read(Path(path)):
            ordinary = set(sequence) <= set("ACDEFGHIKLMNPQRSTVWY")
            if 60 <= len(sequence) <= 400 and ordinary:
                found.setdefault(sequence, header.strip().removesuffix(" Split=0"))
    by_label: dict[str, Proteins] = {label: [] for label in LABELS.values()}
    for sequence, header in found.items():
        label = label_of(header)
        if label is not None:
            by_label[label].append((header, sequence))
    return by_label


def main(paths: list[str]) -> None:
    """Choose what is held out, no two of it relatives; then what is learned from, none of them."""
    held_out: Proteins = []
    learned: Proteins = []
    taken: list[set[str]] = []
    by_label = usable(paths)
    for proteins in by_label.values():
        random.Random(1).shuffle(proteins)
        held_out += strangers(proteins, taken, HELD_OUT, apart=True)
    for proteins in by_label.values():
        learned += strangers(proteins, taken, LEARNED, apart=False)
    for path, chosen in ((KNOWN, learned), (UNSEEN, held_out)):
        text = "".join(f">{header}\n{sequence}\n" for header, sequence in chosen)
        path.write_bytes(gzip.compress(text.encode(), mtime=0))


def strangers(proteins: Proteins, taken: list[set[str]], most: int, *, apart: bool) -> Proteins:
    """The first proteins that have no relatives among those `taken`, nor each other if `apart`."""
    chosen: Proteins = []
    for protein in proteins:
        own = words(protein[1])
        if len(chosen) < most and not any(are_relatives(own, other) for other in taken):
            chosen.append(protein)
            taken += [own] if apart else []
    return chosen


if __name__ == "__main__":
    main(sys.argv[1:])
