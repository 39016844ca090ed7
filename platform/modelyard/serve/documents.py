# SPDX-License-Identifier: Apache-2.0
"""The routes that describe the platform: OpenAPI documents, and pages to read and try them.

"One request": beside it; nothing here is on the way of inference. The pages are Swagger UI's files as the package
``fastapi_offline`` carries them, and their content security policy lets a browser ask nobody but this server.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from starlette.types import Scope

from modelyard.config import ModelSpec
from modelyard.dataplane import DataPlane
from modelyard.errors import RouteNotFound
from modelyard.protocol.http import Encoded, Header, encode_json
from modelyard.protocol.openapi import Described, build_document, build_model_document
from modelyard.serve.http import Handler, HttpRequest, RouteEntry
from modelyard.version import __version__

_CARRIER: Final = "fastapi_offline"
_FILES: Final = {
    "swagger-ui-bundle.js": b"text/javascript; charset=utf-8",
    "swagger-ui.css": b"text/css; charset=utf-8",
    "favicon.png": b"image/png",
    "start.js": b"text/javascript; charset=utf-8",
}
_START: Final = b"""\
window.addEventListener("load", () => {
  const element = document.getElementById("page");
  SwaggerUIBundle({
    url: element.dataset.document,
    dom_id: "#page",
    deepLinking: true,
    validatorUrl: null,
  });
});
"""
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{root}/docs/favicon.png?{tag}">
<link rel="stylesheet" href="{root}/docs/swagger-ui.css?{tag}">
</head>
<body>
<div id="page" data-document="{root}{document}"></div>
<script src="{root}/docs/swagger-ui-bundle.js?{tag}"></script>
<script src="{root}/docs/start.js?{tag}"></script>
</body>
</html>
"""
# Swagger UI sets style attributes and draws its icons from data: URLs.
_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_GUARDED: Final[tuple[Header, ...]] = ((b"content-security-policy", _POLICY), (b"x-content-type-options", b"nosniff"))
_FRESH: Final[Header] = (b"cache-control", b"no-cache")
_FOR_EVER: Final[Header] = (b"cache-control", b"public, max-age=31536000, immutable")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


class DocumentHandlers:
    """``/openapi.json`` and ``/docs``, and the same of each model.

    Args:
        plane: Knows the models.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        model = "/v2/models/{model}"
        return [
            ("GET", "/openapi.json", self.document),
            ("GET", "/docs", self.page),
            ("GET", "/docs/{file}", self.file),
            *_with_versions(f"{model}*/openapi.json", self.model_document),
            *_with_versions(f"{model}*/docs", self.model_page),
        ]

    async def document(self, request: HttpRequest) -> Encoded:
        """``GET /openapi.json``."""
        models = tuple(self._plane.table.models)
        return _encode_document(build_document(__version__, models, _server_url(request), _registration()))

    async def page(self, request: HttpRequest) -> Encoded:
        """``GET /docs``."""
        return _encode_page(request, "Modelyard", "/openapi.json")

    async def file(self, request: HttpRequest) -> Encoded:
        """``GET /docs/{file}``."""
        name = request.path("file")
        kind = _FILES.get(name)
        if kind is None:
            raise RouteNotFound(f"GET {request.scope['path']}: no such path")
        body = _START if name == "start.js" else await asyncio.to_thread((_folder() / name).read_bytes)
        is_tagged = request.scope.get("query_string", b"") == _tag().encode()
        return _encode(body, kind, _FOR_EVER if is_tagged else _FRESH)

    async def model_document(self, request: HttpRequest) -> Encoded:
        """``GET /v2/models/{model}[/versions/{version}]/openapi.json``."""
        name, version = request.path("model"), request.path("version")
        revision, signature = self._plane.get_ready(name, version)
        described = Described(name, version, revision.version, revision.framework, signature)
        return _encode_document(build_model_document(described, _server_url(request)))

    async def model_page(self, request: HttpRequest) -> Encoded:
        """``GET /v2/models/{model}[/versions/{version}]/docs``."""
        revision, _ = self._plane.get_ready(request.path("model"), request.path("version"))
        path = quote(request.scope["path"].removesuffix("/docs"))
        return _encode_page(request, f"{revision.model} - Modelyard", f"{path}/openapi.json")


def _server_url(request: HttpRequest) -> str:
    """Where the reader reached us, as far as the request tells; a path only where it does not."""
    root = _root(request.scope)
    host = request.headers.get(b"host", b"").decode("latin-1")
    if not _HOST.fullmatch(host):
        return root or "/"
    forwarded = request.headers.get(b"x-forwarded-proto", b"").decode("latin-1")
    scheme = forwarded if forwarded in ("http", "https") else request.scope.get("scheme", "http")
    return f"{scheme}://{host}{root}"


def _root(scope: Scope) -> str:
    root: str = scope.get("root_path", "")
    return root.rstrip("/")


def _encode_document(document: dict[str, Any]) -> Encoded:
    return encode_json(document, 200, (_FRESH,))


def _encode_page(request: HttpRequest, title: str, document: str) -> Encoded:
    root = escape(_root(request.scope))
    text = _PAGE.format(title=escape(title), root=root, document=escape(document), tag=_tag())
    return _encode(text.encode(), b"text/html; charset=utf-8", _FRESH, *_GUARDED)


def _encode(body: bytes, kind: bytes, *headers: Header) -> Encoded:
    return Encoded(200, body, ((b"content-type", kind), (b"content-length", b"%d" % len(body)), *headers))


@cache
def _registration() -> dict[str, Any]:
    return ModelSpec.model_json_schema(ref_template="#/components/schemas/{model}")


@cache
def _folder() -> Path:
    """Where Swagger UI's files are; found without an import, which would bring FastAPI."""
    spec = importlib.util.find_spec(_CARRIER)
    if spec is None or spec.origin is None:
        raise RouteNotFound(f"the package {_CARRIER} is not installed")
    return Path(spec.origin).parent / "static"


@cache
def _tag() -> str:
    """Changes whenever a file may have changed, so that browsers can keep them."""
    return f"{__version__}-{importlib.metadata.version(_CARRIER)}"


def _with_versions(path: str, handler: Handler) -> list[RouteEntry]:
    """The route with nothing or a version in place of ``*``."""
    return [("GET", path.replace("*", part), handler) for part in ("", "/versions/{version}")]
