# SPDX-License-Identifier: Apache-2.0
"""Requests made from our own OpenAPI document, right and wrong ones: every answer is one that the document promises."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, MutableMapping
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from modelyard.admin import Action, Event, ModelState, ModelStatus, Plan, Pool, PoolProcess, Revision
from modelyard.config import load_model_spec
from modelyard.errors import ModelNotFound
from modelyard.rollout import Rollout
from modelyard.serve.events import CloudEvents
from modelyard.serve.http import make_app
from modelyard.serve.ingress import http_routes
from modelyard.serve.repository import Repository

EXAMPLES = 15
"""For each operation of each document."""
MOST = 300
"""For one that has not been answered with 200 yet: what is generated also depends on which modules are imported."""
LONGEST_MS = 100
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
TOLD = (501, 503, 504)
"""Of the server's errors, those that say what a client may do; 500 is none, though every operation documents it."""
WIRE = ("method", "url", "headers", "params", "data", "json", "cookies", "files")
"""What the library's requests are made of, as ``requests`` names it."""
KNOWN = {"version": ["1", "2", "stable", "9"], "file": ["start.js", "swagger-ui.css", "nothing"]}
"""Values for parts of paths, which would else never be right."""


@contextlib.asynccontextmanager
async def _lifespan(_app: object) -> AsyncIterator[None]:
    yield


class Admin:
    """A controller that checks what it is told, and does nothing.

    Args:
        names: The models it knows.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)

    async def register(self, spec: Mapping[str, Any], **_: str | int | None) -> ModelStatus:
        return _status(load_model_spec(dict(spec)).name)

    async def plan(self, spec: Mapping[str, Any], *, expected_generation: int | None) -> Plan:
        return Plan(load_model_spec(dict(spec)).name, Action.REVISE, 2, expected_generation or 0, {}, Rollout(2))

    async def spec(self, name: str) -> dict[str, Any]:
        await self.status(name)
        return {"name": name, "framework": "sklearn", "uri": f"models/{name}"}

    async def status(self, name: str, **_: str | int | None) -> ModelStatus:
        if name not in self._names:
            raise ModelNotFound(name)
        return _status(name)

    async def change(self, name: str, *_: object, **__: str | int | None) -> ModelStatus:
        return await self.status(name)

    unregister = load = unload = pause = resume = status
    set_traffic = set_label = rollout = abort = promote = rollback = change

    async def revisions(self, name: str) -> tuple[Revision, ...]:
        await self.status(name)
        return (Revision(1, "d", "2026-01-01T00:00:00+00:00"),)

    async def pools(self) -> tuple[Pool, ...]:
        return (Pool("pool@fake", 2, (PoolProcess("r", 1, 10, 20, 3, 2, 2, 1, 1.5, 2.5),)),)

    async def events(self, name: str | None, **_: int | None) -> tuple[Event, ...]:
        return (Event(1, "2026-01-01T00:00:00+00:00", name or "m", "created"),)

    async def list(self) -> tuple[ModelStatus, ...]:
        return tuple(map(_status, sorted(self._names)))


def _shorten(headers: MutableMapping[str, str]) -> None:
    """A deadline of hours is one that a load of what never gets ready waits for."""
    with contextlib.suppress(ValueError):
        if float(headers.get("x-request-timeout-ms", "0")) > LONGEST_MS:
            headers["x-request-timeout-ms"] = str(LONGEST_MS)


def _leave_out_watching(item: dict[str, Any]) -> None:
    """Streams of events have no end, and what asks the application here waits for it."""
    for operation in item.values():
        if isinstance(operation, dict):
            refs = operation.get("parameters", [])
            operation["parameters"] = [one for one in refs if one.get("$ref") != "#/components/parameters/Watch"]


def _status(name: str) -> ModelStatus:
    return ModelStatus(name, "fake", f"models/{name}", "registered", ModelState.READY)


class Site:
    """The whole HTTP surface over one model, asked from another thread."""

    def __init__(self, edge: Any) -> None:
        admin = Admin(edge.plane.table.models)
        routes = http_routes(edge.plane, lambda: True, Repository(edge.plane, admin, 0.05), admin)
        app = make_app(CloudEvents().wrap(routes), 4096, _lifespan, 1024)
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge")
        self._loop = asyncio.get_running_loop()

    async def document(self, path: str) -> dict[str, Any]:
        """A document, with values for what it leaves open: parts of paths, and which frameworks are installed."""
        found: dict[str, Any] = (await self._client.get(path)).json()
        for item in found["paths"].values():
            _leave_out_watching(item)
            for parameter in item.get("parameters", ()):
                if parameter["name"] in KNOWN:
                    parameter["schema"] = {"enum": KNOWN[parameter["name"]]}
        if "Registration" in found["components"]["schemas"]:
            found["components"]["schemas"]["Registration"]["properties"]["framework"] = {"enum": ["custom", "sklearn"]}
        return found

    def send(self, case: Case) -> httpx.Response:
        """The answer to what the real client of the library would send."""
        parts = case.as_transport_kwargs(base_url="http://edge")
        ready = requests.Request(**{name: parts[name] for name in WIRE if name in parts}).prepare()
        _shorten(ready.headers)
        request = httpx.Request(ready.method or "", ready.url or "", headers=dict(ready.headers), content=ready.body)
        return asyncio.run_coroutine_threadsafe(self._client.send(request), self._loop).result(60)


def check(case: Case, reply: httpx.Response) -> None:
    assert reply.status_code < 500 or reply.status_code in TOLD, reply.text
    case.validate_response(reply, checks=CHECKS, excluded_checks=[response_schema_conformance] if is_odd(reply) else [])


def is_odd(reply: httpx.Response) -> bool:
    """Whether the library reads an answer as something else than it is.

    It checks each event of a stream as an object, while to OpenAPI 3.1 the whole stream is a string; and it reads the
    bare tokens of what is no finite number as ``null``.
    """
    is_stream = reply.headers["content-type"].startswith("text/event-stream")
    return is_stream or b"Infinity" in reply.content or b"NaN" in reply.content


def attack(site: Site, operation: Any, mode: GenerationMode, examples: int = EXAMPLES) -> set[int]:
    """The statuses of the answers to requests for one operation; a wrong answer is raised."""
    seen: set[int] = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @seed(1)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Case) -> None:
        reply = site.send(case)
        seen.add(reply.status_code)
        check(case, reply)

    run()
    return seen


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")  # the model adds up the largest floats
@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(
    "path", ["/openapi.json", "/v2/models/iris/openapi.json", "/v2/models/iris/versions/1/openapi.json"]
)
async def test_every_answer_is_documented(make_edge, fake, path, mode) -> None:
    site = Site(make_edge(fake()))
    schema = schemathesis.openapi.from_dict(await site.document(path))
    operations = {found.ok().label: found.ok() for found in schema.get_all_operations()}
    seen = {label: await asyncio.to_thread(attack, site, operation, mode) for label, operation in operations.items()}
    assert set.union(*seen.values()) >= {200, 400}
    if mode is GenerationMode.POSITIVE and "iris" in path:
        # What the document of a model describes is answered; of the general one's shapes and names, few fit.
        asked = [label for label in seen if label.endswith(("/infer", ":predict")) or label.startswith("GET ")]
        for label in asked:
            if 200 not in seen[label]:
                seen[label] = await asyncio.to_thread(attack, site, operations[label], mode, MOST)
        assert [label for label in asked if 200 not in seen[label]] == []
