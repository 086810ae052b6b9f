"""Losses of the heads, and checks of the labels before a device trips over them.

Peer: transformers 4.37.2, whose losses these are. Here they are computed in float32 at least,
tokens that the mask leaves out have none, and labels that do not fit raise InputError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from esm_pipeline.errors import InputError
from esm_pipeline.model.layout import PackedLayout

if TYPE_CHECKING:
    from esm_pipeline.model.config import EsmConfig

IGNORED = -100
"""The label of what takes no part in a cross entropy."""

REGRESSION = "regression"
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"


def token_loss(logits: Tensor, labels: Tensor, layout: PackedLayout, width: int) -> Tensor:
    """Mean cross entropy () of packed logits (T, K) over tokens whose label is not −100.

    `labels` (B, width) are the padded batch's; masked tokens are left out, whatever they say there.
    Raises InputError for another shape, for labels that are no whole numbers, and for one that is
    no class, with its place.
    """
    shape = (len(layout.lengths), width)
    if not isinstance(labels, Tensor) or labels.shape != shape:
        raise InputError(f"labels are {told(labels)}; give one for each token, {shape}")
    packed = layout.pack(class_numbers(labels.to(logits.device)))
    wrong = beyond(packed, logits.shape[-1])
    if wrong is not None:
        row, column = int(layout.sequence[wrong]), int(layout.positions[wrong])
        raise no_class(f"labels[{row}, {column}]", packed[wrong], logits.shape[-1])
    return F.cross_entropy(precise(logits), packed)


def sequence_loss(logits: Tensor, labels: Tensor, config: EsmConfig) -> Tensor:
    """The loss () of logits (B, K) that `config.problem_type` names; unset, it is set.

    The reference's choice: one label is a regression, labels of whole numbers name one class each,
    others are numbers from 0 to 1 for each class. Raises InputError for labels that do not fit.
    """
    if not isinstance(labels, Tensor):
        raise InputError(f"labels are {told(labels)}; give a tensor")
    problem = config.problem_type or chosen_problem(labels, logits.shape[-1])
    labels = labels.to(logits.device)
    if problem == SINGLE_LABEL:
        loss = class_loss(logits, labels)
    else:
        loss = value_loss(logits, labels, problem)
    config.problem_type = problem
    return loss


def chosen_problem(labels: Tensor, classes: int) -> str:
    """The problem type that labels and the number of classes stand for."""
    if classes == 1:
        return REGRESSION
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    return SINGLE_LABEL if whole else MULTI_LABEL


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of one class for each sequence, −100 for none."""
    numbers = class_numbers(one_each(labels, logits.shape[0], SINGLE_LABEL))
    wrong = beyond(numbers, logits.shape[-1])
    if wrong is not None:
        raise no_class(f"labels[{wrong}]", numbers[wrong], logits.shape[-1])
    return F.cross_entropy(precise(logits), numbers)


def value_loss(logits: Tensor, labels: Tensor, problem: str) -> Tensor:
    """Mean square error, or binary cross entropy with logits, over all sequences and labels."""
    if logits.shape[-1] == 1:
        labels = one_each(labels, logits.shape[0], problem).unsqueeze(-1)
    if labels.shape != logits.shape:
        remedy = "" if labels.ndim > 1 else "; whole numbers (torch.long) name one class each"
        raise InputError(
            f"labels are {told(labels)}; {problem} takes {tuple(logits.shape)}, a number for each "
            f"label of each sequence{remedy}"
        )
    guesses = precise(logits)
    values = labels.to(guesses.dtype)
    lowest, highest = (0.0, 1.0) if problem == MULTI_LABEL else (-torch.inf, torch.inf)
    fitting = values.isfinite() & (values >= lowest) & (values <= highest)
    if not bool(fitting.all()):
        place = (~fitting).nonzero()[0].tolist()
        asked = "0 for no, 1 for yes" if problem == MULTI_LABEL else "a finite number"
        raise InputError(f"labels{place} is {float(values[tuple(place)]):g}; give {asked}")
    if problem == MULTI_LABEL:
        return F.binary_cross_entropy_with_logits(guesses, values)
    return F.mse_loss(guesses, values)


def one_each(labels: Tensor, count: int, problem: str) -> Tensor:
    """(count,) from (count,), (count, 1) or, for a single one, (). Raises InputError."""
    if labels.shape not in ((count,), (count, 1), ()) or labels.numel() != count:
        raise InputError(
            f"labels are {told(labels)}; {problem} takes ({count},), one for each sequence"
        )
    return labels.reshape(count)


def class_numbers(labels: Tensor) -> Tensor:
    """`labels` as int64. Raises InputError unless they are whole numbers."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(f"labels are {told(labels)}; give classes as whole numbers (torch.long)")
    return labels.long()


def beyond(labels: Tensor, classes: int) -> int | None:
    """The place of the first of `labels` (N,) that is neither a class nor −100."""
    wrong = ((labels < 0) & (labels != IGNORED)) | (labels >= classes)
    return int(wrong.int().argmax()) if bool(wrong.any()) else None


def no_class(place: str, label: Tensor, classes: int) -> InputError:
    """The error for a label that is no class."""
    return InputError(
        f"{place} is {int(label)}; give a class from 0 to {classes - 1}, or {IGNORED} for no loss"
    )


def precise(logits: Tensor) -> Tensor:
    """`logits` in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def told(labels: object) -> str:
    """Type and shape of `labels`, for an error."""
    if not isinstance(labels, Tensor):
        return f"of type {type(labels).__name__}"
    return f"{labels.dtype} of shape {tuple(labels.shape)}"
