# SPDX-License-Identifier: Apache-2.0
"""The Open Inference Protocol's routes over HTTP.

"One request": between the HTTP edge and the data plane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from modelyard.dataplane import DataPlane
from modelyard.errors import InvalidRequest
from modelyard.protocol import v1, v2
from modelyard.protocol.http import Encoded, encode_json
from modelyard.serve.http import Handler, HttpRequest, RouteEntry
from modelyard.version import __version__

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "generate",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "statistics",
)
_MAX_DIGITS: Final = 18


class V2Handlers:
    """``/v2…``, and ``/``.

    Args:
        plane: What answers.
        is_ready: Whether this ingress replica can answer at all.
    """

    def __init__(self, plane: DataPlane, is_ready: Callable[[], bool]) -> None:
        self._plane = plane
        self._is_ready = is_ready

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        model = "/v2/models/{model}"
        return [
            *_with_versions("POST", f"{model}*/infer", self.infer),
            ("GET", "/", self.alive),
            ("GET", "/v2", self.server_metadata),
            ("GET", "/v2/health/live", self.live),
            ("GET", "/v2/health/ready", self.ready),
            ("GET", "/v2/models", self.list),
            *_with_versions("GET", f"{model}*", self.model_metadata),
            *_with_versions("GET", f"{model}*/ready", self.model_ready),
        ]

    async def infer(self, request: HttpRequest) -> Encoded:
        """``POST /v2/models/{model}[/versions/{version}]/infer``."""
        revision, signature = self._plane.choose(request.path("model"), request.path("version"), request)
        body = await request.body()
        decoded = v2.decode_infer(body, _json_length(request), signature)
        response = await self._plane.infer(revision, signature, decoded, request.timeout_s())
        return v2.encode_infer(response, decoded)

    async def list(self, request: HttpRequest) -> Encoded:
        """``GET /v2/models``, as KServe has it."""
        return v1.encode_model_list({name: model.created_s for name, model in self._plane.table.models.items()})

    async def server_metadata(self, request: HttpRequest) -> Encoded:
        """``GET /v2``."""
        return v2.encode_server_metadata(__version__, EXTENSIONS)

    async def live(self, request: HttpRequest) -> Encoded:
        """``GET /v2/health/live``."""
        return v2.encode_live(True)

    async def ready(self, request: HttpRequest) -> Encoded:
        """``GET /v2/health/ready``."""
        return v2.encode_ready(self._is_ready())

    async def alive(self, request: HttpRequest) -> Encoded:
        """``GET /``."""
        return encode_json({"status": "alive"})

    async def model_metadata(self, request: HttpRequest) -> Encoded:
        """``GET /v2/models/{model}[/versions/{version}]``."""
        revision, signature = self._plane.get_ready(request.path("model"), request.path("version"))
        versions = self._plane.table.get_model(revision.model).ready_versions
        return v2.encode_model_metadata(revision.model, versions, revision.framework, signature)

    async def model_ready(self, request: HttpRequest) -> Encoded:
        """``GET /v2/models/{model}[/versions/{version}]/ready``."""
        revision, _ = self._plane.get_ready(request.path("model"), request.path("version"))
        return v2.encode_model_ready(revision.model, True)


def _json_length(request: HttpRequest) -> int | None:
    raw = request.headers.get(b"inference-header-content-length")
    if raw is None:
        return None
    if not raw.isdigit() or len(raw) > _MAX_DIGITS:
        got = raw[:40].decode("latin-1")
        raise InvalidRequest(f'header Inference-Header-Content-Length: expected a number of bytes, got "{got}"')
    return int(raw)


def _with_versions(method: str, path: str, handler: Handler) -> list[RouteEntry]:
    """The route with nothing or a version in place of ``*``."""
    return [(method, path.replace("*", part), handler) for part in ("", "/versions/{version}")]
