# SPDX-License-Identifier: Apache-2.0
"""One request that a model answers, made from its signature: the body in each protocol, and a command that sends it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, element_count

MAX_ELEMENTS: Final = 1000
"""A row with more is not written out."""

BINARY_ONLY: Final = frozenset({"FP16", "BF16"})
"""What JSON cannot carry; FP32 is cast for them."""


@dataclass(frozen=True, slots=True)
class Example:
    """A request.

    Attributes:
        body: The JSON body.
        command: What sends it, for a shell.
    """

    body: dict[str, Any]
    command: str


def to_row(signature: Signature) -> dict[str, Any] | None:
    """One row by input name, as JSON values nested like the input; None where it would be too long to read.

    What the signature's ``example`` does not tell is zero, false or empty, and a variable dimension is 1. Without a
    batch axis it is the whole tensor.
    """
    shapes = {spec.name: _row_shape(spec, signature) for spec in signature.inputs}
    if sum(map(element_count, shapes.values())) > MAX_ELEMENTS:
        return None
    return {spec.name: _find_value(spec, shapes[spec.name], signature) for spec in signature.inputs}


def _row_shape(spec: TensorSpec, signature: Signature) -> tuple[int, ...]:
    dims = spec.shape[1:] if signature.batch_axis else spec.shape
    return tuple(1 if dim == -1 else dim for dim in dims)


def _find_value(spec: TensorSpec, shape: tuple[int, ...], signature: Signature) -> Any:
    example, zero = signature.example, _zero(spec.datatype)
    if spec.name in example:
        return example[spec.name]
    if signature.columns and len(signature.inputs) == 1:
        return [example.get(column, zero) for column in signature.columns]
    return np.full(shape, zero, dtype=object).tolist()


def _zero(datatype: str) -> Any:
    if datatype == "BYTES":
        return ""
    return DATATYPES[datatype].dtype.type(0).item() if datatype != "BF16" else 0.0


def to_infer_example(signature: Signature, url: str) -> Example | None:
    """For ``infer``; None where JSON cannot carry the inputs, or they are too long to read.

    Args:
        signature: The model's.
        url: Of the route.
    """
    row = to_row(signature)
    if row is None or (signature.exact_datatypes and _has_binary_only(signature.inputs)):
        return None
    body: dict[str, Any] = {"inputs": [_to_tensor(spec, row[spec.name], signature) for spec in signature.inputs]}
    if _has_binary_only(signature.outputs):
        body["parameters"] = {"binary_data_output": True}
    return Example(body, _to_command(url, body, "parameters" in body))


def to_predict_example(signature: Signature, url: str) -> Example | None:
    """For ``:predict``: a record where columns or several inputs have names; None where it is too long to read.

    Args:
        signature: The model's.
        url: Of the route.
    """
    row = to_row(signature)
    if row is None:
        return None
    body = _to_body(next(iter(row.values())) if len(row) == 1 else row, signature)
    return Example(body, _to_command(url, body, False))


def _to_body(row: Any, signature: Signature) -> dict[str, Any]:
    if not signature.batch_axis:
        return {"inputs": row}
    if signature.columns and len(signature.inputs) == 1:
        return {"instances": [dict(zip(signature.columns, row, strict=True))]}
    return {"instances": [row]}


def to_generate_example(signature: Signature, url: str) -> Example | None:
    """For ``generate`` and its stream: one flat object; None where it is too long to read.

    Args:
        signature: The model's.
        url: Of the route.
    """
    row = to_row(signature)
    if row is None:
        return None
    body = {name: np.array(value, dtype=object).reshape(-1).tolist() for name, value in row.items()}
    body = {name: values[0] if len(values) == 1 else values for name, values in body.items()}
    return Example(body, _to_command(url, body, False))


def to_raw_command(signature: Signature, url: str) -> str:
    """A command that sends a row of zeros as raw bytes, for a row too long to read; empty where that cannot work.

    Args:
        signature: The model's.
        url: Of the ``infer`` route.

    Source: Triton "Binary Tensor Data Extension", "Raw Binary Request".
    """
    if len(signature.inputs) != 1 or signature.example:
        return ""
    spec = signature.inputs[0]
    item_bytes = DATATYPES[spec.datatype].item_bytes
    dims = spec.shape[1:] if signature.batch_axis else spec.shape
    if item_bytes is None or list(dims).count(-1) > 1:
        return ""
    size = element_count(_row_shape(spec, signature)) * item_bytes
    headers = "-H 'Inference-Header-Content-Length: 0' -H 'Content-Type: application/octet-stream'"
    return f"head -c {size} /dev/zero | curl {shlex.quote(url)} {headers} --data-binary @- --output answer.bin"


def _has_binary_only(specs: tuple[TensorSpec, ...]) -> bool:
    return any(spec.datatype in BINARY_ONLY for spec in specs)


def _to_tensor(spec: TensorSpec, value: Any, signature: Signature) -> dict[str, Any]:
    array = np.array(value, dtype=object)
    return {
        "name": spec.name,
        "shape": [1, *array.shape] if signature.batch_axis else list(array.shape),
        "datatype": "FP32" if spec.datatype in BINARY_ONLY else spec.datatype,
        "data": array.reshape(-1).tolist(),
    }


def _to_command(url: str, body: dict[str, Any], is_binary: bool) -> str:
    words = ["curl", url, "-H", "Content-Type: application/json", "-d", json.dumps(body, ensure_ascii=False)]
    return shlex.join([*words, "--output", "answer.bin"] if is_binary else words)
