# SPDX-License-Identifier: Apache-2.0
"""From the scores of a classifier to its labels and probabilities, one rule for every framework.

Libraries disagree on how a binary classifier answers: one column, two columns, or only a label. Here
``predict_proba`` is always ``[n, classes]`` and ``predict`` always one label per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np

from modelyard.errors import ModelLoadError
from modelyard.tensor import Array, to_protocol_array

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
