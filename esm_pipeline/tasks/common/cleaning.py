"""Cleaning of sequences: unusual letters are replaced or removed, or the record is skipped.

Nucleotides use letters that residues have as well: they are refused, translated, or kept.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from esm_pipeline.errors import setting
from esm_pipeline.formats.fasta import UPPER, WHITESPACE
from esm_pipeline.nucleotides import nucleotides_among, nucleotides_in, only_nucleotides, translate
from esm_pipeline.settings.sections import CleaningSettings

RESIDUE_LETTERS = b"ACDEFGHIKLMNPQRSTVWYBUZOX"
"""The letters every model knows: the 20 amino acids and B U Z O X."""

CHAIN_BREAK = b":"
END_STOP = "'*' at the end{} removed"
FOREIGN_LETTER = re.compile(rf"[^{RESIDUE_LETTERS.decode()}J*.\-]")
LETTER_HINTS = {
    ">": "begins a record inside a line, which is lost in this one; were files joined without a "
    "line end between them? put one there",
    **dict.fromkeys("/|", "is no amino acid; if it separates chains, write ':' in its place"),
}
"""Letters that point to a certain mistake."""

REPLACEMENTS = str.maketrans("J*", "XX", "-.")


def residues(text: str) -> bytes:
    """A sequence in upper case without white space."""
    return text.encode("utf-8", "surrogateescape").translate(UPPER, WHITESPACE)


class LetterPolicy(NamedTuple):
    """How one kind of unusual letter is handled."""

    pattern: re.Pattern[str]
    name: str
    """The letter, for messages; `{}` is the one that was found."""
    detail: str
    """What is wrong with it."""
    field: str
    """The field of CleaningSettings that decides."""
    accepting: str
    """The value of the field that keeps the record."""
    effect: str
    """What that value does, in a remedy."""
    done: str
    """The same in a note."""

    @property
    def remedy(self) -> str:
        """What to set, and to what effect."""
        return f"set {setting(f'shard.{self.field}')} to '{self.accepting}' to {self.effect}"

    def accepts(self, cleaning: CleaningSettings) -> bool:
        """Whether the settings keep records with such letters."""
        accepted: bool = getattr(cleaning, self.field) == self.accepting
        return accepted

    def note(self, first: str, count: int, where: str = "") -> str:
        """What was done with `count` letters, of which the `first` is named with its place."""
        more = f" and {count - 1} more" if count > 1 else ""
        return f"{first}{more}{where} {self.done}"


UNKNOWN_RESIDUE = LetterPolicy(
    pattern=re.compile("J"),
    name="J",
    detail=" is unknown to the models",
    field="unknown_residues",
    accepting="replace",
    effect="read it as X",
    done="replaced by X",
)
STOP = LetterPolicy(
    pattern=re.compile(r"\*"),
    name="stop '*'",
    detail=" inside the sequence",
    field="internal_stops",
    accepting="replace",
    effect="read it as X",
    done="replaced by X",
)
GAP = LetterPolicy(
    pattern=re.compile(r"[.\-]"),
    name="gap '{}'",
    detail="",
    field="gaps",
    accepting="remove",
    effect="drop gaps",
    done="removed",
)


class CleanedSequence(NamedTuple):
    """A sequence after cleaning."""

    sequence: bytes
    """Upper-case residues, with `:` between chains; empty if the record is skipped."""
    reason: str = ""
    """Why the record is skipped."""
    notes: tuple[str, ...] = ()
    """What was changed."""


def read_sequence(
    sequence: bytes, cleaning: CleaningSettings, header: bytes = b""
) -> CleanedSequence:
    """Clean a sequence of the input, in upper case and without whitespace.

    Nucleotides are refused, translated or kept, then unusual letters are handled. The header of a
    coding sequence may give its reading frame and whether its start is missing.
    """
    if cleaning.nucleotides == "translate":
        return _translated(sequence, cleaning, header)
    if cleaning.nucleotides == "refuse" and (kind := nucleotides_among(sequence)):
        return CleanedSequence(b"", f"looks like {kind}; {nucleotides_remedy()}")
    return clean(sequence, cleaning)


def nucleotides_remedy() -> str:
    """What to set if sequences look like nucleotides."""
    return (
        f"set {setting('shard.nucleotides')} to 'translate' to read coding sequences, or to 'keep' "
        "to take the letters as residues"
    )


def _translated(sequence: bytes, cleaning: CleaningSettings, header: bytes) -> CleanedSequence:
    """The protein of a coding sequence; other sequences are cleaned as proteins.

    A sequence of nucleotide codes only is taken as a coding sequence whatever its length.
    """
    if not only_nucleotides(sequence.translate(None, b"-.:")):
        return _not_coding(sequence, cleaning)
    notes: list[str] = []
    if gap := GAP.pattern.search(sequence.decode()):
        first = f"{GAP.name.format(gap[0])} at nucleotide {gap.start() + 1}"
        if not GAP.accepts(cleaning):
            return CleanedSequence(b"", f"{first}; {GAP.remedy}")
        notes.append(GAP.note(first, sum(map(sequence.count, (b"-", b".")))))
    chains = sequence.translate(None, b"-.").split(CHAIN_BREAK)
    code = cleaning.genetic_code
    proteins = [translate(chain, code, header if len(chains) == 1 else b"") for chain in chains]
    how = f"translated in frame {proteins[0].frame} by genetic code {code}"
    for number, found in enumerate(proteins, 1):
        where = f" (chain {number})" if len(chains) > 1 else ""
        notes += [f"{note}{where}" for note in found.notes]
    cleaned = clean(CHAIN_BREAK.join(found.protein for found in proteins), cleaning)
    if not cleaned.sequence:
        return CleanedSequence(b"", f"{how}: {cleaned.reason}")
    return cleaned._replace(notes=(how, *notes, *cleaned.notes))


def _not_coding(sequence: bytes, cleaning: CleaningSettings) -> CleanedSequence:
    """A sequence that is not of nucleotides, cleaned as a protein."""
    if nucleotides_in(sequence):  # with '*' in it
        place = sequence.index(b"*") + 1
        return CleanedSequence(b"", f"stop '*' at nucleotide {place}; correct the sequence")
    cleaned = clean(sequence, cleaning)
    note = "not nucleotides: taken as a protein"
    return cleaned._replace(notes=(note, *cleaned.notes)) if cleaned.sequence else cleaned


def is_clean(sequence: bytes) -> bool:
    """Whether an upper-case sequence has residues and nothing else: `clean` does not change it."""
    return bool(sequence) and not sequence.translate(None, RESIDUE_LETTERS)


def clean(sequence: bytes, cleaning: CleaningSettings) -> CleanedSequence:
    """Handle the unusual letters of a sequence in upper case and without whitespace.

    Reasons and notes count the residues of the given sequence from 1, in each chain if there are
    several. Cleaning the result again changes nothing.
    """
    body = sequence.rstrip(b"*")
    if is_clean(body):  # a shortcut: gene finders end every protein with *
        return CleanedSequence(body, "", (END_STOP.format(""),) if body != sequence else ())
    chains = sequence.decode("utf-8", "replace").split(":")
    parts = []
    for number, chain in enumerate(chains, 1):
        where = f" of chain {number}" if len(chains) > 1 else ""
        parts.append(part := _clean_chain(chain, where, cleaning))
        if part.reason:
            return part
    if not any(part.sequence for part in parts):
        return CleanedSequence(b"", "no residues")
    for number, part in enumerate(parts, 1):
        if not part.sequence:
            return CleanedSequence(
                b"", f"no residues in chain {number}; put ':' between chains only"
            )
    notes = tuple(note for part in parts for note in part.notes)
    return CleanedSequence(CHAIN_BREAK.join(part.sequence for part in parts), "", notes)


def _clean_chain(chain: str, where: str, cleaning: CleaningSettings) -> CleanedSequence:
    """Clean one chain; `where` names it in reasons and notes."""
    body = chain.rstrip("*-." if cleaning.gaps == "remove" else "*")
    refused: list[tuple[int, str]] = []
    notes: list[str] = []
    for policy, text in ((UNKNOWN_RESIDUE, body), (STOP, body), (GAP, chain)):
        if not (match := policy.pattern.search(text)):
            continue
        first = f"{policy.name.format(match[0])} at residue {match.start() + 1}"
        if policy.accepts(cleaning):
            notes.append(policy.note(first, len(policy.pattern.findall(text)), where))
        else:
            refused.append((match.start(), f"{first}{where}{policy.detail}; {policy.remedy}"))
    if match := FOREIGN_LETTER.search(chain):
        what = f"character {match[0]!a} at residue {match.start() + 1}{where}"
        why = LETTER_HINTS.get(match[0], "is no amino acid; correct the sequence")
        refused.append((match.start(), f"{what} {why}"))
    if refused:
        return CleanedSequence(b"", min(refused)[1])
    if "*" in chain[len(body) :]:
        notes.append(END_STOP.format(where))
    return CleanedSequence(body.translate(REPLACEMENTS).encode(), "", tuple(notes))
