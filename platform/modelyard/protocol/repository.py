# SPDX-License-Identifier: Apache-2.0
"""The model repository extension over HTTP: which models there are, and having them loaded and unloaded.

Source: Triton "Model Repository Extension"; replies as tritonserver 2.60 gives them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from modelyard.admin import IndexEntry
from modelyard.protocol.fields import check_object, check_parameters, expected
from modelyard.protocol.http import Encoded, encode_json, load_json
from modelyard.tensor import Parameters


def decode_index(body: bytes) -> bool:
    """Whether only what is ready is asked for.

    Raises:
        InvalidRequest: The body is neither empty nor the extension's object.
    """
    ready = _decode_object(body).get("ready", False)
    if type(ready) is not bool:
        raise expected("ready", "true or false", ready)
    return ready


def decode_parameters(body: bytes) -> Parameters:
    """The parameters of a load or unload.

    Raises:
        InvalidRequest: The body is neither empty nor the extension's object.
    """
    return check_parameters(_decode_object(body).get("parameters"), "parameters")


def _decode_object(body: bytes) -> dict[str, Any]:
    return check_object(load_json(body), "the request body") if body.strip() else {}


def encode_index(entries: Iterable[IndexEntry]) -> Encoded:
    """The index: a list without an object around it; what is ready has no reason."""
    return encode_json([_encode_entry(entry) for entry in entries])


def _encode_entry(entry: IndexEntry) -> dict[str, str]:
    document = {"name": entry.name, "version": entry.version, "state": entry.state}
    return document | ({"reason": entry.reason} if entry.reason else {})


def encode_done() -> Encoded:
    """The reply to a load or unload that is done: an empty body."""
    return Encoded(200, b"", ((b"content-type", b"application/json"), (b"content-length", b"0")))
