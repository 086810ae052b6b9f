"""Turn pydantic's validation errors into messages that name keys of the config file, or flags."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, get_origin

from pydantic import BaseModel

Place: TypeAlias = list[int | str]
"""The keys and list positions that lead to a value."""

JSON_TYPES = {"boolean": "true or false", "object": "keys with values"}
"""Plain words for some types of a JSON schema."""

SHORT_VALUE = reprlib.Repr()
SHORT_VALUE.maxstring = SHORT_VALUE.maxother = 80
"""Shows a value on one line, long ones shortened."""


def explain(section: type[BaseModel], problem: Mapping[str, Any]) -> str:
    """Describe one pydantic error on one line: the key, its value, what it should be."""
    place = place_of(section, problem["loc"])
    key, value, kind = ".".join(map(str, place)), problem["input"], problem["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        return f"unknown key {SHORT_VALUE.repr(key)}; {nearest(section, place)}"
    if kind == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
        return f"'{key}' = {SHORT_VALUE.repr(value)}: {message}" if key else message
    if not place:
        return f"{SHORT_VALUE.repr(value)}: should be keys with values, such as 'fasta: my.fasta'"
    if kind == "string_unicode":
        return f"'{key}' = {SHORT_VALUE.repr(value)}: should be UTF-8; rename it"
    return f"'{key}' = {SHORT_VALUE.repr(value)}: should be {expectation(section, place, value)}"


def with_flags(section: type[BaseModel], place: Place, message: str) -> str:
    """Return the message on the value at `place`, or on several, with flags in place of keys."""
    if place:
        return message.replace(f"'{'.'.join(map(str, place))}'", flag(str(place[0])), 1)
    for name in section.model_fields:
        message = message.replace(f"'{name}'", flag(name))
    return message


def flag(name: str) -> str:
    """Return the flag of a setting: `--position-col` for `position_col`."""
    return "--" + name.replace("_", "-")


def place_of(section: type[BaseModel], loc: Sequence[int | str]) -> Place:
    """Return the place of an error, without the parts that pydantic adds for a union."""
    inside: type[BaseModel] | None = section
    place: Place = []
    keyed = False
    for part in loc:
        if inside is None and isinstance(part, str) and not keyed:
            break
        place.append(part)
        keyed = inside is not None and is_keyed(inside, part)
        inside = nested(inside, part) if inside else None
    return place


def is_keyed(section: type[BaseModel], name: int | str) -> bool:
    """Whether the field `name` of `section` is a dict with free keys."""
    field = section.model_fields.get(str(name))
    return field is not None and get_origin(field.annotation) is dict


def nested(section: type[BaseModel], name: int | str) -> type[BaseModel] | None:
    """Return the class of the field `name` of `section` if that is a section, else None."""
    field = section.model_fields.get(str(name))
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def nearest(section: type[BaseModel], place: Place) -> str:
    """Suggest a key for an unknown one: a similar key, or the same name in another section."""
    *groups, name = map(str, place)
    inside = section
    for part in groups:
        inside = nested(inside, part) or inside
    if near := difflib.get_close_matches(name.lower(), inside.model_fields, n=1):
        return f"did you mean '{'.'.join([*groups, near[0]])}'?"
    if elsewhere := [key for key in keys(section) if key.rpartition(".")[2] == name]:
        return f"did you mean '{elsewhere[0]}'?"
    return f"known keys: {', '.join(inside.model_fields)}"


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every key of `section`, dotted for the keys of sections in it."""
    for name in section.model_fields:
        yield prefix + name
        if inner := nested(section, name):
            yield from keys(inner, f"{prefix}{name}.")


def expectation(section: type[BaseModel], place: Place, value: Any) -> str:
    """Return what the value at `place` should be and, if `value` is close, how to correct it."""
    *groups, name = (part for part in place if isinstance(part, str))
    for part in groups:
        section = nested(section, part) or section
    if inner := nested(section, name):
        example = next(iter(inner.model_fields))
        return f"keys with values, such as '{example}'; write some below it, or leave it out"
    if groups and is_keyed(section, groups[-1]):
        name = groups[-1]
    schema = section.model_json_schema()["properties"][name]
    if place[-1] != name:
        return in_words(schema.get("items") or schema["additionalProperties"])
    wanted = in_words(schema)
    if value is None or value == "":
        default = section.model_fields[name].get_default(call_default_factory=True)
        return f"{wanted}; leave it out" + (f" for {default!r}" if default else "")
    if schema.get("type") == "array" and not isinstance(value, dict):
        return f"{wanted}; add an item" if value == [] else f"{wanted}; write [{value}]"
    if wanted == "text" and not isinstance(value, (str, list, dict)):
        return f"{wanted}; put it in quotes, in the config file"
    return wanted


def in_words(schema: Mapping[str, Any]) -> str:
    """Describe the values that a JSON schema accepts."""
    if "anyOf" in schema:
        return " or ".join(in_words(one) for one in schema["anyOf"] if one.get("type") != "null")
    for kind in ("const", "enum", "examples"):
        if kind in schema:
            *others, last = map(repr, [schema[kind]] if kind == "const" else schema[kind])
            return f"{', '.join(others)} or {last}" if others else last
    if schema["type"] in JSON_TYPES:
        return JSON_TYPES[schema["type"]]
    if schema["type"] == "array":
        return f"a list, each item {in_words(schema['items'])}"
    if schema["type"] == "number":
        least, most = schema.get("minimum"), schema.get("maximum")
        bounds = [f" from {least:g}"] if least is not None else []
        return "a number" + "".join(bounds + ([f" to {most:g}"] if most is not None else []))
    if schema["type"] == "integer":
        least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        most = schema.get("maximum")
        if unit := schema.get("multipleOf"):
            return f"a multiple of {unit:,}"
        return f"a whole number from {least} to {most}" if most else f"a whole number from {least}"
    return "text"
