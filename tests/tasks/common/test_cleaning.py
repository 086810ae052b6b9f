"""What becomes of unusual letters, row by row of the table in the documentation."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks.common.cleaning import RESIDUE_LETTERS, CleanedSequence, clean, is_clean

SETTINGS = [
    CleaningSettings(unknown_residues=unknown, internal_stops=stops, gaps=gaps)
    for unknown in ("replace", "skip")
    for stops in ("skip", "replace")
    for gaps in ("skip", "remove")
]
TO_X = "to read it as X"
REPLACE_J = f"is unknown to the models; set --unknown-residues to 'replace' {TO_X}"
REPLACE_STOP = f"inside the sequence; set --internal-stops to 'replace' {TO_X}"
DROP_GAPS = "set --gaps to 'remove' to drop gaps"


def cleaned(sequence: str, **settings: str) -> CleanedSequence:
    return clean(sequence.encode(), CleaningSettings.model_validate(settings))


@pytest.mark.parametrize("settings", SETTINGS)
def test_residues_stay_as_they_are(settings: CleaningSettings) -> None:
    assert sorted(RESIDUE_LETTERS.decode()) == sorted("ACDEFGHIKLMNPQRSTVWY" + "BUZOX")
    assert clean(RESIDUE_LETTERS, settings) == CleanedSequence(RESIDUE_LETTERS)
    assert is_clean(RESIDUE_LETTERS)
    for letter in set(range(256)) - set(RESIDUE_LETTERS):
        assert not is_clean(b"M" + bytes([letter]) + b"K")
    assert not is_clean(b"")


@pytest.mark.parametrize(
    ("sequence", "settings", "expected"),
    [
        ("MKJ", {}, CleanedSequence(b"MKX", "", ("J at residue 3 replaced by X",))),
        ("JMJJ", {}, CleanedSequence(b"XMXX", "", ("J at residue 1 and 2 more replaced by X",))),
        ("MKJ", {"unknown_residues": "skip"}, CleanedSequence(b"", f"J at residue 3 {REPLACE_J}")),
        ("MK*", {}, CleanedSequence(b"MK", "", ("'*' at the end removed",))),
        ("MK**", {}, CleanedSequence(b"MK", "", ("'*' at the end removed",))),
        (
            "MK*",
            {"internal_stops": "replace"},
            CleanedSequence(b"MK", "", ("'*' at the end removed",)),
        ),
        ("M*K*", {}, CleanedSequence(b"", f"stop '*' at residue 2 {REPLACE_STOP}")),
        ("*MK", {}, CleanedSequence(b"", f"stop '*' at residue 1 {REPLACE_STOP}")),
        (
            "M*K*V*",
            {"internal_stops": "replace"},
            CleanedSequence(
                b"MXKXV",
                "",
                ("stop '*' at residue 2 and 1 more replaced by X", "'*' at the end removed"),
            ),
        ),
        ("MK-V", {}, CleanedSequence(b"", f"gap '-' at residue 3; {DROP_GAPS}")),
        (".MKV", {}, CleanedSequence(b"", f"gap '.' at residue 1; {DROP_GAPS}")),
        (
            "MK*-",
            {"internal_stops": "replace"},
            CleanedSequence(b"", f"gap '-' at residue 4; {DROP_GAPS}"),
        ),
        (
            "-M..K-",
            {"gaps": "remove"},
            CleanedSequence(b"MK", "", ("gap '-' at residue 1 and 3 more removed",)),
        ),
        (
            "MK*-",
            {"gaps": "remove"},
            CleanedSequence(b"MK", "", ("gap '-' at residue 4 removed", "'*' at the end removed")),
        ),
        (
            "M-*K",
            {"gaps": "remove"},
            CleanedSequence(b"", f"stop '*' at residue 3 {REPLACE_STOP}"),
        ),
        *(
            (
                f"MK{character}V",
                {},
                CleanedSequence(
                    b"",
                    f"character {character!a} at residue 3 is no amino acid; correct the sequence",
                ),
            )
            for character in "7?;#\0\x1f\u00e9\ufeff@[`{~"
        ),
        *(
            (
                f"MK{character}V",
                {},
                CleanedSequence(
                    b"",
                    f"character {character!a} at residue 3 is no amino acid; if it separates "
                    "chains, write ':' in its place",
                ),
            )
            for character in "/|"
        ),
        ("", {}, CleanedSequence(b"", "no residues")),
        ("**", {}, CleanedSequence(b"", "no residues")),
        ("--", {"gaps": "remove"}, CleanedSequence(b"", "no residues")),
        (":", {}, CleanedSequence(b"", "no residues")),
        ("MK:VL", {}, CleanedSequence(b"MK:VL")),
        (
            "MK*:VJ*:AA",
            {},
            CleanedSequence(
                b"MK:VX:AA",
                "",
                (
                    "'*' at the end of chain 1 removed",
                    "J at residue 2 of chain 2 replaced by X",
                    "'*' at the end of chain 2 removed",
                ),
            ),
        ),
        ("MK:V-", {}, CleanedSequence(b"", f"gap '-' at residue 2 of chain 2; {DROP_GAPS}")),
        (
            "MK:V1",
            {},
            CleanedSequence(
                b"", "character '1' at residue 2 of chain 2 is no amino acid; correct the sequence"
            ),
        ),
        *(
            (
                sequence,
                {},
                CleanedSequence(b"", f"no residues in chain {chain}; put ':' between chains only"),
            )
            for sequence, chain in ((":MK", 1), ("MK:", 2), ("MK::V", 2), ("MK:*", 2))
        ),
    ],
)
def test_outcomes(sequence: str, settings: dict[str, str], expected: CleanedSequence) -> None:
    assert cleaned(sequence, **settings) == expected


def test_the_first_problem_is_reported() -> None:
    reasons = {
        "J": REPLACE_J,
        "*": REPLACE_STOP,
        "-": DROP_GAPS,
        "7": "is no amino acid",
    }
    for letters in itertools.permutations(reasons):
        outcome = cleaned("M" + "".join(letters) + "M", unknown_residues="skip")
        assert outcome.sequence == b""
        assert reasons[letters[0]] in outcome.reason
        assert "at residue 2" in outcome.reason


def test_bytes_that_are_not_utf8_count_as_one_character_each() -> None:
    assert clean(b"M\xffK", SETTINGS[0]).reason == (
        "character '\\ufffd' at residue 2 is no amino acid; correct the sequence"
    )
    assert " at residue 3 " in cleaned("MX\u00e9").reason


@given(
    st.text("ACDEFGHIKLMNPQRSTVWYBUZOXJ*-.:7 é\0"),
    st.sampled_from(SETTINGS),
)
def test_properties(sequence: str, settings: CleaningSettings) -> None:
    outcome = clean(sequence.encode(), settings)
    assert bool(outcome.sequence) != bool(outcome.reason)
    assert not (outcome.reason and outcome.notes)
    assert all("\n" not in text for text in (outcome.reason, *outcome.notes))
    if outcome.sequence:
        assert clean(outcome.sequence, settings) == CleanedSequence(outcome.sequence)
        assert all(is_clean(chain) for chain in outcome.sequence.split(b":"))
        assert bool(outcome.notes) == (outcome.sequence != sequence.encode())
    if is_clean(sequence.encode()):
        assert outcome == CleanedSequence(sequence.encode())
