"""Names and numbers of the labels that a classifier's config holds."""

from __future__ import annotations

from typing import Any

from esm_pipeline.errors import WeightsError


def read_labels(
    names: Any, numbers: Any, count: int | None
) -> tuple[dict[int, str], dict[str, int]]:
    """`id2label` and `label2id` from what of them, and of `num_labels`, is given; two by default.

    Numbers may be text, as JSON has them. Raises WeightsError for what is no mapping, and for
    names of another number than `count`.
    """
    if names is None:
        if type(count) is not int and count is not None:
            raise WeightsError(f"config: num_labels is {count!r}; it should be a whole number")
        names = {number: f"LABEL_{number}" for number in range(2 if count is None else count)}
        numbers = None
    elif count is not None and len(names) != count:
        raise WeightsError(
            f"config: num_labels is {count}, but id2label names {len(names)}; leave out one"
        )
    try:
        id2label = {int(number): name for number, name in names.items()}
        label2id = {name: number for number, name in id2label.items()}
        return id2label, label2id if numbers is None else dict(numbers.items())
    except (AttributeError, TypeError, ValueError):
        raise WeightsError(
            "config: id2label should map numbers to names and label2id names to numbers; they are "
            f"{names!r} and {numbers!r}"
        ) from None
