# SPDX-License-Identifier: Apache-2.0
"""Classification of texts, of pairs of texts, and of texts by classes that the request brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Model
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._huggingface_encoder import Place, TextEncoder
from modelyard_deployments._huggingface_load import Loaded
from modelyard_deployments._huggingface_options import HuggingFaceOptions
from modelyard_deployments._huggingface_scores import ScoreHead, softmax
from modelyard_deployments._huggingface_values import read_parameter, to_text_array, to_texts

_TEXT: Final = "text"
_PAIR: Final = "text_pair"
_CANDIDATES: Final = "candidate_labels"
_EXAMPLE: Final = "A most enjoyable evening."


def take_logits(outputs: Any, place: Place) -> Array:
    """One row's logits, FP32 ``[classes]``."""
    logits: Array = outputs.logits[place.index].float().numpy(force=True)
    return logits


class TextClassification(Model):
    """Labels and scores of texts, or of pairs of texts."""

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        self._encoder = TextEncoder(loaded, options)
        self._head = ScoreHead(loaded.config, options.function_to_apply, options.top_k or 1)
        inputs = (TensorSpec(_TEXT, "BYTES", (-1,)), TensorSpec(_PAIR, "BYTES", (-1,), optional=True))
        self._signature = self._head.to_signature(inputs, {_TEXT: _EXAMPLE})

    @property
    def signature(self) -> Signature:
        """``text`` and perhaps ``text_pair``; labels and scores."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Computes logits once, and from them what is asked for.

        Raises:
            InvalidRequest: A text is too long, or no UTF-8.
        """
        pairs = to_texts(_PAIR, inputs[_PAIR]) if _PAIR in inputs else None
        logits = self.to_logits(to_texts(_TEXT, inputs[_TEXT]), pairs)
        answers = self._head.answer(logits, parameters)
        return {name: answers[name] for name in outputs}

    def to_logits(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Array:
        """FP32 ``[rows, classes]``."""
        with self._encoder.lock:
            encoded = self._encoder.tokenize(f'input "{_TEXT}"', texts, pairs)
            return np.stack(self._encoder.run(self._encoder.to_rows(encoded), take_logits))


class ZeroShotClassification(Model):
    """How well each class describes a text, asked of a model that knows whether one sentence follows from another.

    Source: transformers ``pipelines/zero_shot_classification.py``.
    """

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        self._encoder = TextEncoder(loaded, options)
        self._options = options
        self._entailment = _find_entailment(loaded.config)
        self._signature = Signature(
            inputs=(
                TensorSpec(_TEXT, "BYTES", (-1,)),
                TensorSpec(_CANDIDATES, "BYTES", (-1, -1), optional=True),
            ),
            outputs=(TensorSpec("labels", "BYTES", (-1, -1)), TensorSpec("scores", "FP32", (-1, -1))),
            any_input_name=True,
            example={_TEXT: _EXAMPLE, _CANDIDATES: ["theatre", "cooking"]},
        )

    @property
    def signature(self) -> Signature:
        """``text`` and its ``candidate_labels``; these again, the best first, with their scores."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Asks for each text and each of its classes, in batches.

        Raises:
            InvalidRequest: There are no classes, or the template has no place for one.
        """
        texts = to_texts(_TEXT, inputs[_TEXT])
        classes = self._find_classes(inputs, parameters, len(texts))
        template = read_parameter(parameters, "hypothesis_template", str, self._options.hypothesis_template)
        if "{}" not in template:
            raise InvalidRequest('parameter "hypothesis_template": expected {} where the class goes, got none')
        is_multiple = read_parameter(parameters, "multi_label", bool, self._options.multi_label)
        scores = self._score(texts, classes, template, is_multiple or len(classes[0]) == 1)
        # Of equal ones the last comes first, as transformers has it.
        order = np.argsort(scores, axis=1, kind="stable")[:, ::-1]
        answers = {
            "labels": np.take_along_axis(classes, order, axis=1),
            "scores": np.take_along_axis(scores, order, axis=1),
        }
        return {name: answers[name] for name in outputs}

    def _find_classes(self, inputs: Tensors, parameters: Parameters, rows: int) -> Array:
        """Object ``[rows, classes]``."""
        if _CANDIDATES in inputs:
            array = inputs[_CANDIDATES]
            classes = to_text_array(to_texts(_CANDIDATES, array)).reshape(array.shape)
        else:
            listed = read_parameter(parameters, _CANDIDATES, str, "").split(",")
            given = [name.strip() for name in listed if name.strip()] or self._options.candidate_labels
            classes = np.tile(to_text_array(list(given)), (rows, 1))
        if not len(classes[0]):
            raise InvalidRequest(
                f'input "{_CANDIDATES}" is missing: expected a list of classes for each text, or the parameter '
                f'"{_CANDIDATES}" with classes between commas'
            )
        return classes

    def _score(self, texts: Sequence[str], classes: Array, template: str, is_multiple: bool) -> Array:
        rows, count = len(texts), len(classes[0])
        premises = [text for text in texts for _ in range(count)]
        hypotheses = [template.replace("{}", name) for name in classes.reshape(-1).tolist()]
        with self._encoder.lock:
            encoded = self._encoder.tokenize(f'input "{_TEXT}"', premises, hypotheses, cut="only_first")
            logits = np.stack(self._encoder.run(self._encoder.to_rows(encoded), take_logits)).reshape(rows, count, -1)
        if not is_multiple:
            return softmax(logits[..., self._entailment])
        contradiction = -1 if self._entailment == 0 else 0
        return softmax(logits[..., [contradiction, self._entailment]])[..., 1]


def _find_entailment(config: Any) -> int:
    for index, name in config.id2label.items():
        if str(name).lower().startswith("entail"):
            return int(index)
    names = ", ".join(map(str, config.id2label.values()))
    raise ModelLoadError(
        f'task zero-shot-classification: expected a model with a label "entailment", got the labels {names}'
    )
