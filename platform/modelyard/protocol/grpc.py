# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol over gRPC: messages to the vocabulary and back.

"One request": ``decode_infer`` and ``encode_infer`` are its two ends on gRPC. A raw request is answered raw, a typed
one typed. No protobuf message travels past this module.

Source: Open Inference Protocol, "GRPC", and its ``grpc_service.proto``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2 as pb

from modelyard.admin import IndexEntry
from modelyard.errors import InvalidRequest, InvalidTensor, ModelyardError
from modelyard.inference import InferenceRequest, InferenceResponse, RequestedOutput
from modelyard.protocol.errors import to_message
from modelyard.protocol.fields import check_not_shared, check_shape, check_unique, decode_content
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import (
    DATATYPES,
    Array,
    Datatype,
    Parameters,
    ParameterValue,
    datatype_of,
    describe,
    element_count,
    from_raw,
    get_datatype,
    to_raw,
)

_INT64: Final = range(-(2**63), 2**63)


def is_raw(message: pb.ModelInferRequest) -> bool:
    """Whether the tensors travel as ``raw_input_contents``, so that the answer has to be raw too."""
    return len(message.raw_input_contents) > 0


def decode_infer(message: pb.ModelInferRequest) -> InferenceRequest:
    """One inference request. Raw tensors are read-only views on the message's buffers, BYTES excepted.

    Raises:
        InvalidRequest: The message contradicts itself, or a parameter is empty.
        InvalidTensor: A tensor contradicts its own datatype or shape.
        Unsupported: A tensor is, or is to be put, into shared memory.
    """
    _check_not_shared(message)
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(
            f"the number of inputs ({len(message.inputs)}) does not match the expected number of raw input contents"
            f" ({len(raw)}) for model '{message.model_name}'."
        )
    parameters = _decode_parameters(message.parameters, "parameters")
    content_type = parameters.get("content_type")
    inputs: dict[str, Array] = {}
    input_parameters: dict[str, Parameters] = {}
    for index, entry in enumerate(message.inputs):
        name = entry.name
        where = f'input "{name}"'
        if not name or name in inputs:
            raise InvalidRequest(
                f"{where} is given twice" if name else f"inputs[{index}].name: expected a name, got none"
            )
        datatype = get_datatype(entry.datatype, f"{where} datatype")
        shape = check_shape(entry.shape, where)
        if raw:
            _check_no_contents(entry, message.model_name)
            array = from_raw(raw[index], datatype, shape, where)
        else:
            array = _decode_typed(entry.contents, datatype, shape, where)
        own = _decode_parameters(entry.parameters, f"{where} parameters") if entry.parameters else {}
        inputs[name] = decode_content(array, own.get("content_type", content_type), where)
        if own:
            input_parameters[name] = own
    return InferenceRequest(inputs, message.id, _decode_outputs(message.outputs), parameters, input_parameters)


def _check_not_shared(message: pb.ModelInferRequest) -> None:
    for kind, entries in (("input", message.inputs), ("output", message.outputs)):
        for entry in entries:
            check_not_shared(entry.parameters, f'{kind} "{entry.name}"')


def _check_no_contents(entry: Any, model: str) -> None:
    if entry.HasField("contents"):
        raise InvalidRequest(
            f"contents field must not be specified when using raw_input_contents for '{entry.name}' for model '{model}'"
        )


def _decode_outputs(entries: Iterable[Any]) -> tuple[RequestedOutput, ...]:
    return check_unique(
        tuple(RequestedOutput(e.name, _decode_parameters(e.parameters, f'output "{e.name}"')) for e in entries)
    )


def _decode_parameters(parameters: Any, where: str) -> dict[str, ParameterValue]:
    decoded: dict[str, ParameterValue] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f'{where} "{name}": expected a value, got none')
        decoded[name] = getattr(parameter, choice)
    return decoded


def _decode_typed(contents: Any, datatype: Datatype, shape: tuple[int, ...], where: str) -> Array:
    if datatype.contents is None:
        raise InvalidTensor(where, f"raw_input_contents, because contents cannot carry {datatype.name}", "contents")
    for descriptor, _ in contents.ListFields():
        if descriptor.name != datatype.contents:
            raise InvalidTensor(where, f"{datatype.name} in {datatype.contents}", descriptor.name)
    elements = getattr(contents, datatype.contents)
    count = element_count(shape)
    if len(elements) != count:
        raise InvalidTensor(where, f"{count} elements for {describe(datatype.name, shape)}", f"{len(elements)}")
    if datatype.item_bytes is None:
        array = np.empty(count, dtype=object)
        array[:] = list(elements)
        return array.reshape(shape)
    return _narrow(elements, datatype, where).reshape(shape)


def _narrow(elements: Any, datatype: Datatype, where: str) -> Array:
    """The elements of a repeated field as an array; 8 and 16 bit integers travel in 32 bits and are checked."""
    try:
        return np.array(elements[:], dtype=datatype.dtype)
    except OverflowError:
        bounds = np.iinfo(datatype.dtype)
        at, value = next((i, v) for i, v in enumerate(elements) if not bounds.min <= v <= bounds.max)
        expected = f"an integer from {bounds.min} to {bounds.max} ({datatype.name})"
        raise InvalidTensor(f"{where} element {at}", expected, str(value)) from None


def encode_infer(response: InferenceResponse, request: InferenceRequest, raw: bool) -> pb.ModelInferResponse:
    """The answer; all outputs raw, or all typed.

    Args:
        response: What the model said.
        request: What was asked.
        raw: Answer raw; an FP16 or BF16 output, which has no typed form, makes the whole answer raw.
    """
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    _encode_parameters(response.parameters, message.parameters)
    datatypes = {name: DATATYPES[datatype_of(array)] for name, array in response.outputs.items()}
    raw = raw or any(datatype.contents is None for datatype in datatypes.values())
    for name, array in response.outputs.items():
        datatype = datatypes[name]
        output = message.outputs.add(name=name, datatype=datatype.name, shape=array.shape)
        if raw:
            message.raw_output_contents.append(bytes(to_raw(array)))
        elif array.size and datatype.contents is not None:
            getattr(output.contents, datatype.contents).extend(array.reshape(-1).tolist())
    return message


def _encode_parameters(parameters: Parameters, into: Any) -> None:
    for name, value in parameters.items():
        setattr(into[name], _parameter_field(value), value)


def _parameter_field(value: ParameterValue) -> str:
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, int):
        return "int64_param" if value in _INT64 else "uint64_param"
    return "double_param" if isinstance(value, float) else "string_param"


def encode_server_metadata(version: str, extensions: Iterable[str]) -> pb.ServerMetadataResponse:
    """Server metadata."""
    return pb.ServerMetadataResponse(name="modelyard", version=version, extensions=list(extensions))


def encode_model_metadata(
    name: str, versions: tuple[str, ...], platform: str, signature: Signature
) -> pb.ModelMetadataResponse:
    """Model metadata; ``-1`` is a variable dimension."""
    return pb.ModelMetadataResponse(
        name=name,
        versions=versions,
        platform=platform,
        inputs=_specs(signature.inputs),
        outputs=_specs(signature.outputs),
    )


def _specs(specs: tuple[TensorSpec, ...]) -> list[Any]:
    return [
        pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        for spec in specs
    ]


def encode_config(config: dict[str, Any]) -> pb.ModelConfigResponse:
    """The document of :func:`~modelyard.protocol.triton.to_config` as a message."""
    return ParseDict({"config": config}, pb.ModelConfigResponse(), ignore_unknown_fields=True)


def encode_statistics(statistics: dict[str, Any]) -> pb.ModelStatisticsResponse:
    """The document of :func:`~modelyard.protocol.triton.to_statistics` as a message."""
    return ParseDict(statistics, pb.ModelStatisticsResponse(), ignore_unknown_fields=True)


def encode_index(entries: Iterable[IndexEntry]) -> pb.RepositoryIndexResponse:
    """The repository's index."""
    message = pb.RepositoryIndexResponse()
    for entry in entries:
        message.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
    return message


def decode_repository_parameters(parameters: Any) -> Parameters:
    """The parameters of a load or unload; a file's contents are left out, for only its name matters here.

    Raises:
        InvalidRequest: One is empty.
    """
    decoded = _decode_parameters(parameters, "parameters")
    return {name: "" if isinstance(value, bytes) else value for name, value in decoded.items()}


def encode_stream(response: pb.ModelInferResponse, is_final: bool) -> pb.ModelStreamInferResponse:
    """One answer within a stream.

    Args:
        response: The answer; changed in place.
        is_final: No other answer to the same request follows.

    Source: Triton "Decoupled Backends and Models".
    """
    response.parameters["triton_final_response"].bool_param = is_final
    return pb.ModelStreamInferResponse(infer_response=response)


def encode_stream_error(model: str, ident: str, error: ModelyardError) -> pb.ModelStreamInferResponse:
    """What went wrong with one request within a stream, which goes on."""
    response = pb.ModelInferResponse(model_name=model, id=ident)
    response.parameters["triton_final_response"].bool_param = True
    return pb.ModelStreamInferResponse(error_message=to_message(error), infer_response=response)
