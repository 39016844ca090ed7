# SPDX-License-Identifier: Apache-2.0
"""From a classifier's logits to labels and scores, of texts and images alike.

``label`` and ``score`` are the best class of each row; where the option ``top_k`` is another number than 1 each row has
as many, the best first. ``predict``, ``predict_proba`` and ``logits`` are there when asked for.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import numpy as np

from modelyard.errors import InvalidRequest
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._huggingface_options import Function, TopK
from modelyard_deployments._huggingface_values import read_count

Applied: TypeAlias = Literal["softmax", "sigmoid", "none"]

_LABEL: Final = "label"
_SCORE: Final = "score"
_PREDICT: Final = "predict"
_PROBABILITIES: Final = "predict_proba"
_LOGITS: Final = "logits"


def to_labels(config: Any) -> tuple[str, ...]:
    """Names of the classes, in the order of their numbers."""
    return tuple(str(config.id2label.get(index, f"LABEL_{index}")) for index in range(config.num_labels))


def find_function(config: Any, wanted: Function) -> Applied:
    """What makes scores of logits.

    Source: transformers ``pipelines/text_classification.py``, ``TextClassificationPipeline.postprocess``.
    """
    if wanted != "default":
        return wanted
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"


def apply(function: Applied, logits: Array) -> Array:
    """The scores of logits, along the last dimension."""
    if function == "softmax":
        return softmax(logits)
    if function == "sigmoid":
        # Two forms, of which each is exact where the other one overflows.
        small = np.exp(-np.abs(logits))
        scores: Array = np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
        return scores
    return logits


def softmax(logits: Array) -> Array:
    """Along the last dimension."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: Array = raised / raised.sum(axis=-1, keepdims=True)
    return scores


class ScoreHead:
    """Labels and scores of a classifier.

    Args:
        config: The model's.
        function: The option ``function_to_apply``.
        top_k: The option, or what the task has in its place.
    """

    def __init__(self, config: Any, function: Function, top_k: TopK) -> None:
        self.labels = to_labels(config)
        self.function = find_function(config, function)
        self._names = np.array(self.labels, dtype=object)
        self._top_k = len(self.labels) if top_k == "all" else min(top_k, len(self.labels))
        self._has_several = top_k != 1

    @property
    def has_probabilities(self) -> bool:
        """Its scores are probabilities, of two classes or more."""
        return self.function != "none" and len(self.labels) > 1

    def to_signature(self, inputs: tuple[TensorSpec, ...], example: dict[str, Any]) -> Signature:
        """With these inputs."""
        shape = (-1, -1) if self._has_several else (-1,)
        matrix = (-1, len(self.labels))
        on_request = [TensorSpec(_PREDICT, "BYTES", (-1,)), TensorSpec(_LOGITS, "FP32", matrix)]
        labels = {_LOGITS: self.labels}
        if self.has_probabilities:
            on_request.append(TensorSpec(_PROBABILITIES, "FP32", matrix))
            labels[_PROBABILITIES] = self.labels
        return Signature(
            inputs=inputs,
            outputs=(TensorSpec(_LABEL, "BYTES", shape), TensorSpec(_SCORE, "FP32", shape)),
            on_request=tuple(on_request),
            any_input_name=True,
            labels=labels,
            example=example,
        )

    def answer(self, logits: Array, parameters: Parameters) -> Tensors:
        """All outputs.

        Args:
            logits: FP32 ``[rows, classes]``.
            parameters: ``top_k`` is another number of classes than the option says.

        Raises:
            InvalidRequest: More than one class is asked for where the signature has one.
        """
        count = min(read_count(parameters, "top_k", self._top_k), len(self.labels))
        if count > 1 and not self._has_several:
            raise InvalidRequest(
                'parameter "top_k": the model answers one class for each row; set its option top_k, or ask for '
                f'"{_PROBABILITIES if self.has_probabilities else _LOGITS}"'
            )
        scores = apply(self.function, logits)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        best = np.take_along_axis(scores, order, axis=1)
        names = self._names[order]
        answers = {_PREDICT: names[:, 0], _LOGITS: logits, _PROBABILITIES: scores}
        if self._has_several:
            return answers | {_LABEL: names, _SCORE: best}
        return answers | {_LABEL: names[:, 0], _SCORE: best[:, 0]}
