# SPDX-License-Identifier: Apache-2.0
"""``tf.Example``: the JSON of ``:classify`` and ``:regress``, and what signatures of these methods answer.

"One request": the examples become the BYTES tensor ``inputs`` of one serialized example in each row; the answer's
tensors become classes with scores, or one number for each row.

Source: TensorFlow Serving "RESTful API", "Classify and Regress API"; ``util/json_tensor.cc`` for the JSON;
``classifier.cc``, ``regressor.cc`` and ``util.cc`` in ``servables/tensorflow`` for what is checked and the context.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest, Unsupported
from modelyard.inference import InferenceRequest, InferenceResponse, RequestedOutput
from modelyard.protocol.fields import quoted, show
from modelyard.protocol.http import Encoded, encode_json
from modelyard.protocol.tensors import to_text
from modelyard.protocol.tfserving.predict import decode_bytes, is_bytes_object
from modelyard.protocol.tfserving.tensors import Budget
from modelyard.protos import tensorflow_pb2 as tf
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, datatype_of, describe

CLASSIFY: Final = "tensorflow/serving/classify"
REGRESS: Final = "tensorflow/serving/regress"
_KINDS: Final = {CLASSIFY: "classification", REGRESS: "regression"}
_INPUT: Final = "inputs"
_CLASSES: Final = "classes"
_SCORES: Final = "scores"
_OUTPUT: Final = "outputs"
_MAX_FLOAT32: Final = float(np.finfo(np.float32).max)
_MAX_SHOWN: Final = 20
_INT64: Final = range(-(2**63), 2**63)


def check_method(signature: Signature, method: str, model: str) -> None:
    """Refuses a signature that has not the tensors of this method.

    The method that the SavedModel itself names does not count: TensorFlow 2 saves all signatures as for prediction.

    Args:
        signature: The one that the request asks for.
        method: :data:`CLASSIFY` or :data:`REGRESS`.
        model: Name of the model.

    Raises:
        Unsupported: The model is no SavedModel: it takes no examples.
        InvalidRequest: It has other tensors.

    Source: TensorFlow Serving's flag ``enable_signature_method_name_check``, which is off.
    """
    if signature.saved is None:
        kind = _KINDS[method]
        raise Unsupported(f'model "{model}" has no {kind} signature that takes tf.Example: ask it with predict')
    fault = find_fault(signature, method)
    if fault:
        raise InvalidRequest(f'signature "{signature.name}" of model "{model}": {fault}')


def find_fault(signature: Signature, method: str) -> str:
    """Why a signature is not of this method; empty where it is."""
    kind = _KINDS[method]
    inputs, outputs = [[spec.name for spec in specs] for specs in (signature.inputs, signature.outputs)]
    if inputs != [_INPUT] or signature.inputs[0].datatype != "BYTES":
        return f'expected one {kind} input, "{_INPUT}" of BYTES, got {_describe(signature.inputs)}'
    if method == REGRESS and outputs != [_OUTPUT]:
        return f'expected one {kind} output, "{_OUTPUT}", got {quoted(outputs)}'
    if method == CLASSIFY and (len(outputs) not in (1, 2) or not {_CLASSES, _SCORES} & set(outputs)):
        return f'expected {kind} outputs "{_CLASSES}" or "{_SCORES}" or both, got {quoted(outputs)}'
    return ""


def _describe(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f'"{spec.name}" of {spec.datatype}' for spec in specs[:_MAX_SHOWN]) or "none"


def to_request(examples: Sequence[bytes], signature: Signature) -> InferenceRequest:
    """The request for some examples.

    Args:
        examples: Serialized; one at least.
        signature: That :func:`check_method` accepts.
    """
    rows = np.empty(len(examples), dtype=object)
    rows[:] = examples
    wanted = (spec.name for spec in signature.outputs if spec.name in (_CLASSES, _SCORES, _OUTPUT))
    return InferenceRequest({_INPUT: rows}, outputs=tuple(map(RequestedOutput, wanted)))


# -- JSON to examples


def decode_examples(document: dict[str, Any], max_bytes: int) -> list[bytes]:
    """The serialized examples in a body; each with the features of ``context`` that it has not itself.

    Args:
        document: The body.
        max_bytes: More than so many in all examples together are refused.

    Raises:
        InvalidRequest: It is not the protocol's shape.
        TooLarge: They are too large, each with its context.
    """
    context = _decode_example(document["context"], "context") if "context" in document else b""
    if "examples" not in document:
        raise InvalidRequest(f"key 'examples' is expected and was not found: got {quoted(document)}")
    examples = document["examples"]
    if type(examples) is not list:
        raise InvalidRequest(f"Expecting 'examples' value to be a list/array: got {show(examples)}")
    if not examples:
        raise InvalidRequest("'examples' value is an empty array: expected an example at least")
    return add_context(context, (_decode_example(e, f"examples[{i}]") for i, e in enumerate(examples)), max_bytes)


def add_context(context: bytes, examples: Iterable[bytes], max_bytes: int) -> list[bytes]:
    """Serialized examples, each after the context: of features with the same name protobuf keeps the last.

    Args:
        context: A serialized example; empty for none.
        examples: Serialized.
        max_bytes: More than so many in all together are refused.

    Raises:
        TooLarge: They are too large.
    """
    budget, found = Budget(max_bytes), []
    for example in examples:
        budget.take(len(context) + len(example))
        found.append(context + example)
    return found


def _decode_example(value: Any, where: str) -> bytes:
    if type(value) is not dict:
        raise InvalidRequest(f"{where}: Example must be JSON object but got {show(value)}")
    example = tf.Example()
    features = example.features.feature
    for name, content in value.items():
        _add_feature(features, name, content if type(content) is list else [content], f'{where} feature "{name[:80]}"')
    return example.SerializeToString()


def _add_feature(features: Any, name: str, values: list[Any], where: str) -> None:
    kinds = {_kind_of(value, where) for value in values}
    if len(kinds) > 1:
        raise InvalidRequest(f"{where}: Unexpected element type: expected all of one type, got {quoted(sorted(kinds))}")
    feature = features[name]
    if "bytes" in kinds:
        feature.bytes_list.value.extend(
            value.encode() if type(value) is str else decode_bytes(value, where) for value in values
        )
    elif "float" in kinds:
        feature.float_list.value.extend(_checked_float(value, where) for value in values)
    elif kinds:
        feature.int64_list.value.extend(_checked_integer(value, where) for value in values)


def _kind_of(value: Any, where: str) -> str:
    """``int64``, ``float`` or ``bytes``; a boolean is an integer."""
    kind = {bool: "int64", int: "int64", float: "float", str: "bytes"}.get(type(value))
    if kind is None and is_bytes_object(value):
        return "bytes"
    if kind is None:
        raise InvalidRequest(
            f'{where}: element with unexpected JSON type: expected a number, boolean, string or {{"b64": "…"}}, got '
            f"{show(value)}"
        )
    return kind


def _checked_float(value: float, where: str) -> float:
    if math.isfinite(value) and abs(value) > _MAX_FLOAT32:
        raise InvalidRequest(f"{where}: Cannot convert JSON value: {value!r} to float without loss of precision.")
    return value


def _checked_integer(value: int, where: str) -> int:
    """Also of a boolean."""
    if value not in _INT64:
        raise InvalidRequest(f"{where}: has uint64 element. Only int64 is supported: got {show(value)}")
    return int(value)


# -- what the signatures answer


def to_classes(response: InferenceResponse, rows: int) -> tuple[Array | None, Array | None]:
    """Labels (BYTES) and scores (FP32) of the classes, ``[rows, classes]`` each; one of them may be None.

    Args:
        response: Of a signature for classification.
        rows: How many examples it was asked about.

    Raises:
        InvalidRequest: The signature has answered with something else.
    """
    labels, scores = response.outputs.get(_CLASSES), response.outputs.get(_SCORES)
    for name, array, datatype in ((_CLASSES, labels, "BYTES"), (_SCORES, scores, "FP32")):
        if array is None:
            continue
        got = describe(datatype_of(array), array.shape)
        if array.ndim != 2:
            raise _fault(response, name, "Tensor shape: [batch_size num_classes]", got)
        if datatype_of(array) != datatype:
            raise _fault(response, name, f"a Tensor of {datatype}", got)
        if array.shape[0] != rows:
            raise _fault(response, name, f"a batch size of {rows}", got)
    if labels is None and scores is None:
        raise _fault(response, f'{_CLASSES}" or "{_SCORES}', "one of them", "none")
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise _fault(response, _SCORES, f"as many as classes, {labels.shape[1]}", str(scores.shape[1]))
    return labels, scores


def to_values(response: InferenceResponse, rows: int) -> Array:
    """The numbers (FP32 ``[rows]``) that a signature for regression answers.

    Args:
        response: Of such a signature.
        rows: How many examples it was asked about.

    Raises:
        InvalidRequest: The signature has answered with something else.
    """
    array = response.outputs.get(_OUTPUT)
    if array is None:
        raise _fault(response, _OUTPUT, "a Tensor", "none")
    got = describe(datatype_of(array), array.shape)
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise _fault(response, _OUTPUT, "a Tensor shape of either [batch_size] or [batch_size, 1]", got)
    if array.shape[0] != rows:
        raise _fault(response, _OUTPUT, f"a batch size of {rows}", got)
    if datatype_of(array) != "FP32":
        raise _fault(response, _OUTPUT, "a Tensor of FP32", got)
    return array.reshape(-1)


def _fault(response: InferenceResponse, name: str, expected: str, got: str) -> InvalidRequest:
    return InvalidRequest(f'model "{response.model_name}" output "{name}": Expected {expected}, got {got}')


def encode_classes(labels: Array | None, scores: Array | None) -> Encoded:
    """``results`` with a list of ``[label, score]`` for each example.

    Raises:
        InvalidRequest: A label is not UTF-8.
    """
    texts = None if labels is None else to_text(labels, f'output "{_CLASSES}"')
    rows = fill_absent(texts, scores)
    return encode_json({"results": [list(map(list, zip(*row, strict=True))) for row in rows]})


def fill_absent(labels: Array | None, scores: Array | None) -> Iterator[tuple[Array, Array]]:
    """Labels and scores of each example; empty texts or zeros for what the signature does not answer."""
    if labels is None and scores is not None:
        labels = np.full(scores.shape, "", dtype=object)
    elif labels is not None and scores is None:
        scores = np.zeros(labels.shape, dtype=np.float32)
    return iter(()) if labels is None or scores is None else zip(labels, scores, strict=True)


def encode_values(values: Array) -> Encoded:
    """``results`` with a number for each example."""
    return encode_json({"results": np.ascontiguousarray(values)})
