# SPDX-License-Identifier: Apache-2.0
"""From the scores of a classifier to its labels and probabilities, one rule for every framework.

Libraries disagree on how a binary classifier answers: one column, two columns, or only a label. Here
``predict_proba`` is always ``[n, classes]`` and ``predict`` always one label per row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.tensor import Array, datatype_of, to_protocol_array

Labels: TypeAlias = tuple[str, ...] | tuple[int, ...]
"""The ``classes`` option: what the model's class 0, 1, 2 … are called."""

CLASSES_DESCRIPTION: Final = (
    "Labels of the classes, in the order of their numbers; the output predict then answers labels instead of numbers."
)


def to_label_array(labels: Sequence[str] | Sequence[int] | None, count: int) -> Array:
    """The labels as a protocol array ``[count]``; the class numbers where none are given.

    Raises:
        ModelLoadError: There are more or fewer labels than classes.
    """
    if labels is None:
        return np.arange(count, dtype=np.int64)
    if len(labels) != count:
        raise ModelLoadError(f"option classes: expected {count} labels, one for each class, got {len(labels)}")
    return to_protocol_array(np.array(labels))


def to_probabilities(scores: Array) -> Array:
    """``[n, classes]``: a binary classifier's ``[n]`` gets its second column (a copy), a matrix stays (a view)."""
    if scores.ndim == 1:
        return np.stack((1 - scores, scores), axis=1)
    return scores


def pick_labels(scores: Array, labels: Array, threshold: float = 0.5) -> Array:
    """One label per row: the largest column, or for ``[n]`` scores the side of the threshold. A copy."""
    index = scores.argmax(axis=1) if scores.ndim > 1 else (scores > threshold).astype(np.intp)
    picked: Array = labels[index]
    return picked


def to_top_classes(scores: Array, count: int, labels: Sequence[str], batch_axis: bool) -> Array:
    """The best classes of each row as ``value:index[:label]``: BYTES ``[rows, count]``, or ``[count]`` without rows.

    Args:
        scores: Numbers; all dimensions but the rows' are taken as one.
        count: How many; the number of classes where that is smaller.
        labels: Names of the classes; those that have none get no label.
        batch_axis: Dimension 0 counts rows.

    Raises:
        InvalidRequest: The output has no numbers.

    Source: Triton "Classification Extension".
    """
    if scores.dtype.kind not in "iufbV" or scores.ndim == 0:
        raise InvalidRequest(f"classification: expected an output of numbers, got {datatype_of(scores)}")
    # Not -1, which numpy refuses to work out where there are no rows.
    rows = scores.reshape(scores.shape[0], math.prod(scores.shape[1:])) if batch_axis else scores.reshape(1, -1)
    ranked = rows.astype(np.float64) if rows.dtype.kind in "fV" else rows.astype(object)
    # Equal ones keep their order, and what is no number comes last.
    order = np.argsort(-ranked, axis=1, kind="stable")[:, :count]
    form = "{:.6f}:{}" if rows.dtype.kind in "fV" else "{:d}:{}"
    top = np.empty(order.shape, dtype=object)
    for row, places in enumerate(order.tolist()):
        for column, place in enumerate(places):
            label = f":{labels[place]}" if place < len(labels) else ""
            top[row, column] = (form.format(ranked[row, place], place) + label).encode()
    return top if batch_axis else top[0]
