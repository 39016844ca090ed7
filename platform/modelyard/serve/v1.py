# SPDX-License-Identifier: Apache-2.0
"""The v1 protocol's routes: KServe's and TensorFlow Serving's REST.

"One request": between the HTTP edge and the data plane.
"""

from __future__ import annotations

from modelyard.dataplane import DataPlane
from modelyard.errors import Unsupported
from modelyard.protocol import v1
from modelyard.protocol.http import Encoded
from modelyard.serve.http import Handler, HttpRequest, RouteEntry


class V1Handlers:
    """``/v1/models…``.

    Args:
        plane: What answers.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        model = "/v1/models/{model}"
        return [
            ("GET", "/v1/models", self.list),
            *_with_versions("POST", f"{model}*:predict", self.predict),
            *_with_versions("POST", f"{model}*:explain", self.explain),
            *_with_versions("GET", f"{model}*", self.status),
        ]

    async def predict(self, request: HttpRequest) -> Encoded:
        """``POST /v1/models/{model}[/versions/{version}|/labels/{label}]:predict``."""
        revision, signature = self._plane.get_ready(request.path("model"), request.path("version"))
        decoded, form = v1.decode_predict(await request.body(), signature)
        response = await self._plane.infer(revision, signature, decoded, request.timeout_s())
        return v1.encode_predict(response, form)

    async def explain(self, request: HttpRequest) -> Encoded:
        """``POST /v1/models/{model}[/versions/{version}|/labels/{label}]:explain``: no framework explains yet."""
        revision, _ = self._plane.get_ready(request.path("model"), request.path("version"))
        raise Unsupported(f'model "{revision.model}": the framework "{revision.framework}" cannot explain')

    async def list(self, request: HttpRequest) -> Encoded:
        """``GET /v1/models``."""
        models = self._plane.table.models
        return v1.encode_model_list(models, min((model.created_s for model in models.values()), default=0))

    async def status(self, request: HttpRequest) -> Encoded:
        """``GET /v1/models/{model}[/versions/{version}|/labels/{label}]``; 503 where it cannot answer."""
        name, version = request.path("model"), request.path("version")
        revision, _ = self._plane.get_ready(name, version)
        created_s = self._plane.table.get_model(name).created_s
        return v1.encode_model_status(name, True, revision.version, created_s)


def _with_versions(method: str, path: str, handler: Handler) -> list[RouteEntry]:
    """The route with nothing, a version or a label in place of ``*``."""
    return [(method, path.replace("*", part), handler) for part in ("", "/versions/{version}", "/labels/{version}")]
