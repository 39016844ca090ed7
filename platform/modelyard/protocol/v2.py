# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol over HTTP: JSON, and the binary tensor data extension.

"One request": ``decode_infer`` and ``encode_infer`` are its two ends on HTTP.

Source: Open Inference Protocol, "HTTP/REST", and Triton's "Binary Tensor Data Extension".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest, InvalidTensor, ModelNotReady
from modelyard.inference import InferenceRequest, InferenceResponse, RequestedOutput
from modelyard.protocol.fields import (
    check_flag,
    check_list,
    check_not_shared,
    check_object,
    check_parameters,
    check_shape,
    check_text,
    check_unique,
    decode_content,
    expected,
)
from modelyard.protocol.http import Encoded, dump_json, encode_json, load_json
from modelyard.protocol.tensors import fill_shape, from_json, may_hold_bools, to_shape, to_text
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import (
    DATATYPES,
    Array,
    Datatype,
    Parameters,
    datatype_of,
    describe,
    from_raw,
    get_datatype,
    to_raw,
)

_BINARY_ONLY: Final = frozenset({"FP16", "BF16"})
_SIZE: Final = "binary_data_size"
_CONTENT_TYPES: Final[Mapping[str, str]] = {"datetime": "datetime", "json": "pd_json", "pd": "pd"}
"""By what metadata calls them in MLServer. ``base64`` is not told, for a client could take it for the default."""


def decode_infer(body: bytes, json_length: int | None, signature: Signature | None = None) -> InferenceRequest:
    """One inference request. Binary tensors are read-only views on the body, BYTES excepted.

    Args:
        body: The whole body, decompressed.
        json_length: ``Inference-Header-Content-Length``; None where the header is absent and all of the body is JSON,
            0 where none of it is.
        signature: The model's; needed for a ``json_length`` of 0 only, where nothing else says what the bytes are.

    Raises:
        InvalidRequest: The body is not the protocol's shape.
        InvalidTensor: A tensor contradicts its own datatype or shape.
    """
    if json_length is None:
        return _decode_document(body, b"")
    if json_length == 0:
        return _decode_raw(body, signature)
    if not 0 < json_length <= len(body):
        raise InvalidRequest(
            f"Inference-Header-Content-Length: expected 0 to {len(body)}, the body's length, got {json_length}"
        )
    return _decode_document(body[:json_length], memoryview(body)[json_length:])


def _decode_document(text: bytes, blobs: bytes | memoryview) -> InferenceRequest:
    document = check_object(load_json(text), "the request body")
    parameters = check_parameters(document.get("parameters"), "parameters")
    check_flag(parameters, "binary_data_output", "parameters")
    entries = document.get("inputs")
    if type(entries) is not list:
        raise expected("inputs", "a list", entries)
    bools = may_hold_bools(text)
    content_type = parameters.get("content_type")
    inputs: dict[str, Array] = {}
    input_parameters: dict[str, Parameters] = {}
    offset = 0
    for index, entry in enumerate(entries):
        name, datatype, shape, own = _decode_head(entry, index)
        where = f'input "{name}"'
        if name in inputs:
            raise InvalidRequest(f"{where} is given twice")
        if _SIZE in own:
            end = offset + _check_size(own[_SIZE], where, len(blobs) - offset)
            array = from_raw(blobs[offset:end], datatype, shape, where)
            offset = end
            own = {key: value for key, value in own.items() if key != _SIZE}
        else:
            array = _decode_data(entry, datatype, shape, where, bools)
        inputs[name] = decode_content(array, own.get("content_type", content_type), where)
        if own:
            input_parameters[name] = own
    if offset != len(blobs):
        raise InvalidRequest(f"binary data: expected {offset} bytes after the JSON, got {len(blobs)}")
    return InferenceRequest(
        inputs, _decode_id(document.get("id")), _decode_outputs(document.get("outputs")), parameters, input_parameters
    )


def _decode_id(value: Any) -> str:
    return "" if value is None else check_text(value, "id")


def _decode_head(entry: Any, index: int) -> tuple[str, Datatype, tuple[int, ...], dict[str, Any]]:
    """Name, datatype, shape and parameters of one input."""
    fields = check_object(entry, f"inputs[{index}]")
    name = fields.get("name")
    if type(name) is not str or not name:
        raise expected(f"inputs[{index}].name", "a non-empty string", name)
    where = f'input "{name}"'
    datatype = get_datatype(check_text(fields.get("datatype"), f"{where} datatype"), f"{where} datatype")
    shape = check_shape(check_list(fields.get("shape"), f"{where} shape"), where)
    parameters = check_parameters(fields.get("parameters"), f"{where} parameters")
    check_not_shared(parameters, where)
    return name, datatype, shape, parameters


def _decode_data(entry: dict[str, Any], datatype: Datatype, shape: tuple[int, ...], where: str, bools: bool) -> Array:
    data = entry.get("data")
    if datatype.name in _BINARY_ONLY:
        raise InvalidTensor(
            where, f"binary data, because JSON cannot carry {datatype.name}", "JSON; send it with binary_data_size"
        )
    if type(data) is not list:
        raise expected(f"{where} data", "a list (or binary_data_size in parameters)", data)
    return to_shape(from_json(data, datatype, f"{where} data", bools), datatype, shape, where)


def _check_size(size: Any, where: str, left: int) -> int:
    if type(size) is not int or size < 0:
        raise expected(f"{where} {_SIZE}", "a number of bytes", size)
    if size > left:
        raise InvalidRequest(
            f"{where} {_SIZE}: expected at most {left} bytes, which is what is left of the body after the JSON"
            f" (header Inference-Header-Content-Length), got {size}"
        )
    return size


def _decode_outputs(value: Any) -> tuple[RequestedOutput, ...]:
    if not value and (value is None or type(value) is list):
        return ()
    return check_unique(tuple(_decode_output(item, i) for i, item in enumerate(check_list(value, "outputs"))))


def _decode_output(entry: Any, index: int) -> RequestedOutput:
    fields = check_object(entry, f"outputs[{index}]")
    name = check_text(fields.get("name"), f"outputs[{index}].name")
    parameters = check_parameters(fields.get("parameters"), f'output "{name}" parameters')
    check_flag(parameters, "binary_data", f'output "{name}" parameters')
    check_not_shared(parameters, f'output "{name}"')
    return RequestedOutput(name, parameters)


def _decode_raw(body: bytes, signature: Signature | None) -> InferenceRequest:
    """The whole body as the single input's only row; all outputs are answered in binary.

    Source: Triton "Binary Tensor Data Extension", "Raw Binary Request".
    """
    if signature is None or len(signature.inputs) != 1:
        count = "unknown" if signature is None else str(len(signature.inputs))
        raise InvalidRequest(f"raw binary request: expected a model with one input, got one with {count}")
    spec = signature.inputs[0]
    where = f'input "{spec.name}"'
    datatype = DATATYPES[spec.datatype]
    if datatype.item_bytes is None:
        array = _one_element(body, spec, where)
    else:
        array = from_raw(
            body, datatype, fill_shape(spec, len(body) // datatype.item_bytes, signature.batch_axis, where), where
        )
    return InferenceRequest({spec.name: array}, parameters={"binary_data_output": True})


def _one_element(body: bytes, spec: TensorSpec, where: str) -> Array:
    if any(dim not in (-1, 1) for dim in spec.shape):
        raise InvalidTensor(where, "shape [1] in a raw binary request of BYTES", str(spec))
    array = np.empty(1, dtype=object)
    array[0] = body
    return array.reshape((1,) * len(spec.shape))


def encode_infer(response: InferenceResponse, request: InferenceRequest) -> Encoded:
    """The answer, each output as JSON or binary as the request asks.

    The request's ``binary_data_output`` speaks of requests that name no outputs; named ones have ``binary_data``.

    Raises:
        InvalidRequest: An output asked for as JSON has no such form: FP16, BF16, bytes that are not UTF-8.

    Source: Triton "Binary Tensor Data Extension", "Binary Tensor Request"; for the first sentence what Triton 2.51 and
    KServe 0.20 do.
    """
    everything = request.parameters.get("binary_data_output", False)
    binary = {output.name: output.parameters.get("binary_data", False) for output in request.outputs}
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes | memoryview] = []
    for name, array in response.outputs.items():
        entry: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": datatype_of(array)}
        if binary.get(name, everything):
            blob = to_raw(array)
            blobs.append(blob)
            entry["parameters"] = {_SIZE: len(blob)}
        else:
            entry["data"] = _encode_data(array, entry["datatype"], name)
        outputs.append(entry)
    document = _encode_document(response, outputs)
    if not blobs and not any("parameters" in entry for entry in outputs):
        return encode_json(document)
    return _encode_binary(dump_json(document), blobs)


def _encode_document(response: InferenceResponse, outputs: list[dict[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version:
        document["model_version"] = response.model_version
    document["id"] = response.id
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    document["outputs"] = outputs
    return document


def _encode_data(array: Array, datatype: str, name: str) -> Any:
    if datatype in _BINARY_ONLY:
        raise InvalidRequest(
            f'output "{name}" is {describe(datatype, array.shape)}, which JSON cannot carry: ask for binary_data'
        )
    if datatype == "BYTES":
        return to_text(array.reshape(-1), f'output "{name}"').tolist()
    return np.ascontiguousarray(array.reshape(-1))


def _encode_binary(text: bytes, blobs: list[bytes | memoryview]) -> Encoded:
    body = b"".join((text, *blobs))
    headers = (
        (b"content-type", b"application/octet-stream"),
        (b"content-length", b"%d" % len(body)),
        (b"inference-header-content-length", b"%d" % len(text)),
    )
    return Encoded(200, body, headers)


def encode_live(live: bool) -> Encoded:
    """Whether the process runs."""
    return encode_json({"live": live}, 200 if live else 503)


def encode_ready(ready: bool) -> Encoded:
    """Whether the server can answer inference now."""
    return encode_json({"ready": ready}, 200 if ready else 503)


def encode_model_ready(name: str, ready: bool) -> Encoded:
    """Whether one model can answer now; 503 with ``Retry-After`` where it cannot."""
    if ready:
        return encode_json({"name": name, "ready": True})
    wait = (b"retry-after", b"%d" % (ModelNotReady.retry_after_s or 1))
    return encode_json({"name": name, "ready": False, "error": f'model "{name}" is not ready'}, 503, (wait,))


def encode_server_metadata(version: str, extensions: Iterable[str]) -> Encoded:
    """Server metadata.

    Source: Open Inference Protocol, "Server Metadata Response JSON Object".
    """
    return encode_json({"name": "modelyard", "version": version, "extensions": list(extensions)})


def encode_model_metadata(name: str, versions: tuple[str, ...], platform: str, signature: Signature) -> Encoded:
    """Model metadata; ``-1`` is a variable dimension. What a datatype does not say is a parameter, as of MLServer.

    Source: Open Inference Protocol, "Model Metadata Response JSON Object"; MLServer ``types/dataplane.py``,
    ``MetadataTensor``.
    """
    document = {"name": name, "versions": versions, "platform": platform}
    tensors = {"inputs": _specs(signature.inputs), "outputs": _specs(signature.outputs)}
    return encode_json(document | tensors)


def _specs(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    return [_spec(spec) for spec in specs]


def _spec(spec: TensorSpec) -> dict[str, Any]:
    plain = {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
    content_type = _CONTENT_TYPES.get(spec.content_type)
    return plain | {"parameters": {"content_type": content_type}} if content_type else plain
