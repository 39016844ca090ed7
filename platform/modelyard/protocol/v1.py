# SPDX-License-Identifier: Apache-2.0
"""The v1 protocol: KServe's and TensorFlow Serving's ``:predict``, ``:explain``, and the list and status of models.

"One request": ``decode_predict`` and ``encode_predict`` are its two ends on v1. JSON says nothing of datatypes here, so
the decoder takes them from the model's signature.

Source: KServe "Data Plane (V1)"; TensorFlow Serving "RESTful API", "Predict API".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import numpy as np
import orjson

from modelyard.errors import InvalidRequest, InvalidTensor, ModelNotReady
from modelyard.inference import InferenceRequest, InferenceResponse, RequestedOutput
from modelyard.protocol.errors import to_message
from modelyard.protocol.fields import (
    check_list,
    check_object,
    check_parameters,
    check_text,
    check_unique,
    expected,
    quoted,
    show,
)
from modelyard.protocol.http import Encoded, Header, encode_json, load_json
from modelyard.protocol.openai import to_model
from modelyard.protocol.tensors import fill_gaps, from_json, may_hold_bools, to_json
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array

_COLUMN_SHAPES: Final = frozenset({(), (-1,), (-1, 1)})


class Form(Enum):
    """How a request laid out its data, and so how it is answered."""

    ROW = "predictions"
    COLUMNAR = "outputs"


def decode_predict(body: bytes, signature: Signature) -> tuple[InferenceRequest, Form]:
    """One request in row (``instances``) or columnar (``inputs``) form.

    Rows are values for the one input that has to be there, lists for the single input, records ``{"a": 1}`` by input or
    column name, records of lists ``{"a": [1, 2]}`` with several rows in each, or lists with one value for each input in
    order. Columnar data is an object of arrays by input name, or one bare array; a list of records or rows is taken
    there too.

    Args:
        body: The whole body, decompressed.
        signature: The model's, for names and datatypes.

    Raises:
        InvalidRequest: The body is not the protocol's shape.
        InvalidTensor: A value is not what the input's datatype takes, or rows differ in length.
    """
    return decode_document(load_predict(body), may_hold_bools(body), signature)


def load_predict(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        InvalidRequest: It is none.
    """
    return check_object(load_json(body), "the request body")


def decode_document(document: dict[str, Any], bools: bool, signature: Signature) -> tuple[InferenceRequest, Form]:
    """As :func:`decode_predict`, of a body that is read already.

    Args:
        document: From :func:`load_predict`.
        bools: Whether there can be booleans in it.
        signature: As for :func:`decode_predict`.

    Raises:
        InvalidRequest: As for :func:`decode_predict`.
    """
    if "instances" in document:
        if "inputs" in document:
            raise InvalidRequest('the request body: expected either "instances" or "inputs", got both')
        form, inputs = Form.ROW, _decode_rows(document["instances"], signature, "instances", bools)
    elif "inputs" in document:
        form, inputs = Form.COLUMNAR, _decode_columnar(document["inputs"], signature, bools)
    else:
        raise InvalidRequest(f'the request body: expected "instances" or "inputs", got {quoted(document)}')
    if len(document) == 1:
        return InferenceRequest(inputs), form
    check_signature_name(document)
    return to_request(inputs, document), form


def check_signature_name(document: dict[str, Any]) -> str:
    """What a request says of the signature; empty where it says nothing.

    Raises:
        InvalidRequest: It is no string.
    """
    name = document.get("signature_name")
    return "" if name is None else check_text(name, "signature_name")


def to_request(inputs: dict[str, Array], document: dict[str, Any]) -> InferenceRequest:
    """The request with these inputs, and with what else its document says.

    Raises:
        InvalidRequest: Its requested outputs or parameters are not what they have to be.
    """
    parameters = check_parameters(document.get("parameters"), "parameters")
    return InferenceRequest(inputs, "", _decode_outputs(document.get("outputs")), parameters)


def decode_explain(body: bytes, signature: Signature) -> tuple[InferenceRequest, Form]:
    """As :func:`decode_predict`; asks for all explanations where the client names none.

    Args:
        body: As for :func:`decode_predict`.
        signature: With explanations.

    Raises:
        InvalidRequest: As for :func:`decode_predict`, or a requested output is no explanation.
    """
    request, form = decode_predict(body, signature)
    for output in request.outputs:
        if output.name not in signature.explanations:
            raise InvalidRequest(f'"{output.name}" is no explanation: expected one of {quoted(signature.explanations)}')
    outputs = request.outputs or tuple(map(RequestedOutput, signature.explanations))
    return replace(request, outputs=outputs), form


def _decode_outputs(value: Any) -> tuple[RequestedOutput, ...]:
    if value is None:
        return ()
    names = check_list(value, "outputs")
    return check_unique(tuple(RequestedOutput(check_text(name, f"outputs[{i}]")) for i, name in enumerate(names)))


def _decode_rows(rows: Any, signature: Signature, where: str, bools: bool) -> dict[str, Array]:
    if type(rows) is not list or not rows:
        got = "an empty list" if rows == [] else show(rows)
        raise InvalidRequest(f"{where}: expected a non-empty list, got {got}")
    if type(rows[0]) is dict:
        return _decode_records(rows, signature, where, bools)
    bare = signature.bare
    if bare is not None and (len(signature.inputs) == 1 or type(rows[0]) is not list):
        return {bare.name: from_json(rows, DATATYPES[bare.datatype], where, bools)}
    return _decode_positional(rows, signature, where, bools)


def _decode_positional(rows: list[Any], signature: Signature, where: str, bools: bool) -> dict[str, Array]:
    """Rows with one value for each input, in the signature's order."""
    width = len(signature.inputs)
    for index, row in enumerate(rows):
        if type(row) is not list or len(row) != width:
            names = quoted(spec.name for spec in signature.inputs)
            got = str(len(row)) if type(row) is list else show(row)
            raise InvalidTensor(f"{where}[{index}]", f"a list of {width} values ({names})", got)
    columns = zip(signature.inputs, zip(*rows, strict=True), strict=True)
    return {spec.name: _decode_column(list(values), spec, where, bools) for spec, values in columns}


def _decode_column(values: Any, spec: TensorSpec, where: str, bools: bool) -> Array:
    array = from_json(fill_gaps(values, spec), DATATYPES[spec.datatype], f'{where} "{spec.name}"', bools)
    return array.reshape(-1, 1) if array.ndim == 1 and spec.shape == (-1, 1) else array


def _decode_records(records: list[Any], signature: Signature, where: str, bools: bool) -> dict[str, Array]:
    if any(spec.gaps and spec.optional for spec in signature.inputs):
        records = _align(records, signature)
    specs = _record_specs(records[0], signature)
    names = [spec.name for spec in specs]
    columns = take_columns(records, names, where)
    if len(specs) > len(signature.inputs) and type(columns[0][0]) not in (list, dict):
        matrix = _decode_matrix(columns, signature.inputs[0], where, bools)
        if matrix is not None:
            return {signature.inputs[0].name: matrix}
    return {
        spec.name: _decode_column(_expand(list(values), spec, where), spec, where, bools)
        for spec, values in zip(specs, columns, strict=True)
    }


def _align(records: list[Any], signature: Signature) -> list[Any]:
    """Records with null where they leave out what others have, and may."""
    there = {name for record in records if type(record) is dict for name in record}
    gaps = [spec.name for spec in signature.inputs if spec.gaps and spec.optional and spec.name in there]
    return [dict.fromkeys(gaps) | record if type(record) is dict else record for record in records]


def take_columns(records: list[Any], names: list[str], where: str) -> list[tuple[Any, ...]]:
    """The values of each name in all records, which must have these names and no others."""
    width = len(names)
    for index, record in enumerate(records):
        if type(record) is not dict or len(record) != width:
            raise _record_fault(record, names, f"{where}[{index}]")
    try:
        return [tuple(map(itemgetter(name), records)) for name in names]
    except KeyError as exc:
        index = next(i for i, record in enumerate(records) if exc.args[0] not in record)
        raise _record_fault(records[index], names, f"{where}[{index}]") from None


def _decode_matrix(columns: list[tuple[Any, ...]], spec: TensorSpec, where: str, bools: bool) -> Array | None:
    """The one matrix that all columns make; None where a value does not fit, so that its column can be named."""
    values = list(chain.from_iterable(zip(*columns, strict=True)))
    try:
        return from_json(values, DATATYPES[spec.datatype], where, bools).reshape(-1, len(columns))
    except (InvalidTensor, ValueError):
        return None


def _record_specs(record: dict[str, Any], signature: Signature) -> tuple[TensorSpec, ...]:
    """What a record's keys stand for: the inputs, the columns of the one matrix, or the bare input under any name.

    Optional inputs that the first record leaves out are left out by all of them.
    """
    bare = signature.bare
    if bare is None or any(spec.name in record for spec in signature.inputs):
        return tuple(spec for spec in signature.inputs if not spec.optional or spec.name in record)
    if signature.columns and (len(record) != 1 or next(iter(record)) in signature.columns):
        return tuple(TensorSpec(name, bare.datatype, (-1,)) for name in signature.columns)
    if signature.any_input_name and len(record) == 1:
        return (TensorSpec(next(iter(record)), bare.datatype, bare.shape),)
    return signature.inputs if len(signature.inputs) == 1 else (bare,)


def _record_fault(record: Any, names: list[str], where: str) -> InvalidRequest:
    if type(record) is not dict:
        return expected(where, f"an object with {quoted(names)}", record)
    missing = [name for name in names if name not in record]
    unknown = [name for name in record if name not in names]
    return InvalidRequest(
        f"{where}: expected an object with {quoted(names)}; missing {quoted(missing)}, unknown {quoted(unknown)}"
    )


def _expand(values: list[Any], spec: TensorSpec, where: str) -> list[Any]:
    """One column's values where each record holds several rows of it, as a list or as ``{row: value}``.

    Source: KServe ``utils/utils.py`` ``get_predict_input``.
    """
    if spec.shape not in _COLUMN_SHAPES or type(values[0]) not in (list, dict):
        return values
    rows = [list(value.values()) if type(value) is dict else value for value in values]
    for index, row in enumerate(rows):
        if type(row) is not list:
            raise InvalidTensor(f'{where}[{index}] "{spec.name}"', "a list, as in the first record", show(row))
    return list(chain.from_iterable(rows))


def _decode_columnar(value: Any, signature: Signature, bools: bool) -> dict[str, Array]:
    if type(value) is dict:
        specs = ((name, _find_spec(name, signature)) for name in value)
        return {name: _decode_column(value[name], spec, "inputs", bools) for name, spec in specs}
    if type(value) is list:
        return _decode_rows(value, signature, "inputs", bools)
    bare = signature.bare
    if bare is None:
        raise expected("inputs", f"an object with {quoted(spec.name for spec in signature.inputs)}", value)
    return {bare.name: from_json(value, DATATYPES[bare.datatype], "inputs", bools)}


def _find_spec(name: str, signature: Signature) -> TensorSpec:
    for spec in signature.inputs:
        if spec.name == name:
            return spec
    bare = signature.bare
    if bare is not None and name in signature.columns:
        return TensorSpec(name, bare.datatype, (-1,))
    if bare is not None and signature.any_input_name:
        return TensorSpec(name, bare.datatype, bare.shape)
    names = [spec.name for spec in signature.inputs] + list(signature.columns)
    raise InvalidRequest(f'inputs: unknown input "{name}": expected {quoted(names)}')


def encode_predict(response: InferenceResponse, form: Form, signature: Signature | None = None) -> Encoded:
    """``predictions`` for a row request, ``outputs`` for a columnar one; one output is bare, several are named.

    Args:
        response: The answer.
        form: As the request was.
        signature: The model's, for outputs that hold JSON texts: these become part of the document.

    Raises:
        InvalidRequest: An output is not UTF-8, or a row request's outputs have no rows in common.

    Source: TensorFlow Serving "RESTful API", "Response format".
    """
    return encode_json({form.value: _encode_outputs(response, form, signature)})


def encode_batched(
    response: InferenceResponse, batch_id: str, form: Form, signature: Signature | None = None
) -> Encoded:
    """As :func:`encode_predict`, with what KServe's batcher adds.

    Args:
        response: Without the batch's id.
        batch_id: Of the call of the model that this was answered in.
        form: As for :func:`encode_predict`.
        signature: As for :func:`encode_predict`.

    Raises:
        InvalidRequest: As for :func:`encode_predict`.

    Source: KServe ``pkg/batcher/handler.go``, ``Response``.
    """
    return encode_json({"message": "", "batchId": batch_id, form.value: _encode_outputs(response, form, signature)})


def encode_explain(response: InferenceResponse, form: Form) -> Encoded:
    """``explanations``, laid out as :func:`encode_predict` lays out ``predictions`` or ``outputs``.

    Raises:
        InvalidRequest: As for :func:`encode_predict`.

    Source: KServe "Data Plane (V1)", "Explain".
    """
    return encode_json({"explanations": _encode_outputs(response, form, None)})


def _encode_outputs(response: InferenceResponse, form: Form, signature: Signature | None) -> Any:
    specs = () if signature is None else (*signature.outputs, *signature.on_request)
    json_texts = {spec.name for spec in specs if spec.content_type == "json"}
    values = {
        name: _embed(array) if name in json_texts else to_json(array, name) for name, array in response.outputs.items()
    }
    return lay_out(response, form, values)


def _embed(array: Array) -> Any:
    """The JSON texts of an output, as what they say; a model's own, so they are not read again."""
    out = np.empty(array.size, dtype=object)
    out[:] = [orjson.Fragment(item) for item in array.reshape(-1).tolist()]
    return out.reshape(array.shape).tolist()


def lay_out(response: InferenceResponse, form: Form, values: dict[str, Any]) -> Any:
    """What an answer holds: rows, or one bare column or several named ones.

    Args:
        response: The answer.
        form: As for :func:`encode_predict`.
        values: What the JSON encoder takes for each output of the answer.

    Raises:
        InvalidRequest: A row request's outputs have no rows in common.
    """
    if form is Form.COLUMNAR:
        return next(iter(values.values())) if len(values) == 1 else values
    counts = {array.shape[0] if array.ndim else None for array in response.outputs.values()}
    if len(counts) > 1 or None in counts:
        raise InvalidRequest('"instances" asks for one prediction a row, but the outputs have no rows: send "inputs"')
    if len(values) == 1:
        return next(iter(values.values()))
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def encode_model_list(created_s: Mapping[str, int]) -> Encoded:
    """All models, in one object that KServe's and OpenAI's clients both read.

    Args:
        created_s: When each was made, in seconds since 1970, by name.

    Source: KServe "Data Plane (V1)", "List Models"; OpenAI API reference, "List models".
    """
    listed = [to_model(name, since) for name, since in created_s.items()]
    return encode_json({"models": list(created_s), "object": "list", "data": listed})


def encode_model_status(name: str, ready: bool, reason: str, versions: list[dict[str, Any]], created_s: int) -> Encoded:
    """One model, in one object that KServe's, OpenAI's and TensorFlow Serving's clients read; 503 where not ready.

    Args:
        name: The model.
        ready: It answers now.
        reason: Why it does not.
        versions: Its versions, as :func:`~modelyard.protocol.tfserving.status.to_version_status` makes them.
        created_s: When it was made, in seconds since 1970.

    Source: KServe "Data Plane (V1)", "Model Ready"; OpenAI API reference, "Retrieve model"; TensorFlow Serving "RESTful
    API", "Model status API".
    """
    document: dict[str, Any] = {"name": name, "ready": ready, **to_model(name, created_s)}
    document["model_version_status"] = versions
    if ready:
        return encode_json(document)
    error = ModelNotReady(name, reason)
    headers: tuple[Header, ...] = ((b"retry-after", b"%d" % (error.retry_after_s or 1)),)
    return encode_json({**document, "error": to_message(error)}, error.http_status, headers)
