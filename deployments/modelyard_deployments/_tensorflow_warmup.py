# SPDX-License-Identifier: Apache-2.0
"""Requests that a SavedModel brings along, answered before it counts as loaded.

Source: TensorFlow Serving "SavedModel Warmup" and ``servables/tensorflow/saved_model_warmup_util.cc``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Model
from modelyard.protos import tensorflow_serving_pb2 as pb
from modelyard.tensor import Array, Tensors
from modelyard_deployments._tensorflow_graph import to_reason
from modelyard_deployments._tensorflow_start import import_tensorflow

_LOG: Final = logging.getLogger(__name__)
_FILE: Final = "assets.extra/tf_serving_warmup_requests"
_MOST: Final = 1000
"""Source: TensorFlow Serving, ``WarmupConsts::kMaxNumRecords``."""
_EXAMPLES: Final = "inputs"
"""The input of signatures that take examples. Source: tensorflow ``saved_model/signature_constants.py``."""


def warm_up(folder: Path, find: Callable[[str], Model | None]) -> int:
    """Answers the requests in the SavedModel's file, if it has one.

    Args:
        folder: The SavedModel's.
        find: A signature by its name, the model's own by the empty one; None where there is none.

    Returns:
        How many requests there were.

    Raises:
        ModelLoadError: One of them is damaged, or is not answered.
    """
    if not (folder / _FILE).is_file():
        return 0
    number = 0
    for number, record in enumerate(_read(folder / _FILE), 1):
        if number > _MOST:
            raise ModelLoadError(f"{_FILE}: expected at most {_MOST} requests, got more")
        try:
            for request in _to_requests(pb.PredictionLog.FromString(record)):
                _ask(find, request)
        except Exception as exc:  # what a model raises can be anything
            raise ModelLoadError(f"{_FILE}: request {number} is not answered: {to_reason(exc, folder)}") from exc
    _LOG.info("answered the %d requests of %s", number, _FILE)
    return number


def _read(path: Path) -> Iterator[bytes]:
    tf = import_tensorflow()
    try:
        yield from tf.compat.v1.io.tf_record_iterator(str(path))
    except tf.errors.DataLossError as exc:
        raise ModelLoadError(f"{_FILE}: expected TFRecords, got something else or a part: {to_reason(exc)}") from exc


@dataclass(frozen=True, slots=True)
class _Request:
    """For one signature, the model's own where it has no name; no outputs are all of them."""

    signature: str
    inputs: Tensors
    outputs: tuple[str, ...] = ()


def _to_requests(log: pb.PredictionLog) -> Iterator[_Request]:
    """Those of one record: none, where it is a kind that TensorFlow Serving passes over."""
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        predict = log.predict_log.request
        inputs = {name: _to_array(tensor) for name, tensor in predict.inputs.items()}
        yield _Request(predict.model_spec.signature_name, inputs, tuple(predict.output_filter))
    elif kind == "multi_inference_log":
        several = log.multi_inference_log.request
        for task in several.tasks:
            yield _Request(task.model_spec.signature_name, _to_examples(several.input))
    elif kind in ("classify_log", "regress_log"):
        one = log.classify_log.request if kind == "classify_log" else log.regress_log.request
        yield _Request(one.model_spec.signature_name, _to_examples(one.input))
    elif kind is None:
        raise InvalidRequest("expected a request of Predict, Classify, Regress or MultiInference, got none of them")


def _to_array(tensor: Any) -> Array:
    from tensorflow.core.framework.tensor_pb2 import TensorProto

    array: Array = import_tensorflow().make_ndarray(TensorProto.FromString(tensor.SerializeToString()))
    return array


def _to_examples(given: pb.Input) -> Tensors:
    """One text for each example, behind that of their common context: what is said twice counts as said last."""
    context = given.example_list_with_context.context.SerializeToString()
    examples = [*given.example_list.examples, *given.example_list_with_context.examples]
    if not examples:
        raise InvalidRequest("expected examples, got none")
    rows = np.empty(len(examples), dtype=object)
    rows[:] = [context + example.SerializeToString() for example in examples]
    return {_EXAMPLES: rows}


def _ask(find: Callable[[str], Model | None], request: _Request) -> None:
    model = find(request.signature)
    if model is None:
        raise InvalidRequest(f'there is no signature "{request.signature}"')
    signature = model.signature
    signature.check_outputs(request.outputs)
    outputs = request.outputs or tuple(spec.name for spec in signature.outputs)
    model.predict(signature.bind(request.inputs), outputs, {})
