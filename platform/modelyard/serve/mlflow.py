# SPDX-License-Identifier: Apache-2.0
"""MLflow's scoring routes, for every model: what its server has at its root is here under ``/mlflow/{model}``.

"One request": between the HTTP edge and the data plane.
"""

from __future__ import annotations

from modelyard.dataplane import DataPlane
from modelyard.protocol import mlflow
from modelyard.protocol.http import Encoded
from modelyard.serve.http import HttpRequest, RouteEntry


class MLflowHandlers:
    """``/mlflow/{model}…``.

    Args:
        plane: What answers.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        handlers = (
            ("POST", "invocations", self.invocations),
            ("GET", "ping", self.ping),
            ("GET", "health", self.ping),
            ("GET", "version", self.version),
        )
        return [
            (method, f"/mlflow/{{model}}{part}/{name}", handler)
            for method, name, handler in handlers
            for part in ("", "/versions/{version}", "/labels/{version}")
        ]

    async def invocations(self, request: HttpRequest) -> Encoded:
        """``POST /mlflow/{model}[/versions/{version}|/labels/{label}]/invocations``."""
        revision, signature = self._plane.choose(request.path("model"), request.path("version"), request)
        content_type = request.headers.get(b"content-type", b"").decode("latin-1")
        decoded = mlflow.decode_invocations(await request.raw_body(), content_type, signature)
        response = await self._plane.infer(revision, signature, decoded, request.timeout_s())
        return mlflow.encode_invocations(response, signature)

    async def ping(self, request: HttpRequest) -> Encoded:
        """``GET /mlflow/{model}…/ping`` and ``…/health``; an error where the model cannot answer."""
        self._plane.get_ready(request.path("model"), request.path("version"))
        return mlflow.encode_ping()

    async def version(self, request: HttpRequest) -> Encoded:
        """``GET /mlflow/{model}…/version``."""
        self._plane.table.get_revision(request.path("model"), request.path("version"))
        return mlflow.encode_version()
