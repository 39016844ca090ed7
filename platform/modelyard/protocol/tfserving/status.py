# SPDX-License-Identifier: Apache-2.0
"""The states of a model's versions, as ``GET /v1/models/{model}`` and ``GetModelStatus`` tell them.

Source: TensorFlow Serving "RESTful API", "Model status API"; ``apis/get_model_status.proto``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from google.protobuf.json_format import ParseDict

from modelyard.protos import tensorflow_serving_pb2 as pb

_STATES: Final = {
    "pending": "START",
    "loading": "LOADING",
    "ready": "AVAILABLE",
    "unloading": "UNLOADING",
    "removing": "UNLOADING",
    "unloaded": "END",
    "failed": "END",
}


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


def encode_status(versions: Iterable[dict[str, Any]]) -> pb.GetModelStatusResponse:
    """The answer to ``GetModelStatus``.

    Args:
        versions: As :func:`to_version_status` makes them.
    """
    return ParseDict({"model_version_status": list(versions)}, pb.GetModelStatusResponse())
