# SPDX-License-Identifier: Apache-2.0
"""What TensorFlow Serving's clients read of a model over REST: the states of its versions, and its signature.

"One request": the answers to ``GET /v1/models/{model}`` and ``…/metadata``.

Source: TensorFlow Serving "RESTful API", "Model status API" and "Model Metadata API"; ``apis/get_model_status.proto``.
"""

from __future__ import annotations

from typing import Any, Final

from modelyard.protocol.http import Encoded, encode_json
from modelyard.signature import Signature, TensorSpec

SIGNATURE_NAME: Final = "serving_default"
"""The one signature every model has. Source: TensorFlow ``saved_model/signature_constants.py``."""

_METHOD: Final = "tensorflow/serving/predict"

_STATES: Final = {
    "pending": "START",
    "loading": "LOADING",
    "ready": "AVAILABLE",
    "unloading": "UNLOADING",
    "removing": "UNLOADING",
    "unloaded": "END",
    "failed": "END",
}

DTYPES: Final = {
    "BOOL": "DT_BOOL",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "FP16": "DT_HALF",
    "BF16": "DT_BFLOAT16",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
}
"""TensorFlow's names of the datatypes. Source: TensorFlow ``framework/types.proto``."""


def to_version_status(version: str, state: str, reason: str) -> dict[str, Any]:
    """One version as ``model_version_status`` lists it.

    Args:
        version: The revision's number.
        state: A value of :class:`modelyard.admin.ModelState`.
        reason: Why it is in that state.
    """
    failure = reason if state == "failed" else ""
    status = {"error_code": "UNKNOWN" if state == "failed" else "OK", "error_message": failure}
    return {"version": version, "state": _STATES[state], "status": status}


def encode_metadata(name: str, version: str, signature: Signature) -> Encoded:
    """The signature as a ``SignatureDef``; ``-1`` is a variable dimension, and what varies is a string."""
    definition = {
        "inputs": _tensors(signature.inputs),
        "outputs": _tensors(signature.outputs),
        "method_name": _METHOD,
        "defaults": {},
    }
    return encode_json(
        {
            "model_spec": {"name": name, "signature_name": "", "version": version},
            "metadata": {"signature_def": {"signature_def": {SIGNATURE_NAME: definition}}},
        }
    )


def _tensors(specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    return {
        spec.name: {
            "dtype": DTYPES[spec.datatype],
            "tensor_shape": {
                "dim": [{"size": str(dim), "name": ""} for dim in spec.shape],
                "unknown_rank": False,
            },
            "name": f"{spec.name}:0",
        }
        for spec in specs
    }
