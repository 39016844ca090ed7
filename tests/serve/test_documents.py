# SPDX-License-Identifier: Apache-2.0
"""The documents and their pages: every route is described, nothing else is, and no page asks another server."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from html.parser import HTMLParser

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from modelyard.client import HttpTransport
from modelyard.config import ModelSpec
from modelyard.dataplane import DataPlane
from modelyard.protocol.openapi import OPERATIONS
from modelyard.routing import ModelRoute, RouteTable
from modelyard.serve.http import RouteEntry, make_app
from modelyard.serve.ingress import http_routes
from modelyard.serve.repository import Repository

MODEL_PAGES = ("/v2/models/iris/docs", "/v2/models/iris/versions/1/docs")
MODEL_DOCUMENTS = ("/v2/models/iris/openapi.json", "/v2/models/iris/versions/1/openapi.json")


@contextlib.asynccontextmanager
async def _lifespan(_app: object) -> AsyncIterator[None]:
    yield


def every_route(plane: DataPlane) -> list[RouteEntry]:
    admin = HttpTransport("http://platform.test")
    return http_routes(plane, lambda: True, Repository(plane, admin), admin)


def served() -> set[tuple[str, str]]:
    return {(method, path) for method, path, _ in every_route(DataPlane(None))}


def described() -> set[tuple[str, str]]:
    return {(operation.method, path) for operation in OPERATIONS for path, _ in operation.routes()}


def test_every_route_that_is_served_is_described() -> None:
    assert served() - described() == set()


def test_every_route_that_is_described_is_served() -> None:
    assert described() - served() == set()


class Site:
    """The whole HTTP surface but for a controller, and a client of it."""

    def __init__(self, edge) -> None:
        self.plane = edge.plane
        app = make_app(every_route(edge.plane), 4096, _lifespan)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge")


@pytest.fixture
def make_site(make_edge) -> Callable[[], Site]:
    return lambda: Site(make_edge())


async def test_the_document_of_the_surface_is_valid(make_site) -> None:
    reply = await make_site().client.get("/openapi.json")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    OpenAPIV31SpecValidator(reply.json()).validate()
    assert set(reply.json()["paths"]) == {path for _, path in served()}
    registration = reply.json()["components"]["schemas"]["Registration"]
    assert set(registration["properties"]) == {*ModelSpec.model_fields, "message"}


@pytest.mark.parametrize("path", MODEL_DOCUMENTS)
async def test_the_document_of_a_model_is_valid_and_its_example_is_answered(make_site, path) -> None:
    site = make_site()
    document = (await site.client.get(path)).json()
    OpenAPIV31SpecValidator(document).validate()
    commands = [
        operation["post"]["x-codeSamples"][0]["source"]
        for operation in document["paths"].values()
        if "x-codeSamples" in operation.get("post", {})
    ]
    assert len(commands) >= 2
    for command in commands:
        words = shlex.split(command)
        reply = await site.client.post(words[1], content=words[words.index("-d") + 1])
        assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("headers", "url"),
    [
        ({"host": "models.example:8443"}, "http://models.example:8443"),
        ({"host": "[::1]:8000"}, "http://[::1]:8000"),
        ({"host": "models.example", "x-forwarded-proto": "https"}, "https://models.example"),
        ({"host": "models.example", "x-forwarded-proto": "gopher"}, "http://models.example"),
        ({"host": "$(reboot)"}, "/"),
        ({"host": "a b"}, "/"),
    ],
)
async def test_the_documents_say_where_the_reader_reached_the_server(make_site, headers, url) -> None:
    client = make_site().client
    for path in ("/openapi.json", *MODEL_DOCUMENTS):
        document = (await client.get(path, headers=headers)).json()
        assert document["servers"] == [{"url": url}]
        assert "reboot" not in json.dumps(document)


@pytest.mark.parametrize("kind", ["docs", "openapi.json"])
@pytest.mark.parametrize(("model", "status"), [("nope", 404), ("iris/versions/9", 404), ("late", 503), ("bad", 503)])
async def test_a_model_that_cannot_answer_has_no_document(make_site, kind, model, status) -> None:
    reply = await make_site().client.get(f"/v2/models/{model}/{kind}")
    assert (reply.status_code, list(reply.json())) == (status, ["error"])


class Addresses(HTMLParser):
    """What a page loads, and whether it has code of its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [value for name, value in attrs if name in ("src", "href", "data-document") and value]
        self.inline |= (tag == "script" and "src" not in values) or any(name.startswith("on") for name in values)


@pytest.mark.parametrize("path", ["/docs", "/docs/", *MODEL_PAGES])
async def test_a_page_loads_what_this_server_has_and_nothing_else(make_site, path) -> None:
    client = make_site().client
    page = await client.get(path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    addresses = Addresses(page.text)
    assert not addresses.inline
    assert len(addresses.found) == 5
    for address in addresses.found:
        assert address.startswith("/")
        reply = await client.get(address)
        assert reply.status_code == 200
        is_document = address.endswith("openapi.json")
        assert reply.headers["cache-control"] == ("no-cache" if is_document else "public, max-age=31536000, immutable")
        assert reply.headers["content-type"].split(";")[0] in (
            "application/json", "text/javascript", "text/css", "image/png"
        )  # fmt: skip


async def test_a_file_asked_for_without_its_tag_is_not_kept(make_site) -> None:
    reply = await make_site().client.get("/docs/swagger-ui.css")
    assert reply.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["redoc.standalone.js", "__init__.py", "%2e%2e%2fcore.py", "a"])
async def test_no_other_file_is_given(make_site, name) -> None:
    assert (await make_site().client.get(f"/docs/{name}")).status_code == 404


def test_swagger_ui_is_of_a_version_that_reads_openapi_3_1() -> None:
    from modelyard.serve.documents import _folder

    found = re.search(r'PACKAGE_VERSION:"(\d+)\.(\d+)', (_folder() / "swagger-ui-bundle.js").read_text())
    assert found is not None
    assert int(found[1]) >= 5


def test_finding_the_files_imports_no_web_framework() -> None:
    code = (
        "import sys; from modelyard.serve import documents; before = 'fastapi' in sys.modules; documents._folder(); "
        "documents._tag(); print(before, 'fastapi' in sys.modules, 'fastapi_offline' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, carrier = done.stdout.split()
    assert (before, carrier) == (after, "False")


async def test_a_thousand_models_make_no_longer_document_than_a_few(make_site) -> None:
    site = make_site()
    few = await site.client.get("/openapi.json")
    (revision,) = site.plane.table.models["late"].revisions.values()
    models = {f"m{i}": ModelRoute(f"m{i}", "1", {"1": replace(revision, model=f"m{i}")}) for i in range(1000)}
    site.plane.table = RouteTable("e", 2, models)
    many = await site.client.get("/openapi.json")
    assert len(many.content) <= len(few.content)
