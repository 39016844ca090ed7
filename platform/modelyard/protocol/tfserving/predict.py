# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Serving's own rules for the JSON of ``:predict``, which hold for signatures of SavedModels.

"One request": its two ends for these models on v1. Stricter than KServe's: a row names all inputs, nothing is taken for
something else. The form of the answer is the same, with bytes as ``{"b64": "…"}`` where the output's name says so.

Source: TensorFlow Serving "RESTful API", "Predict API"; ``util/json_tensor.cc``.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import replace
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest, InvalidTensor
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.protocol.fields import quoted, show
from modelyard.protocol.http import Encoded, encode_json
from modelyard.protocol.tensors import check_string, flatten, from_json, to_json
from modelyard.protocol.v1 import Form, lay_out, take_columns, to_request
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array

_LOSSLESS: Final = {"FP32": 2**24 - 1, "FP64": 2**53 - 1}
"""Up to these, every integer is a float of the datatype."""
_B64: Final = "b64"
_BYTES_SUFFIX: Final = "_bytes"
_SPACE: Final = {ord(space): None for space in " \t\r\n"}


def decode_document(document: dict[str, Any], bools: bool, signature: Signature) -> tuple[InferenceRequest, Form]:
    """One request in row (``instances``) or columnar (``inputs``) form.

    Args:
        document: The body.
        bools: Whether there can be booleans in it.
        signature: The one that the request asks for.

    Raises:
        InvalidRequest: The document is not the protocol's shape.
        InvalidTensor: A value is not of the input's datatype, or rows differ in shape.
    """
    if "instances" in document:
        if "inputs" in document:
            raise InvalidRequest(
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist: got both"
            )
        form, inputs = Form.ROW, _decode_rows(document["instances"], signature, bools)
    elif "inputs" in document:
        form, inputs = Form.COLUMNAR, _decode_columns(document["inputs"], signature, bools)
    else:
        raise InvalidRequest(f"Missing 'inputs' or 'instances' key: got {quoted(document)}")
    return (InferenceRequest(inputs) if len(document) == 1 else to_request(inputs, document)), form


def _decode_rows(rows: Any, signature: Signature, bools: bool) -> dict[str, Array]:
    if type(rows) is not list:
        raise InvalidRequest(f"Expecting 'instances' to be a list/array: got {show(rows)}")
    if not rows:
        raise InvalidRequest("No values in 'instances' array: expected a row at least")
    single = _single_input(signature)
    if type(rows[0]) is dict and not is_bytes_object(rows[0]):
        specs = [spec for spec in signature.inputs if not spec.optional or spec.name in rows[0]]
        columns = take_columns(rows, [spec.name for spec in specs], "instances")
        return {
            spec.name: _decode(list(values), spec, f'instances "{spec.name}"', bools)
            for spec, values in zip(specs, columns, strict=True)
        }
    if single is None:
        raise InvalidRequest(
            "instances is a plain list, but expecting list of objects as multiple input tensors required: expected an "
            f"object with {quoted(spec.name for spec in signature.inputs)} in each row"
        )
    return {single.name: _decode(rows, single, "instances", bools)}


def _decode_columns(value: Any, signature: Signature, bools: bool) -> dict[str, Array]:
    single = _single_input(signature)
    if type(value) is dict and not is_bytes_object(value):
        found: dict[str, Array] = {}
        for spec in signature.inputs:
            if spec.name in value:
                found[spec.name] = _decode(value[spec.name], spec, f'inputs "{spec.name}"', bools)
            elif not spec.optional:
                raise InvalidRequest(f"Missing named input: {spec.name} in 'inputs' object.")
        return found
    if single is None:
        raise InvalidRequest(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required: expected "
            f"{quoted(spec.name for spec in signature.inputs)}"
        )
    return {single.name: _decode(value, single, "inputs", bools)}


def _single_input(signature: Signature) -> TensorSpec | None:
    """The one input of the signature; None where there are several.

    Raises:
        InvalidRequest: It has none.
    """
    if not signature.inputs:
        raise InvalidRequest(f'Failed to get input map for signature: "{signature.name}" has no inputs')
    return signature.inputs[0] if len(signature.inputs) == 1 else None


def _decode(data: Any, spec: TensorSpec, where: str, bools: bool) -> Array:
    if spec.datatype == "BYTES":
        return _decode_bytes(data, where)
    array = from_json(data, DATATYPES[spec.datatype], where, bools)
    limit = _LOSSLESS.get(spec.datatype, math.inf)
    if array.dtype.kind in "fV" and not (np.abs(array) <= limit).all():  # also where there is NaN
        flatten(data, lambda item: _check_exact(item, spec.datatype, limit), "number", where)
    return array


def _check_exact(item: Any, datatype: str, limit: float) -> str:
    if item is None:
        return f"a number ({datatype})"
    if type(item) is int and abs(item) > limit:
        return f"a number that {datatype} holds without loss of precision"
    return ""


def is_bytes_object(value: Any) -> bool:
    """Whether a JSON value is ``{"b64": "…"}``."""
    return type(value) is dict and len(value) == 1 and type(value.get(_B64)) is str


def decode_bytes(value: dict[str, Any], where: str) -> bytes:
    """What a ``{"b64": "…"}`` holds.

    Raises:
        InvalidTensor: It is not base64.
    """
    text: str = value[_B64].translate(_SPACE)
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError:  # its subclass binascii.Error, or what is not ASCII
        raise InvalidTensor(where, "base64", "something else") from None


def _decode_bytes(data: Any, where: str) -> Array:
    """A BYTES array of strings and ``{"b64": "…"}``, mixed as they come."""
    if type(data) is list and set(map(type, data)) == {str}:
        return from_json(data, DATATYPES["BYTES"], where, False)
    elements, shape = flatten(data, _check_text, "string", where)
    out = np.empty(len(elements), dtype=object)
    for index, item in enumerate(elements):
        out[index] = item.encode() if type(item) is str else decode_bytes(item, f"{where} element {index}")
    return out.reshape(shape)


def _check_text(item: Any) -> str:
    if is_bytes_object(item):
        return ""
    return check_string(item) and 'a string or {"b64": "…"}'


def add_dimension(request: InferenceRequest, signature: Signature) -> tuple[InferenceRequest, bool]:
    """A last dimension of one for the inputs that lack just that, and whether there were any.

    TensorFlow Serving does not hold tensors against the signature's shapes, and its own examples ask ``[-1,1]`` for
    ``[1.0, 2.0, 5.0]``.

    Args:
        request: Decoded; not changed.
        signature: The one that it asks for.

    Source: TensorFlow Serving "RESTful API", "Example".
    """
    lacking = {
        spec.name: array.reshape(*array.shape, 1)
        for spec in signature.inputs
        if spec.shape[-1:] == (1,) and (array := request.inputs.get(spec.name)) is not None and _lacks_one(array, spec)
    }
    return (replace(request, inputs={**request.inputs, **lacking}), True) if lacking else (request, False)


def _lacks_one(array: Array, spec: TensorSpec) -> bool:
    wanted = spec.shape[:-1]
    return len(wanted) == array.ndim and all(dim in (-1, got) for dim, got in zip(wanted, array.shape, strict=True))


def drop_dimension(response: InferenceResponse) -> InferenceResponse:
    """The answer to a request that :func:`add_dimension` has changed: without what it has added."""
    outputs = {
        name: array.reshape(array.shape[:-1]) if array.ndim > 1 and array.shape[-1] == 1 else array
        for name, array in response.outputs.items()
    }
    return replace(response, outputs=outputs)


def encode_predict(response: InferenceResponse, form: Form, batch_id: str | None = None) -> Encoded:
    """``predictions`` for a row request, ``outputs`` for a columnar one; one output is bare, several are named.

    Args:
        response: The answer.
        form: Of the request.
        batch_id: As for :func:`~modelyard.protocol.v1.encode_batched`; None where nobody wants it.

    Raises:
        InvalidRequest: A text is not UTF-8, or a row request's outputs have no rows in common.
    """
    values = {name: _encode(array, name) for name, array in response.outputs.items()}
    answer = {form.value: lay_out(response, form, values)}
    return encode_json(answer if batch_id is None else {"message": "", "batchId": batch_id, **answer})


def _encode(array: Array, name: str) -> Any:
    if array.dtype.kind != "O" or not name.endswith(_BYTES_SUFFIX):
        return to_json(array, name)
    out = np.empty(array.size, dtype=object)
    for index, item in enumerate(array.reshape(-1).tolist()):
        out[index] = {_B64: base64.b64encode(item).decode()}
    return out.reshape(array.shape).tolist()
