"""Losses of the heads, and checks of the labels, which would otherwise fail on the device.

Peer: transformers 4.37.2, with the same losses. Here they are computed in float32 or higher, masked
tokens have no loss, and labels that do not fit raise InputError.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from esm_pipeline.errors import InputError
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.layout import PackedLayout

IGNORED_LABEL = -100
"""The label of tokens and sequences without a cross entropy."""

REGRESSION = "regression"
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"


def token_loss(logits: Tensor, labels: Tensor, layout: PackedLayout, width: int) -> Tensor:
    """Mean cross entropy () of packed logits (T, K) over tokens whose label is not −100.

    `labels` (B, width) are those of the padded batch; labels of masked tokens are not read. Raises
    InputError for another shape, for labels that are not whole numbers, and for a label that is not
    a class, with its place.
    """
    shape = (len(layout.lengths), width)
    if not isinstance(labels, Tensor) or labels.shape != shape:
        raise InputError(f"labels are {describe_labels(labels)}; give one for each token, {shape}")
    packed = layout.pack(class_numbers(labels.to(logits.device)))
    wrong = beyond(packed, logits.shape[-1])
    if wrong is not None:
        row, column = int(layout.sequence[wrong]), int(layout.positions[wrong])
        raise not_a_class(f"labels[{row}, {column}]", packed[wrong], logits.shape[-1])
    return F.cross_entropy(precise(logits), packed)


def sequence_loss(logits: Tensor, labels: Tensor, config: EsmConfig) -> Tensor:
    """The loss () of logits (B, K) by `config.problem_type`, which is set here if it was not.

    As the reference chooses: a single label is a regression; whole numbers are one class for each
    sequence; other labels are a number from 0 to 1 for each class. Raises InputError for labels
    that do not fit.
    """
    if not isinstance(labels, Tensor):
        raise InputError(f"labels are {describe_labels(labels)}; give a tensor")
    problem = config.problem_type or chosen_problem(labels, logits.shape[-1])
    labels = labels.to(logits.device)
    if problem == SINGLE_LABEL:
        loss = class_loss(logits, labels)
    else:
        loss = value_loss(logits, labels, problem)
    config.problem_type = problem
    return loss


def chosen_problem(labels: Tensor, classes: int) -> str:
    """The problem type for these labels and this number of classes."""
    if classes == 1:
        return REGRESSION
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    return SINGLE_LABEL if whole else MULTI_LABEL


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy with one class for each sequence; −100 has no loss."""
    numbers = class_numbers(one_each(labels, logits.shape[0], SINGLE_LABEL))
    wrong = beyond(numbers, logits.shape[-1])
    if wrong is not None:
        raise not_a_class(f"labels[{wrong}]", numbers[wrong], logits.shape[-1])
    return F.cross_entropy(precise(logits), numbers)


def value_loss(logits: Tensor, labels: Tensor, problem: str) -> Tensor:
    """Mean square error, or binary cross entropy with logits, over all sequences and labels."""
    if logits.shape[-1] == 1:
        labels = one_each(labels, logits.shape[0], problem).unsqueeze(-1)
    if labels.shape != logits.shape:
        remedy = "" if labels.ndim > 1 else "; whole numbers (torch.long) name one class each"
        raise InputError(
            f"labels are {describe_labels(labels)}; {problem} takes {tuple(logits.shape)}, a "
            f"number for each label of each sequence{remedy}"
        )
    guesses = precise(logits)
    values = labels.to(guesses.dtype)
    lowest, highest = (0.0, 1.0) if problem == MULTI_LABEL else (-torch.inf, torch.inf)
    fitting = values.isfinite() & (values >= lowest) & (values <= highest)
    if not bool(fitting.all()):
        place = (~fitting).nonzero()[0].tolist()
        wanted = "0 for no, 1 for yes" if problem == MULTI_LABEL else "a finite number"
        raise InputError(f"labels{place} is {float(values[tuple(place)]):g}; give {wanted}")
    if problem == MULTI_LABEL:
        return F.binary_cross_entropy_with_logits(guesses, values)
    return F.mse_loss(guesses, values)


def one_each(labels: Tensor, count: int, problem: str) -> Tensor:
    """(count,) from (count,), (count, 1) or, for a single one, (). Raises InputError."""
    if labels.shape not in ((count,), (count, 1), ()) or labels.numel() != count:
        raise InputError(
            f"labels are {describe_labels(labels)}; {problem} takes ({count},), one for each "
            "sequence"
        )
    return labels.reshape(count)


def class_numbers(labels: Tensor) -> Tensor:
    """`labels` as int64. Raises InputError if they are not whole numbers."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InputError(
            f"labels are {describe_labels(labels)}; give classes as whole numbers (torch.long)"
        )
    return labels.long()


def beyond(labels: Tensor, classes: int) -> int | None:
    """Place of the first of `labels` (N,) that is neither a class nor −100, or None."""
    wrong = ((labels < 0) & (labels != IGNORED_LABEL)) | (labels >= classes)
    return int(wrong.int().argmax()) if bool(wrong.any()) else None


def not_a_class(place: str, label: Tensor, classes: int) -> InputError:
    """The error for a label that is not a class."""
    return InputError(
        f"{place} is {int(label)}; give a class from 0 to {classes - 1}, or "
        f"{IGNORED_LABEL} for no loss"
    )


def precise(logits: Tensor) -> Tensor:
    """`logits` in float32 or higher."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def describe_labels(labels: object) -> str:
    """Type and shape of `labels` for an error."""
    if not isinstance(labels, Tensor):
        return f"of type {type(labels).__name__}"
    return f"{labels.dtype} of shape {tuple(labels.shape)}"
