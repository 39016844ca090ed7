# SPDX-License-Identifier: Apache-2.0
"""What a client sees of an error, in every protocol: one sentence, no internals.

"One request": the edge's single ``except`` ends here.
"""

from __future__ import annotations

from typing import Final

from modelyard.errors import InternalError, ModelyardError
from modelyard.protocol.http import Encoded, encode_json

MAX_MESSAGE_CHARS: Final = 1500
"""A message repeats names the client chose; gRPC carries it in a header block of 8 KiB at most."""


def as_modelyard_error(exc: BaseException) -> ModelyardError:
    """The error itself where it is one of the tree, else an ``InternalError`` that says nothing of what happened."""
    if isinstance(exc, ModelyardError):
        return exc
    return InternalError("internal error: the server's log has the details under this request's id")


def to_message(error: ModelyardError) -> str:
    """The client's sentence: valid Unicode, of bounded length."""
    text = str(error)
    if len(text) > MAX_MESSAGE_CHARS:
        text = f"{text[:MAX_MESSAGE_CHARS]}…"
    return text.encode("utf-8", "replace").decode()


def encode_http(error: ModelyardError) -> Encoded:
    """``{"error": "<sentence>"}`` with the error's status, and ``Retry-After`` where trying again helps.

    Source: Open Inference Protocol, "Inference Response JSON Error Object".
    """
    wait_s = error.retry_after_s
    headers = () if wait_s is None else ((b"retry-after", b"%d" % wait_s),)
    return encode_json({"error": to_message(error)}, error.http_status, headers)
