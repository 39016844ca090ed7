# SPDX-License-Identifier: Apache-2.0
"""MLflow's scoring protocol: ``/invocations`` with tables and tensors in JSON, tables in CSV, and its errors.

"One request": ``decode_invocations`` and ``encode_invocations`` are its two ends on ``/mlflow/{model}``. JSON and CSV
say nothing of datatypes here, so the decoder takes them from the model's signature; it serves models of any framework.

Source: mlflow 3.17 ``pyfunc/scoring_server/__init__.py``, ``utils/proto_json_utils.py``, ``exceptions.py``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import orjson

from modelyard.errors import InvalidRequest, InvalidTensor, ModelyardError, RouteNotFound, UnsupportedMediaType
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.protocol.errors import to_message
from modelyard.protocol.fields import check_list, check_object, quoted, show
from modelyard.protocol.http import Encoded, Header, encode_json, load_json
from modelyard.protocol.table import Table, decode_columns, read_csv, to_table
from modelyard.protocol.tensors import from_json, may_hold_bools, to_text
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array

VERSION: Final = "3.17.2"
"""The version of MLflow whose protocol this is; what ``/version`` answers."""

_JSON: Final = "application/json"
_CSV: Final = "text/csv"
_PLAIN: Final = frozenset({"", _JSON, "application/x-www-form-urlencoded", "application/octet-stream"})
"""Read as JSON: what clients send that do not say what they send."""
_FORMS: Final = ("dataframe_split", "dataframe_records", "instances", "inputs")

_CODES: Final = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    405: "BAD_REQUEST",
    409: "ABORTED",
    413: "BAD_REQUEST",
    415: "BAD_REQUEST",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL_ERROR",
    501: "NOT_IMPLEMENTED",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""MLflow's error codes by HTTP status; it has none for 405, 413 and 415."""
_CLASSES: Final = {
    "BAD_REQUEST": ("KAM00", "INVALID_PARAMETER_VALUE"),
    "INVALID_PARAMETER_VALUE": ("KAM01", "SCHEMA_ENFORCEMENT_FAILED"),
}
"""SQLSTATE and error class. Source: mlflow ``error_classification.py``."""


def decode_invocations(body: bytes, content_type: str, signature: Signature) -> InferenceRequest:
    """One request: a table as ``dataframe_split``, ``dataframe_records`` or CSV, or ``instances`` or ``inputs``.

    Columns that the model does not have are ignored, as MLflow does. Values have to fit: ``"1.5"`` is no number and
    1.5 no integer, both of which MLflow casts.

    Args:
        body: The whole body, decompressed.
        content_type: The header; empty where there is none.
        signature: The model's, for names and datatypes.

    Raises:
        InvalidRequest: The body is not the protocol's shape, or inputs are missing.
        InvalidTensor: A value is not what the input's datatype takes, or rows differ in length.
        UnsupportedMediaType: It is neither JSON nor CSV, or not in UTF-8.
    """
    if _check_type(content_type) == _CSV:
        return InferenceRequest(decode_columns(read_csv(body), signature, is_encoded=True))
    document = check_object(load_json(body), "the request body")
    found = [name for name in _FORMS if name in document]
    if len(found) != 1:
        raise InvalidRequest(f"the request body: expected exactly one of {quoted(_FORMS)}, got {quoted(document)}")
    (form,) = found
    bools = may_hold_bools(body)
    if form.startswith("dataframe_"):
        table = _read_split(document[form]) if form == "dataframe_split" else _read_records(document[form], form)
        inputs = decode_columns(table, signature, is_encoded=True, bools=bools)
    else:
        inputs = _decode_values(document[form], form, signature, bools)
    return InferenceRequest(inputs, parameters=_decode_params(document.get("params")))


def _check_type(content_type: str) -> str:
    """The media type, of those that are read.

    Raises:
        UnsupportedMediaType: It is another, in another character set, or has parameters that nobody knows.
    """
    kind, *pairs = (part.strip() for part in content_type.split(";"))
    named = {
        key.strip().lower(): value.strip().strip('"').lower() for key, _, value in (p.partition("=") for p in pairs)
    }
    if named.pop("charset", "utf-8") != "utf-8":
        raise UnsupportedMediaType("The scoring server only supports UTF-8")
    if named.keys() - {""}:
        raise UnsupportedMediaType(f"Unrecognized content type parameters: {', '.join(sorted(named))[:80]}.")
    if kind.lower() == _CSV:
        return _CSV
    if kind.lower() not in _PLAIN:
        types = f"Types: {[_CSV, _JSON]}"
        raise UnsupportedMediaType(
            f"This predictor only supports the following content types: {types}. Got '{kind[:80]}'."
        )
    return _JSON


def _decode_params(value: Any) -> dict[str, Any]:
    """Parameters; lists and objects as JSON text, since a request's are single values, and null as the default."""
    if value is None:
        return {}
    named = check_object(value, "params")
    return {
        name: orjson.dumps(item).decode() if type(item) in (list, dict) else item
        for name, item in named.items()
        if item is not None
    }


def _read_split(value: Any) -> Table:
    """Source: pandas ``DataFrame.to_dict``, orient ``split``; the index is nobody's."""
    document = check_object(value, "dataframe_split")
    extra = document.keys() - {"columns", "data", "index"}
    if "data" not in document or extra:
        raise InvalidRequest(
            f'dataframe_split: expected "data", and "columns" and "index" where wanted, got {quoted(document)}'
        )
    rows = check_list(document["data"], "dataframe_split data")
    names = document.get("columns")
    listed = None if names is None else [_to_name(name) for name in check_list(names, "dataframe_split columns")]
    return to_table(rows, listed, "dataframe_split data")


def _to_name(value: Any) -> str:
    if type(value) not in (str, int):
        raise InvalidRequest(f"dataframe_split columns: expected names, got {show(value)}")
    return str(value)


def _read_records(value: Any, where: str) -> Table:
    """Records of one table, which may leave out what is null in theirs."""
    records = check_list(value, where)
    names: dict[str, None] = {}
    for index, record in enumerate(records):
        names |= dict.fromkeys(check_object(record, f"{where}[{index}]"))
    if not names:
        raise InvalidRequest(f"{where}: expected at least one record with a value, got none")
    return Table({name: [record.get(name) for record in records] for name in names}, len(records), where)


def _decode_values(value: Any, form: str, signature: Signature, bools: bool) -> dict[str, Array]:
    if type(value) is list and value and type(value[0]) is dict and not _is_list_of_objects(signature):
        return decode_columns(_read_records(value, form), signature, bools=bools)
    if type(value) is dict and not _is_list_of_objects(signature):
        return _decode_named(value, form, signature, bools)
    if len(signature.inputs) == 1:
        (spec,) = signature.inputs
        return {spec.name: _decode_array(value, spec, form, signature, bools)}
    rows = value if type(value) is list and value and type(value[0]) is list else [check_list(value, form)]
    return decode_columns(to_table(rows, None, form), signature, bools=bools)


def _is_list_of_objects(signature: Signature) -> bool:
    """The one input has no name, and its values are objects themselves."""
    return signature.any_input_name and signature.inputs[0].content_type == "json"


def _decode_named(value: dict[str, Any], form: str, signature: Signature, bools: bool) -> dict[str, Array]:
    """Arrays by input or column name; where one has objects in it, one row of all."""
    if any(spec.content_type == "json" for spec in signature.inputs):
        return decode_columns(_read_records([value], form), signature, bools=bools)
    specs = {spec.name: spec for spec in signature.inputs}
    if specs.keys() & value.keys():
        _check_there(value, signature, form)
        return {
            name: _decode_array(value[name], spec, f'{form} "{name}"', signature, bools)
            for name, spec in specs.items()
            if value.get(name) is not None
        }
    columns = {name: item if type(item) is list else [item] for name, item in value.items()}
    lengths = set(map(len, columns.values()))
    if len(lengths) != 1:
        raise InvalidTensor(form, "as many values in each column", " and ".join(map(str, sorted(lengths))) or "none")
    return decode_columns(Table(columns, lengths.pop(), form), signature, bools=bools)


def _check_there(value: Mapping[str, Any], signature: Signature, form: str) -> None:
    missing = [spec.name for spec in signature.inputs if not spec.optional and spec.name not in value]
    if missing:
        raise InvalidRequest(f"{form}: the model is missing inputs {quoted(missing)}, got {quoted(value)}")


def _decode_array(value: Any, spec: TensorSpec, where: str, signature: Signature, bools: bool) -> Array:
    """One array; a single row where a dimension is missing."""
    if spec.content_type == "json":
        values = value if type(value) is list else [value]
        array = np.empty(len(values), dtype=object)
        array[:] = [orjson.dumps(item) for item in values]
        return array
    array = from_json(value, DATATYPES[spec.datatype], where, bools)
    return array[np.newaxis] if signature.batch_axis and array.ndim == len(spec.shape) - 1 else array


def encode_invocations(response: InferenceResponse, signature: Signature) -> Encoded:
    """``predictions``: records of a table, the bare array of a single output without a name, else arrays by name.

    Args:
        response: The answer.
        signature: Of the model that gave it.

    Raises:
        InvalidRequest: An output is not UTF-8, and its signature does not say that it is no text.
    """
    specs = {spec.name: spec for spec in signature.outputs}
    values = {name: _to_json(array, name, specs[name].content_type) for name, array in response.outputs.items()}
    if any(spec.content_type == "pd" for spec in signature.outputs):
        names = [_to_label(name) for name in values]
        rows = zip(*(_to_list(value) for value in values.values()), strict=True)
        return encode_json({"predictions": [dict(zip(names, row, strict=True)) for row in rows]})
    if list(values) == ["output-0"]:
        return encode_json({"predictions": values["output-0"]})
    return encode_json({"predictions": values})


def _to_label(name: str) -> str:
    """A column without a name has its number."""
    number = name.removeprefix("output-")
    return number if number != name and number.isdigit() else name


def _to_list(value: Any) -> list[Any]:
    listed: list[Any] = value.tolist() if isinstance(value, np.ndarray) else value
    return listed


def _to_json(array: Array, name: str, content_type: str) -> Any:
    """What the JSON encoder takes. Floats of less than 64 bits are written with the digits that these have."""
    if array.dtype.kind == "O":
        if content_type == "json":
            return [orjson.Fragment(item) for item in array.reshape(-1).tolist()]
        if content_type == "base64":
            return [base64.encodebytes(item).decode() for item in array.reshape(-1).tolist()]
        return to_text(array, f'output "{name}"').tolist()
    if array.dtype.kind in "fV" and array.dtype.itemsize < 8:
        array = array.astype(np.float64)
    return np.ascontiguousarray(array) if array.ndim else array[()]


def encode_error(error: ModelyardError) -> Encoded:
    """MLflow's error object with the error's status; for a body of another type a sentence, as MLflow has it."""
    wait_s = error.retry_after_s
    headers: tuple[Header, ...] = () if wait_s is None else ((b"retry-after", b"%d" % wait_s),)
    if isinstance(error, UnsupportedMediaType):
        return _encode_text(to_message(error), error.http_status, b"text/plain; charset=utf-8")
    code = _CODES[error.http_status]
    if isinstance(error, InvalidTensor):
        code = "INVALID_PARAMETER_VALUE"
    if isinstance(error, RouteNotFound):
        code = "ENDPOINT_NOT_FOUND"
    document = {"error_code": code, "message": to_message(error)}
    if code in _CLASSES:
        document["sqlstate"], document["error_class"] = _CLASSES[code]
    return encode_json(document, error.http_status, headers)


def encode_ping() -> Encoded:
    """The model can answer."""
    return _encode_text("\n", 200, _JSON.encode())


def encode_version() -> Encoded:
    """The protocol's version, as text, whatever the header says."""
    return _encode_text(VERSION, 200, _JSON.encode())


def _encode_text(text: str, status: int, content_type: bytes) -> Encoded:
    body = text.encode()
    return Encoded(status, body, ((b"content-type", content_type), (b"content-length", b"%d" % len(body))))
