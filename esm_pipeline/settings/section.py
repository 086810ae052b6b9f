"""What every group of settings is made from: its base class, its fields, and its check.

No torch: the workflow imports this module at every parse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)

from esm_pipeline.errors import InputError
from esm_pipeline.settings.messages import explain, place_of, with_flags

EXECUTION: dict[str, Any] = {"execution": True}
"""Marks a field that changes how a result is computed but not the result: it reruns nothing."""

COMMAND_LINE = "command line"
"""The source of settings given as flags; error messages then name flags, not keys."""

DIGITS = re.compile("[+-]?[0-9]{1,18}")
NO_ERRORS = "none"
UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")


def digits(value: Any) -> Any:
    """Turn a whole number written as text into an int; return any other `value` unchanged."""
    return int(value) if isinstance(value, str) and DIGITS.fullmatch(value) else value


def not_boolean(value: Any) -> Any:
    """Return `value`. Raises ValueError for true and false, which Python takes for numbers."""
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def require_printable(value: str) -> str:
    """Return `value`. Raises ValueError if it has characters that no path or name can have."""
    if UNPRINTABLE.search(value):
        raise ValueError("contains a line break or control character; remove it")
    return value


def each_once(value: list[Any]) -> list[Any]:
    """Return `value`. Raises ValueError if an item appears twice."""
    if any(one in value[:place] for place, one in enumerate(value)):
        raise ValueError("contains a duplicate; remove one")
    return value


def none_as_list(value: Any) -> Any:
    """Return `none` as a list, as the command line gives it; any other `value` unchanged."""
    return [NO_ERRORS] if value == NO_ERRORS else value


def without_none(value: list[str]) -> list[str]:
    """Return `value`, or [] for [none]. Raises ValueError if `none` comes with others."""
    if NO_ERRORS in value and len(value) > 1:
        raise ValueError(f"{NO_ERRORS!r} goes with no other; remove it or the others")
    return [] if value == [NO_ERRORS] else value


Whole: TypeAlias = Annotated[int, Field(strict=True), BeforeValidator(digits)]
Name: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(require_printable)]
ErrorFormats: TypeAlias = Annotated[
    list[Literal["json", "npz", "cif", "none"]],
    BeforeValidator(none_as_list),
    AfterValidator(without_none),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "items": {"enum": ["json", "npz", "cif", NO_ERRORS], "type": "string"},
                    "type": "array",
                },
                {"const": NO_ERRORS},
            ]
        }
    ),
]
"""Formats of the predicted aligned errors; `none` is read as an empty list."""

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A group of settings; an unknown key in it is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    def part(self, kind: type[S]) -> S:
        """Return the settings of this section that its base class `kind` defines."""
        return kind.model_validate(self.model_dump(include=set(kind.model_fields)))


def check(section: type[S], values: Mapping[str, Any], source: str) -> S:
    """Build `section` from `values`. Raises InputError that says which key is wrong and why."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems: dict[tuple[int | str, ...], str] = {}
        for one in error.errors():  # a union reports several for one place: the first is enough
            place = place_of(section, one["loc"])
            message = explain(section, one)
            if source == COMMAND_LINE:
                message = with_flags(section, place, message)
            problems.setdefault(tuple(place), message)
        raise InputError("\n".join(f"{source}: {each}" for each in problems.values())) from None


def is_execution(section: type[Section], name: str) -> bool:
    """Whether a field of `section` does not change results."""
    extra = section.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("execution"))


def values(section: Section, *, execution: bool = False) -> dict[str, Any]:
    """Return the fields that are set and that change results (or, with `execution`, do not)."""
    return {
        name: value
        for name, value in section
        if is_execution(type(section), name) is execution and value is not None
    }


def texts(section: Section, *, execution: bool = False) -> dict[str, str]:
    """Return the same fields as text."""
    return {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in values(section, execution=execution).items()
    }
