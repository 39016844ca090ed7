# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document of one model: its routes with the tensors, columns and a request of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from modelyard.protocol.openapi.document import OPENAPI, describe_operation, to_components
from modelyard.protocol.openapi.example import (
    BINARY_ONLY,
    Example,
    to_generate_example,
    to_infer_example,
    to_predict_example,
    to_raw_command,
)
from modelyard.protocol.openapi.operations import JSON, NOT_THERE, OPERATIONS, Operation
from modelyard.protocol.openapi.schemas import SCHEMAS, Schema, list_of, object_of, text
from modelyard.protocol.tfserving.examples import CLASSIFY, REGRESS, find_fault
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES

_EXAMPLES: Final = {
    "infer": to_infer_example,
    "predict": to_predict_example,
    "explain": to_predict_example,
    "generate": to_generate_example,
    "generate_stream": to_generate_example,
}
_SHOWN: Final = ("infer", "predict")
"""Of a model that has them, the requests shown at the top."""

_METHODS: Final = {"classify": CLASSIFY, "regress": REGRESS}
"""What signatures of SavedModels only can do."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a model's document is made of.

    Attributes:
        name: The model.
        version: As the reader asked for it; empty where the paths name none.
        number: The version that answers.
        framework: What loads it.
        signature: What it takes and gives.
    """

    name: str
    version: str
    number: str
    framework: str
    signature: Signature


def build_model_document(model: Described, server_url: str) -> dict[str, Any]:
    """The document of one model.

    Args:
        model: The model.
        server_url: Where the reader reached the platform, without a slash at its end.
    """
    paths: dict[str, dict[str, Any]] = {}
    shown: list[Example] = []
    for operation, path, name in _routes(model):
        described = describe_operation(operation, name)
        example = _find_example(operation, model.signature, f"{server_url}{path}")
        if example is not None:
            if model.signature.decoupled or operation.name in _SHOWN:
                shown.append(example)
            described["requestBody"]["content"][JSON]["example"] = example.body
            described["x-codeSamples"] = [{"lang": "Shell", "label": "curl", "source": example.command}]
            described["description"] = "\n\n".join((_block(example.command), described.get("description", "")))
        paths.setdefault(path, {})[operation.method.lower()] = described
    schemas = {**SCHEMAS, **_schemas(model.signature)}
    return {
        "openapi": OPENAPI,
        "info": {
            "title": model.name,
            "version": model.number,
            "description": _about(model, shown, server_url),
        },
        "servers": [{"url": server_url}],
        "paths": paths,
        "components": _used(to_components(schemas), paths),
    }


def _used(components: dict[str, Any], paths: dict[str, Any]) -> dict[str, Any]:
    """The components that the paths refer to, directly or by others."""
    found: dict[str, dict[str, Any]] = {}
    waiting = list(_references(paths))
    while waiting:
        _, _, kind, name = waiting.pop().split("/")
        if name not in found.setdefault(kind, {}):
            found[kind][name] = components[kind][name]
            waiting.extend(_references(components[kind][name]))
    return found


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _references(item)


def _routes(model: Described) -> Iterator[tuple[Operation, str, str]]:
    """The operations on a model, each with the path that leads to this one."""
    for operation in OPERATIONS:
        if "/models/{model}" not in operation.path or operation.path.startswith(("/platform/", "/v2/repository/")):
            continue
        if not _suits(operation, model.signature):
            continue
        variant = "/versions/{version}" if model.version else ""
        for path, name in operation.routes():
            if path == operation.path.replace("*", variant):
                filled = path.replace("{model}", quote(model.name)).replace("{version}", quote(model.version))
                yield operation, filled, name


def _suits(operation: Operation, signature: Signature) -> bool:
    """Whether this model can do it."""
    if operation.tag == NOT_THERE:
        return False
    if operation.name == "explain":
        return bool(signature.explanations)
    if operation.name in _METHODS:
        return signature.saved is not None and not find_fault(signature, _METHODS[operation.name])
    return not signature.decoupled or operation.name not in ("infer", "predict")


def _find_example(operation: Operation, signature: Signature, url: str) -> Example | None:
    make = _EXAMPLES.get(operation.name)
    return None if make is None else make(signature, url)


def _block(command: str) -> str:
    return f"```console\n{command}\n```"


def _about(model: Described, shown: Sequence[Example], server_url: str) -> str:
    """Tables of inputs and outputs, and commands to paste."""
    signature = model.signature
    parts = [f"Version {model.number}, framework `{model.framework}`."]
    parts.append(_table("input", signature.inputs))
    if signature.columns:
        parts.append(f"The columns of the matrix: {', '.join(map(_code, signature.columns))}.")
    parts.append(_table("output", signature.outputs))
    if signature.on_request:
        parts.append(_table("output when asked for", signature.on_request))
    commands = [example.command for example in shown]
    if not commands:
        commands = [to_raw_command(signature, f"{server_url}/v2/models/{quote(model.name)}/infer")]
    if any(commands):
        parts.extend(("To ask it from a shell:", *map(_block, commands)))
    return "\n\n".join(parts)


def _table(title: str, specs: tuple[TensorSpec, ...]) -> str:
    rows = [f"| {_code(spec.name)} | {spec.datatype} | {list(spec.shape)} |" for spec in specs]
    return "\n".join((f"| {title} | datatype | shape |", "|---|---|---|", *rows))


def _code(name: str) -> str:
    return f"`{name.replace('`', ' ').replace('|', ' ')}`"


def _schemas(signature: Signature) -> dict[str, Schema]:
    """What inference takes and answers, with this model's tensors."""
    outputs = (*signature.outputs, *signature.on_request)
    names = text(enum=[spec.name for spec in outputs])
    request, response = SCHEMAS["InferRequest"], SCHEMAS["InferResponse"]
    predict = SCHEMAS["PredictRequest"]
    wanted = list_of(object_of({"name": names, "parameters": {"type": "object"}}, required=("name",)))
    return {
        "InferRequest": request
        | {"properties": request["properties"] | {"inputs": _tensors(signature), "outputs": wanted}},
        "InferResponse": response
        | {"properties": response["properties"] | {"outputs": list_of(_any_of([_tensor(spec) for spec in outputs]))}},
        "PredictRequest": predict | {"properties": predict["properties"] | _forms(signature)},
        "PredictResponse": _predictions(signature),
    }


def _tensors(signature: Signature) -> Schema:
    described = "The columns may also be sent instead, each as a tensor of its own." if signature.columns else ""
    tensors = [_tensor(spec, signature) for spec in signature.inputs]
    limits = {} if signature.columns else {"minItems": sum(not spec.optional for spec in signature.inputs)}
    return list_of(_any_of(tensors), description=described, **limits)


def _any_of(schemas: list[Schema]) -> Schema:
    """One of the schemas; where there are none, nothing is."""
    return {"anyOf": schemas} if schemas else {"not": {}}


def _tensor(spec: TensorSpec, taken_by: Signature | None = None) -> Schema:
    """One tensor of an answer, or of a request to the model whose signature is given."""
    any_name = taken_by is not None and taken_by.any_input_name
    name = text("Any name.", default=spec.name) if any_name else {"const": spec.name}
    datatype: Schema = {"const": spec.datatype}
    if taken_by is not None and spec.datatype in BINARY_ONLY and not taken_by.exact_datatypes:
        datatype = {"enum": [spec.datatype, "FP32"], "description": f"JSON cannot carry {spec.datatype}."}
    data = list_of({"anyOf": [_element(spec.datatype), {"type": "array"}]}, description="Row-major, flat or nested.")
    dims = [{"type": "integer", "minimum": 0} if dim == -1 else {"const": dim} for dim in spec.shape]
    shape = {"type": "array", "prefixItems": dims, "minItems": len(dims), "maxItems": len(dims)}
    if not dims:
        del shape["prefixItems"]
    return object_of(
        {"name": name, "shape": shape, "datatype": datatype, "data": data},
        required=("name", "shape", "datatype"),
        title=spec.name,
    )


def _forms(signature: Signature) -> dict[str, Schema]:
    """The members ``instances`` and ``inputs`` of a v1 request."""
    specs = signature.inputs
    single = specs[0] if len(specs) == 1 else None
    rows: list[Schema] = [_row(single)] if single is not None else []
    if single is None:
        rows.append(object_of({spec.name: _cell(spec) for spec in specs}))
    elif signature.columns:
        element = _element(single.datatype)
        rows.insert(0, object_of(dict.fromkeys(signature.columns, element), additionalProperties=False))
    columns: list[Schema] = [object_of({spec.name: {} for spec in specs}), {"type": "array"}]
    if single is not None and not single.shape:
        columns.append(_element(single.datatype))
    return {
        "instances": list_of(rows[0] if len(rows) == 1 else {"anyOf": rows}, minItems=1, description="One row each."),
        "inputs": {"anyOf": columns, "description": "A column each, by input name."},
    }


def _predictions(signature: Signature) -> Schema:
    outputs = signature.outputs
    row = _row(outputs[0]) if len(outputs) == 1 else object_of({spec.name: _row(spec) for spec in outputs})
    return {
        "type": "object",
        "properties": {
            "predictions": list_of(row, description="One for each row, of the model's default outputs."),
            "outputs": {},
        },
    }


def _cell(spec: TensorSpec) -> Schema:
    """What one row has of an input."""
    return {"anyOf": [_row(spec), {"type": "null"}]} if spec.gaps else _row(spec)


def _row(spec: TensorSpec) -> Schema:
    """One row of a tensor, as JSON nests it."""
    found = _element(spec.datatype)
    for dim in reversed(spec.shape[1:]):
        found = list_of(found, **({} if dim == -1 else {"minItems": dim, "maxItems": dim}))
    return found


def _element(datatype: str) -> Schema:
    dtype = DATATYPES[datatype].dtype
    if datatype == "BYTES":
        return text()
    if dtype.kind == "b":
        return {"type": "boolean"}
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        return {"type": "integer", "minimum": int(bounds.min), "maximum": int(bounds.max)}
    return {"type": "number"}
