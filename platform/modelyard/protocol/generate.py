# SPDX-License-Identifier: Apache-2.0
"""Triton's generate extension: one flat JSON object in, one out, or a stream of them as server-sent events.

"One request": ``decode_generate`` and ``encode_generate`` (or ``encode_event``) are its two ends.

Source: Triton "Generate Extension".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from modelyard.errors import InvalidRequest, ModelyardError
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.protocol.errors import to_message
from modelyard.protocol.fields import check_object, check_text, expected
from modelyard.protocol.http import Encoded, Header, dump_json, encode_json, load_json
from modelyard.protocol.tensors import fill_shape, from_json, may_hold_bools, to_json, to_shape
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array, ParameterValue

EVENT_HEADERS: Final[tuple[Header, ...]] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_SCALARS: Final = frozenset({bool, int, float, str})


def decode_generate(body: bytes, signature: Signature) -> InferenceRequest:
    """One request: keys that name an input (or a column) are tensors, ``id`` is the id, all others are parameters.

    A value or a flat list fills the input's shape; where requests have rows it is one row. The members of the object
    ``parameters`` are taken as if they stood beside it.

    Args:
        body: The whole body, decompressed.
        signature: The model's, for names, datatypes and shapes.

    Raises:
        InvalidRequest: The body is no such object, or a parameter is neither string, number nor boolean.
        InvalidTensor: A value is not what its input takes.
    """
    document = check_object(load_json(body), "the request body")
    bools = may_hold_bools(body)
    specs = _specs(signature)
    inputs: dict[str, Array] = {}
    parameters: dict[str, ParameterValue] = {}
    ident = ""
    for name, value in _members(document):
        spec = specs.get(name)
        if spec is not None:
            if name in inputs:
                raise InvalidRequest(f'input "{name}" is given twice')
            inputs[name] = _decode_input(value, spec, signature.batch_axis, bools)
        elif name == "id":
            ident = check_text(value, "id")
        elif type(value) in _SCALARS:
            parameters[name] = value
        else:
            raise expected(f'"{name}", which is no input of the model', "a string, number or boolean", value)
    return InferenceRequest(inputs, ident, (), parameters)


def _members(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if name == "parameters":
            yield from check_object(value, "parameters").items()
        else:
            yield name, value


def _specs(signature: Signature) -> dict[str, TensorSpec]:
    specs = {spec.name: spec for spec in signature.inputs}
    for column in signature.columns:
        specs.setdefault(column, TensorSpec(column, signature.inputs[0].datatype, (-1,)))
    return specs


def _decode_input(value: Any, spec: TensorSpec, batch_axis: bool, bools: bool) -> Array:
    where = f'input "{spec.name}"'
    datatype = DATATYPES[spec.datatype]
    array = from_json(value if type(value) is list else [value], datatype, where, bools)
    return to_shape(array.reshape(-1), datatype, fill_shape(spec, array.size, batch_axis, where), where)


def to_document(response: InferenceResponse, ident: str) -> dict[str, Any]:
    """The answer as one flat object: an output of one element is a bare value, others are flat lists.

    Args:
        response: What the model said.
        ident: The client's id; empty leaves it out.

    Raises:
        InvalidRequest: An output is not UTF-8.
    """
    document: dict[str, Any] = {"id": ident} if ident else {}
    document |= {"model_name": response.model_name, "model_version": response.model_version}
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    for name, array in response.outputs.items():
        values = to_json(array.reshape(-1), name)
        document[name] = values[0] if array.size == 1 else values
    return document


def encode_generate(response: InferenceResponse, ident: str) -> Encoded:
    """The answer to ``generate``."""
    return encode_json(to_document(response, ident))


def encode_event(response: InferenceResponse, ident: str) -> bytes:
    """One answer of ``generate_stream``, as a server-sent event."""
    return b"data: " + dump_json(to_document(response, ident)) + b"\n\n"


def encode_error_event(error: ModelyardError) -> bytes:
    """The error that ends a stream which has begun."""
    return b"data: " + dump_json({"error": to_message(error)}) + b"\n\n"
