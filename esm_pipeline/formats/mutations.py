"""How mutations are written: `A42G`, `A42G:T50K`, `p.Ala42Gly`, `K23_V25del`, and what they do.

On disk residues count from 1, or with an offset from another number; in the code they count from
0. This module converts. Notations: those of deep mutational scans and of HGVS for proteins
(https://hgvs-nomenclature.org), with one-letter or three-letter codes.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.formats.unsupported_notations import is_missing, why_unread

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
SINGLE_RESIDUES = frozenset(AMINO_ACIDS + "UO")
"""What a residue may become; B, J, X and Z stand for several residues."""

THREE_LETTERS = {
    **{"ala": "A", "arg": "R", "asn": "N", "asp": "D", "cys": "C", "gln": "Q", "glu": "E"},
    **{"gly": "G", "his": "H", "ile": "I", "leu": "L", "lys": "K", "met": "M", "phe": "F"},
    **{"pro": "P", "ser": "S", "thr": "T", "trp": "W", "tyr": "Y", "val": "V"},
    **{"sec": "U", "pyl": "O", "asx": "B", "glx": "Z", "xle": "J", "xaa": "X", "ter": "*"},
}
RESIDUE_CODE = rf"(?:{'|'.join(THREE_LETTERS)}|[A-Z*])"
RESIDUE_NUMBER = r"-?\d{1,9}"
SOME = r"[A-Z*]+"

PLAIN_SUBSTITUTIONS = re.compile(r"[A-Z]\d{1,9}[A-Z](?:[:;,+][A-Z]\d{1,9}[A-Z])*", re.ASCII)
"""Nearly all of what is written, read by a faster path: `A42G:T50K`."""

PLAIN_SEPARATOR = re.compile("[:;,+]")
EDIT = re.compile(
    rf"""(?:p\.)?
    (?P<first>{RESIDUE_CODE})(?P<start>{RESIDUE_NUMBER})
    (?:_(?P<last>{RESIDUE_CODE})(?P<stop>{RESIDUE_NUMBER}))?
    (?: (?P<same>=) | (?-i:(?P<dup>dup))(?P<copied>{SOME})?
      | (?: -|(?-i:del)) (?P<gone>{SOME}?)?? (?: (?-i:ins)(?P<instead>{SOME}))?
      | (?-i:ins)(?P<between>{SOME})
      | (?P<shift>(?:{RESIDUE_CODE})?(?-i:fs).*) | (?P<longer>(?:{RESIDUE_CODE})?(?-i:ext).*)
      | (?P<to>{RESIDUE_CODE}) )""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
EACH_RESIDUE = re.compile(RESIDUE_CODE, re.ASCII | re.IGNORECASE)
MUTATION_SEPARATOR = re.compile(r"[\s:;,+]+")
REFERENCE = re.compile(r"(?P<name>(?![cgmnr]\.)[^\s:]+):(?=(?P<hgvs>p\.)|(?P<change>[^\s:;,+]+))")
DNA = re.compile(r"(?:(?P<name>[^\s:]+):)?[cgmnr]\.\S+\s+\((?P<change>p\..+)\)")
"""ClinVar's `NM_000518.5(HBB):c.20A>T (p.Glu7Val)`, which has the change of the protein too."""

WILD_TYPES = frozenset(("=", "wt", "_wt", "wildtype", "wild-type", "wild_type"))
OTHER_RESIDUE = re.compile(r"(?<=is )[A-Z](?=, not [A-Z]\b)|(?<=is [A-Z], not )[A-Z]\b")
"""The two residues in the message on one that a mutation does not expect; see `resolve`."""

NO_RESIDUE = "which is no single amino acid; name one of the 20, U or O"
MOST_SHOWN = 30  # characters of a mutation in a message


class MisfitError(InputError):
    """The notation expects a residue that the wild type does not have."""


class Edit(NamedTuple):
    """The residues from `start` to `stop` (exclusive) are replaced by `inserted`.

    `expected` are positions and residues that the wild type should have. Positions count from 0. A
    duplication copies what the wild type has there; `resolve` writes that into `inserted`.
    """

    start: int
    stop: int
    inserted: str
    expected: tuple[tuple[int, str], ...] = ()
    duplicates: bool = False

    @property
    def keeps_length(self) -> bool:
        """Whether as many residues are inserted as are replaced."""
        return len(self.inserted) == self.stop - self.start


Variant = tuple[Edit, ...]
"""The edits of a variant; none for the wild type."""


def parse(text: str, offset: int = 0) -> Variant:
    """The edits that `text` describes.

    Residue `offset` + 1 of the text is the first of the protein. Several mutations are separated by
    `:`, `;`, `,`, `+` or space. Raises InputError with the reason if it cannot be read or scored.
    """
    if PLAIN_SUBSTITUTIONS.fullmatch(text):
        parts = PLAIN_SEPARATOR.split(text)
        return tuple(_substitution(int(p[1:-1]) - 1 - offset, p[0], p[-1], p) for p in parts)
    body = split_reference(text.strip())[1].replace("%3D", "=")  # as VEP writes `=`
    if is_missing(body):
        raise InputError("no mutation; write WT for the wild type")
    changes = _inside(_inside(body.removeprefix("p."), "[]"), "()")
    if changes.lower() in WILD_TYPES:
        return ()
    parts = [
        _inside(part.removeprefix("p."), "()") for part in MUTATION_SEPARATOR.split(changes) if part
    ]
    edits = []
    for part in parts or [text]:
        match = EDIT.fullmatch(part)
        if match is None:
            raise InputError(_unread(body, part))
        edits.append(_edit(match, offset))
    return tuple(edits)


def is_mutation(cell: str) -> bool:
    """Whether `cell` is a mutation of some protein."""
    try:
        return bool(parse(cell))
    except InputError:
        return False


def split_reference(text: str) -> tuple[str, str]:
    """The name of the protein (or transcript) that a notation begins with, if any, and the rest.

    `NP_000509.1:p.Glu7Val`, `P62593:S2A`, ClinVar's `NM_000518.5(HBB):c.20A>T (p.Glu7Val)`.
    """
    if (":" not in text and "(" not in text) or PLAIN_SUBSTITUTIONS.fullmatch(text):
        return "", text
    if match := DNA.fullmatch(text):
        return match["name"] or "", match["change"]
    match = REFERENCE.match(text)
    if match and not EDIT.fullmatch(match["name"]):
        change = match["change"]
        if match["hgvs"] or EDIT.fullmatch(change) or change.lower() in WILD_TYPES:
            return match["name"], text[match.end() :]
    return "", text


def _unread(text: str, part: str) -> str:
    """Why a cell cannot be read: `part` of it is no mutation."""
    compact = "".join(text.split())
    if compact != text and EDIT.fullmatch(compact):
        return f"mutation {_shown(text)} has blanks in it; write it as {_shown(compact)}"
    if why := why_unread(text, THREE_LETTERS) or why_unread(part, THREE_LETTERS):
        return f"mutation {_shown(text)} {why}"
    return f"mutation {_shown(part)} cannot be read; write it as A42G or p.Ala42Gly"


def _inside(text: str, brackets: str) -> str:
    """`text` without the brackets around it, if it has them."""
    if text[:1] == brackets[0] and text[-1:] == brackets[1] and brackets[0] not in text[1:]:
        return text[1:-1]
    return text


def _edit(match: re.Match[str], offset: int) -> Edit:
    """One mutation."""
    text = match[0]
    if match["shift"] or match["longer"]:
        what = "a frame shift" if match["shift"] else "an extension"
        raise InputError(
            f"mutation {_shown(text)} is {what}; give the protein it makes as a sequence"
        )
    start, first = int(match["start"]) - 1 - offset, _code(match["first"])
    if match["to"] or match["same"]:
        if match["last"]:
            raise InputError(
                f"mutation {_shown(text)} cannot be read; write ranges as K23_V25delinsQS"
            )
        return _substitution(start, first, _code(match["to"] or match["first"]), text)
    stop = start + 1
    expected: tuple[tuple[int, str], ...] = ((start, first),)
    if match["last"]:
        stop = int(match["stop"]) - offset
        expected += ((stop - 1, _code(match["last"])),)
    three = len(match["first"]) == 3
    if match["between"]:
        if stop - start != 2:
            raise InputError(
                f"mutation {_shown(text)} should name two neighbours, as K23_L24insQS does"
            )
        return Edit(start + 1, start + 1, _residues(match["between"], three, text), expected)
    if stop <= start:
        raise InputError(
            f"mutation {_shown(text)} ends before it begins; put the smaller place first"
        )
    letters = _codes(match["gone"] or match["copied"] or "", three)
    if letters and len(letters) != stop - start:
        raise InputError(
            f"mutation {_shown(text)} names {len(letters)} residues in the place of "
            f"{stop - start}; correct one of the two"
        )
    expected += tuple(enumerate(letters, start))
    if match["dup"]:
        return Edit(start, stop, "", expected, duplicates=True)
    return Edit(start, stop, _residues(match["instead"] or "", three, text), expected)


def _substitution(at: int, wild_type: str, mutant: str, text: str) -> Edit:
    """`wild_type` is replaced by `mutant`."""
    if mutant != wild_type:
        _require_letters(mutant, text)
    return Edit(at, at + 1, mutant, ((at, wild_type),))


def _shown(text: str) -> str:
    """A mutation as shown in a message."""
    return ascii(text) if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]!a}…"


def _code(text: str) -> str:
    """The letter of a residue in one-letter or three-letter code."""
    return THREE_LETTERS.get(text.lower(), text.upper())


def _codes(text: str, three: bool) -> str:
    """The letters of several residues; `three` if the notation uses three-letter codes."""
    return "".join(map(_code, EACH_RESIDUE.findall(text))) if three else text.upper()


def _residues(text: str, three: bool, mutation: str) -> str:
    """The letters of the residues that a mutation inserts, checked."""
    letters = _codes(text, three)
    _require_letters(letters, mutation)
    return letters


def _require_letters(letters: str, mutation: str) -> None:
    """Raise InputError if a mutation leads to a letter that is no residue."""
    if "*" in letters:
        raise InputError(
            f"mutation {_shown(mutation)} is a stop; give the protein it makes as a sequence"
        )
    for letter in letters:
        if letter not in SINGLE_RESIDUES:
            raise InputError(f"mutation {_shown(mutation)} leads to {letter}, {NO_RESIDUE}")


def resolve(variant: Variant, wild_type: str, offset: int = 0) -> Variant:
    """The same edits, sorted, checked against the wild type, and with duplications written out.

    Messages number residues as the text does. Raises MisfitError for an expected residue that does
    not exist or is another one, InputError for edits that overlap.
    """
    length, shift = len(wild_type), offset + 1
    edits = []
    for edit in variant:
        for at, letter in edit.expected:
            if not 0 <= at < length:
                ends = f"{shift} to {length + offset}" if offset else f"{length} residues"
                raise MisfitError(f"residue {at + shift} does not exist: the protein has {ends}")
            if wild_type[at] != letter:
                raise MisfitError(f"residue {at + shift} is {wild_type[at]}, not {letter}")
        if edit.duplicates:
            copied = wild_type[edit.start : edit.stop]
            edit = edit._replace(start=edit.stop, inserted=copied, duplicates=False)
        edits.append(edit)
    edits.sort()
    for one, other in pairwise(edits):
        if other.start < one.stop or other[:2] == one[:2]:
            raise InputError(f"residue {other.start + shift} is mutated twice; keep one of them")
    return tuple(edits)


def substitutions(variant: Variant, wild_type: str) -> list[tuple[int, str]] | None:
    """Positions and new residues of a resolved variant; None if it changes the length."""
    if not all(edit.keeps_length for edit in variant):
        mutant = mutate(variant, wild_type)
        if len(mutant) != len(wild_type):
            return None
        variant = compare(wild_type, mutant)
    return [
        (at, letter)
        for edit in variant
        for at, letter in enumerate(edit.inserted, edit.start)
        if wild_type[at] != letter
    ]


def mutate(variant: Variant, wild_type: str) -> str:
    """The sequence that a resolved variant makes of `wild_type`."""
    parts, done = [], 0
    for edit in variant:
        parts += [wild_type[done : edit.start], edit.inserted]
        done = edit.stop
    return "".join([*parts, wild_type[done:]])


def compare(wild_type: str, mutant: str) -> Variant:
    """The resolved variant that makes `mutant` of `wild_type`.

    Sequences of equal length differ by substitutions; others by one stretch, between what they
    share at their beginnings and ends.
    """
    if len(wild_type) == len(mutant):
        pairs = enumerate(zip(wild_type, mutant, strict=True))
        return tuple(Edit(at, at + 1, new, ((at, old),)) for at, (old, new) in pairs if old != new)
    shorter = min(len(wild_type), len(mutant))
    start = 0
    while start < shorter and wild_type[start] == mutant[start]:
        start += 1
    tail = 0
    while tail < shorter - start and wild_type[-1 - tail] == mutant[-1 - tail]:
        tail += 1
    return (Edit(start, len(wild_type) - tail, mutant[start : len(mutant) - tail]),)


def require_residues(variant: Variant) -> None:
    """Raise InputError if a variant leads to a letter that stands for no single amino acid."""
    for edit in variant:
        for at, letter in enumerate(edit.inserted, edit.start + 1):
            if letter not in SINGLE_RESIDUES:
                raise InputError(f"residue {at} becomes {letter}, {NO_RESIDUE}")


def spell(variant: Variant, wild_type: str) -> str:
    """A resolved variant as text that `parse` reads: `A42G:T50K`, `K23_V25del`; `=` for none."""
    changes = substitutions(variant, wild_type)
    if changes is not None:
        return ":".join(f"{wild_type[at]}{at + 1}{new}" for at, new in changes) or "="
    ((start, stop, inserted, *_),) = compare(wild_type, mutate(variant, wild_type))
    if start == stop:  # HGVS names the neighbours of an insertion; at the ends there is only one
        if 0 < start < len(wild_type):
            return f"{wild_type[start - 1]}{start}_{wild_type[start]}{start + 1}ins{inserted}"
        if start == 0:
            stop, inserted = 1, inserted + wild_type[0]
        else:
            start, inserted = start - 1, wild_type[-1] + inserted
    stretch = f"{wild_type[start]}{start + 1}"
    if stop - start > 1:
        stretch += f"_{wild_type[stop - 1]}{stop}"
    return f"{stretch}delins{inserted}" if inserted else f"{stretch}del"
