"""Names and numbers of the labels of a classifier, as its config has them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from esm_pipeline.errors import WeightsError, brief
from esm_pipeline.model.bounds import MOST_LABELS, is_whole

Names = dict[int, str]
Numbers = dict[str, int]


class Labels:
    """The labels of a config; without names, they get default names when these are first read.

    `count` (default 2), `names` (number → name) and `numbers` (name → number) are those of the
    config; numbers as keys may be text, as in JSON. Raises WeightsError for values that are not
    mappings, and if `count` is not the number of names.
    """

    def __init__(self, names: Any = None, numbers: Any = None, count: Any = None) -> None:
        self.count: int = 2 if count is None else count
        if names is None:
            if type(self.count) is not int:
                raise WeightsError(
                    f"config: num_labels is {brief(count)}; it should be a whole number"
                )
            return
        try:
            self.names = {int(number): name for number, name in names.items()}
            found = {name: number for number, name in self.names.items()}
            self.numbers = found if numbers is None else dict(numbers.items())
        except (AttributeError, TypeError, ValueError):
            raise WeightsError(
                "config: id2label should map numbers to names and label2id names to numbers; they "
                f"are {brief(names)} and {brief(numbers)}"
            ) from None
        self.count = len(self.names)
        if count is not None and self.count != count:
            raise WeightsError(
                f"config: num_labels is {brief(count)}, but id2label names {self.count}; leave out "
                "one"
            )

    @cached_property
    def names(self) -> Names:
        """`id2label`."""
        self.require_supported()
        return {number: f"LABEL_{number}" for number in range(self.count)}

    @cached_property
    def numbers(self) -> Numbers:
        """`label2id`."""
        return {name: number for number, name in self.names.items()}

    def rename(self, names: Names) -> None:
        """Replace the labels; there may be more or fewer."""
        self.names, self.count = names, len(names)

    def require_supported(self) -> None:
        """Raise WeightsError for a number of labels that no classifier can have."""
        if not is_whole(self.count, 1, MOST_LABELS):
            raise WeightsError(
                f"config: num_labels is {brief(self.count)}; a classifier needs at least one, and "
                f"has at most {MOST_LABELS:,}"
            )
