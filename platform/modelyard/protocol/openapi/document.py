# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document of all routes.

Source: OpenAPI Specification 3.1.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from modelyard.errors import InternalError, ModelyardError, Unavailable, UnsupportedMediaType
from modelyard.protocol.openapi.operations import BINARY, EVENT, FORM, JSON, OPENAI, OPERATIONS, Fault, Operation
from modelyard.protocol.openapi.schemas import HEADERS, PARAMETERS, SCHEMAS, Schema, ref, text

OPENAPI: Final = "3.1.1"
MAX_NAMES: Final = 20
"""More models than these are not listed as the values that a path's ``{model}`` takes."""

_ABOUT: Final = """\
One server for every trained model: the Open Inference Protocol (v2), KServe's and TensorFlow Serving's v1, and the
routes that manage models. Each model has a page of its own with a request that it answers: `/v2/models/{model}/docs`.

* Every answer carries `x-request-id`. Every error is JSON with `error`, one sentence; below `/mlflow`,
  MLflow's, and on OpenAI's routes OpenAI's.
* An unknown path is 404 and another method than those listed 405, with `allow`. `HEAD` works where `GET` does, and a
  path may end in a slash.
* JSON is read whatever text type it is sent as, curl's default included. Bodies may be compressed with gzip or deflate,
  both ways.
* Inference also takes CloudEvents, structured or with `ce-` headers, and answers them with one.
"""
_PATH: Final = {
    "model": "Name of the model.",
    "version": "A version's number or a label.",
    "label": "A label of your own.",
    "file": "Name of the file.",
    "region": "Name of the region.",
}
_PREFIXES: Final = {"/platform/": "AdminError", "/mlflow/": "MLflowError"}
"""The schema of errors by how the path begins."""
_OPENAI_ERROR: Final = "OpenAIError"


def build_document(
    server_version: str, models: Sequence[str], server_url: str, registration: Mapping[str, Any]
) -> dict[str, Any]:
    """The document of all routes.

    Args:
        server_version: Of the platform.
        models: Names of all models; of many none is listed.
        server_url: Where the reader reached the platform.
        registration: JSON schema of a model's specification, with its ``$defs``.
    """
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        for path, name in operation.routes():
            item = paths.setdefault(path, _path_item(path, models))
            item[operation.method.lower()] = describe_operation(operation, name)
    return {
        "openapi": OPENAPI,
        "info": {
            "title": "Modelyard",
            "version": server_version,
            "description": _ABOUT,
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server_url}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": paths,
        "components": to_components({**SCHEMAS, **_registration_schemas(registration)}),
    }


def to_components(schemas: Mapping[str, Schema]) -> dict[str, Any]:
    """What documents refer to, with these schemas."""
    responses = {f"{prefix}{status}": _error_response(status, prefix) for status in _faults() for prefix in _ERRORS}
    return {
        "schemas": dict(schemas),
        "responses": responses,
        "parameters": dict(PARAMETERS),
        "headers": dict(HEADERS),
    }


def describe_operation(operation: Operation, name: str) -> dict[str, Any]:
    """The operation object of one route."""
    found: dict[str, Any] = {"operationId": name, "tags": [operation.tag], "summary": operation.summary}
    if operation.description:
        found["description"] = operation.description
    found["parameters"] = [ref(parameter, "parameters") for parameter in ("RequestId", *operation.parameters)]
    if operation.body:
        content = {kind: _content(kind, operation.body) for kind in operation.body_types}
        found["requestBody"] = {"required": operation.body_required, "content": content}
    responses = {str(status): _answer(operation, status, schema) for status, schema in operation.answers.items()}
    prefix = next((schema for start, schema in _PREFIXES.items() if operation.path.startswith(start)), "Error")
    if operation.tag == OPENAI:
        prefix = _OPENAI_ERROR
    faults: tuple[Fault, ...] = (*operation.faults, InternalError)
    if operation.path.startswith("/platform/"):
        faults = (*faults, Unavailable)
    for fault in faults:
        responses.setdefault(str(fault.http_status), ref(f"{prefix}{fault.http_status}", "responses"))
    found["responses"] = dict(sorted(responses.items()))
    return found


def _path_item(path: str, models: Sequence[str]) -> dict[str, Any]:
    names = [part.partition("}")[0] for part in path.split("{")[1:]]
    parameters = [
        {"name": name, "in": "path", "required": True, "description": _PATH[name], "schema": text(minLength=1)}
        for name in names
    ]
    for parameter in parameters:
        if parameter["name"] == "model" and 0 < len(models) <= MAX_NAMES:
            parameter["schema"] = text(enum=list(models))
    return {"parameters": parameters} if parameters else {}


def _content(kind: str, schema: str) -> dict[str, Any]:
    if kind in (JSON, FORM):
        return {"schema": ref(schema)}
    if kind == EVENT:
        return {"schema": ref("CloudEvent")}
    return {"schema": text(format="binary") if kind == BINARY else text()}


def _answer(operation: Operation, status: int, schema: str) -> dict[str, Any]:
    headers = {"x-request-id": ref("RequestId", "headers")}
    if BINARY in operation.answer_types:
        headers["Inference-Header-Content-Length"] = ref("JsonLength", "headers")
    found: dict[str, Any] = {"description": HTTPStatus(status).phrase, "headers": headers}
    if schema or operation.answer_types != (JSON,):
        found["content"] = {kind: _content(kind, schema) for kind in operation.answer_types}
    return found


_ERRORS: Final = ("Error", _OPENAI_ERROR, *_PREFIXES.values())


def _error_response(status: int, schema: str) -> dict[str, Any]:
    kinds = _faults()[status]
    lines = [f"* `{kind.code}`: {_first_line(kind)}" for kind in kinds]
    is_text = schema == "MLflowError" and status == UnsupportedMediaType.http_status
    headers = {"x-request-id": ref("RequestId", "headers")}
    if any(kind.retry_after_s is not None for kind in kinds):
        headers["retry-after"] = ref("RetryAfter", "headers")
    return {
        "description": "\n".join((f"{HTTPStatus(status).phrase}\n", *lines)),
        "headers": headers,
        "content": {"text/plain": {"schema": text()}} if is_text else {JSON: {"schema": ref(schema)}},
    }


def _first_line(kind: Fault) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _faults() -> dict[int, list[Fault]]:
    """The error tree by HTTP status."""
    found: dict[int, list[Fault]] = {}
    for kind in _subclasses(ModelyardError):
        if kind.code != ModelyardError.code or kind is InternalError:
            found.setdefault(kind.http_status, []).append(kind)
    return found


def _subclasses(kind: Fault) -> Iterable[Fault]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def _registration_schemas(schema: Mapping[str, Any]) -> dict[str, Schema]:
    """The schema that pydantic makes of a specification, as components; registering also takes a ``message``."""
    message = text("What the change is for, for the history.")
    whole = {key: value for key, value in schema.items() if key != "$defs"}
    whole["properties"] = {**schema["properties"], "message": message}
    return {"Registration": whole, **schema.get("$defs", {})}
