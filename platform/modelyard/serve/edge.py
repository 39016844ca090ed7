# SPDX-License-Identifier: Apache-2.0
"""The short way in: Serve's hook for HTTP middleware, used to answer inference before Serve's own request wrappers.

Behind HAProxy each ingress replica has an HTTP server of its own, and Serve wraps every request on it in two tasks, a
queue, a log record and metrics: about as much work as the request itself. The environment variable
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=modelyard.serve.edge:middlewares`` puts :class:`ShortWay` in front of that.
Health checks and paths that are not ours take Serve's way, and without the variable everything does.
"""

from __future__ import annotations

from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from modelyard.dataplane import new_id
from modelyard.protocol.openai import BARE

SHORT_WAY: Final = "modelyard.short_way"
"""Key in an ASGI scope, with the request's id: nobody in front returns it or watches for its client to go away."""

_PREFIXES: Final = ("/v1/", "/v2/", "/openai/", "/mlflow/", "/platform/", *(f"/{name}" for name in BARE))

_local: list[ASGIApp] = []


def serve_locally(app: ASGIApp) -> None:
    """Says that this process is an ingress replica, and what answers in it."""
    _local[:] = [app]


def middlewares() -> list[Middleware]:
    """What Serve calls in each process that listens for HTTP."""
    return [Middleware(ShortWay)]


class ShortWay:
    """Gives inference to the platform's application where that lives in this process."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if _local and scope["type"] == "http" and scope["path"].startswith(_PREFIXES) and not scope.get("root_path"):
            scope[SHORT_WAY] = _request_id(scope)
            await _local[0](scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _request_id(scope: Scope) -> bytes:
    """The caller's ``x-request-id``, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and value:
            found: bytes = value
            return found
    return new_id().encode()
