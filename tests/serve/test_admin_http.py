# SPDX-License-Identifier: Apache-2.0
"""The admin routes: what they pass on, and what they refuse before anybody behind them sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Unpack

import httpx
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from starlette.types import ASGIApp

from modelyard.admin import AdminTransport, By, ModelStatus
from modelyard.catalog import Catalog
from modelyard.client import AsyncPlatform, HttpTransport
from modelyard.errors import ModelNotFound, Unavailable
from modelyard.protocol.openapi import OPERATIONS
from modelyard.rollout import RolloutState
from modelyard.serve.admin import AdminHandlers, HandleTransport
from modelyard.serve.edge import SHORT_WAY
from modelyard.serve.http import make_app
from modelyard.testing.platform import FakePlatform

MODELS = "/platform/v1/models"
SPEC = {"name": "m", "framework": "sklearn", "uri": "models/m"}


@contextlib.asynccontextmanager
async def _lifespan(_app: object) -> AsyncIterator[None]:
    yield


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[FakePlatform]:
    with Catalog(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        yield FakePlatform(catalog)


@pytest.fixture
async def transport(behind: FakePlatform) -> AsyncIterator[AdminTransport]:
    transport = behind.open_transport()
    yield transport
    await transport.close()


@pytest.fixture
def app(transport: AdminTransport) -> ASGIApp:
    return make_app(AdminHandlers(transport, 0.05).routes(), 64 * 1024 * 1024, _lifespan)


@pytest.fixture
async def client(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge") as client:
        yield client


@pytest.fixture
async def platform(app: ASGIApp) -> AsyncIterator[AsyncPlatform]:
    """The Python API over these routes, with two revisions of a model behind them; the first has the traffic."""
    async with AsyncPlatform(HttpTransport("http://edge", transport=httpx.ASGITransport(app))) as platform:
        for uri in ("models/m", "models/m2"):
            await platform.register("m", framework="sklearn", uri=uri, rollout={"steps": []})
        yield platform


def raised(error: Exception) -> Exception:
    """As Ray raises what a method of an actor did: with the traceback in its text."""
    found: Exception = RayTaskError("status", "Traceback: secret/path.py", error).as_instanceof_cause()
    return found


class Away:
    """The handle of a controller none of whose methods come back with an answer."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, verb: str) -> Any:
        return SimpleNamespace(remote=self._fail)

    async def _fail(self, *_: object) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "code", "words"),
    [
        (ActorDiedError(), 503, "unavailable", "the platform's controller does not answer: ActorDiedError"),
        (TimeoutError(), 504, "deadline-exceeded", "no answer within 30 s; the platform's controller may do it yet"),
        (raised(ValueError("ours")), 500, "internal", "the platform's controller failed: ValueError"),
        (raised(Unavailable("the catalog's database failed: it is full")), 503, "unavailable", "it is full"),
    ],
    ids=["away", "late", "at fault", "its own error"],
)
async def test_what_a_controller_does_that_does_not_answer(
    error: Exception, status: int, code: str, words: str
) -> None:
    app = make_app(AdminHandlers(HandleTransport(Away(error)), 0.05).routes(), 1_000_000, _lifespan)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge") as client:
        reply = await client.get(f"{MODELS}/m")
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert words in reply.json()["error"]
    assert "secret" not in reply.text
    assert ("retry-after" in reply.headers) == (status == 503)


@pytest.mark.parametrize(
    ("query", "headers", "words"),
    [
        ("dry_run=yes", {}, 'query dry_run: expected true or false, got "yes"'),
        ("expected_generation=-1", {}, "query expected_generation: expected an integer from 0 to"),
        ("", {"if-match": "*"}, 'header if-match: expected an integer from 0 to 9223372036854775807, got "*"'),
        ("", {"if-match": 'W/"1"'}, "header if-match: expected an integer"),
    ],
)
async def test_a_condition_that_is_none_goes_no_further(
    client: httpx.AsyncClient, behind: FakePlatform, query: str, headers: dict[str, str], words: str
) -> None:
    reply = await client.post(f"{MODELS}?{query}", json=SPEC, headers=headers)
    assert reply.status_code == 400
    assert words in reply.json()["error"]
    assert behind.requests == []


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("DELETE", "m?force=1", 'query force: expected "message", "dry_run", "expected_generation"'),
        ("POST", "m/load?force=1", 'query force: expected "dry_run", "expected_generation"'),
        ("PUT", "m/traffic?dry_run=1", 'query dry_run: expected true or false, got "1"'),
        ("DELETE", "m?dry_run", 'query dry_run: expected true or false, got ""'),
        ("DELETE", "m?dry_run=false&dry_run=true", 'query dry_run: expected true or false, got "false, true"'),
        ("POST", "?force=1", 'query force: expected "dry_run", "expected_generation"'),
    ],
)
async def test_what_a_change_does_not_look_at_is_refused_and_nothing_done(
    client: httpx.AsyncClient, behind: FakePlatform, method: str, path: str, words: str
) -> None:
    url = f"{MODELS}{path if path.startswith('?') else f'/{path}'}"
    reply = await client.request(method, url, json={})
    assert reply.status_code == 400
    assert words in reply.json()["error"]
    assert behind.requests == []


@pytest.mark.parametrize(
    ("header", "actor"), [("ann@desk", "ann@desk"), ("", "http:"), ("x" * 201, "http:"), ("a\tb", "http:")]
)
async def test_who_asks_is_who_they_say_they_are(
    app: ASGIApp, monkeypatch: pytest.MonkeyPatch, header: str, actor: str
) -> None:
    asked: list[str] = []

    async def load(self: object, name: str, **by: Unpack[By]) -> ModelStatus:
        asked.append(by["actor"])
        raise ModelNotFound(name)

    monkeypatch.setattr(HttpTransport, "load", load)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge") as client:
        await client.post(f"{MODELS}/m/load", headers={"x-modelyard-actor": header})
    assert asked[0].startswith(actor)


@pytest.mark.parametrize(
    ("method", "way", "body"),
    [
        ("PUT", "/traffic", {"weights": {"1": 50, "2": 50}}),
        ("PUT", "/labels/mine", {"revision": 1}),
        ("DELETE", "/labels/tested", None),
        ("POST", "/rollout", {"to": 1, "steps": [10, 100]}),
        ("POST", "/promote", {"revision": 1}),
        ("POST", "/rollback", {}),
        ("POST", "/load", {}),
        ("POST", "/unload", {}),
        ("DELETE", "", None),
    ],
)
async def test_a_dry_run_of_a_change_answers_200_and_keeps_nothing(
    client: httpx.AsyncClient, behind: FakePlatform, method: str, way: str, body: dict[str, Any] | None
) -> None:
    await client.post(MODELS, json=SPEC)
    await client.post(MODELS, json=SPEC | {"uri": "models/other"})
    await client.put(f"{MODELS}/m/labels/tested", json={"revision": 1})
    before = behind.catalog.list_models(), behind.catalog.list_events()
    reply = await client.request(method, f"{MODELS}/m{way}?dry_run=true", json=body)
    assert (reply.status_code, reply.json()["name"]) == (200, "m"), reply.text
    assert (behind.catalog.list_models(), behind.catalog.list_events()) == before


@pytest.mark.parametrize("verb", ["abort", "pause", "resume"])
async def test_a_dry_run_of_a_change_of_a_rollout_keeps_nothing(
    client: httpx.AsyncClient, behind: FakePlatform, verb: str
) -> None:
    await client.post(MODELS, json=SPEC)
    await client.post(MODELS, json=SPEC | {"uri": "models/other", "rollout": {"steps": [10, 100]}})
    if verb == "resume":
        await client.post(f"{MODELS}/m/rollout/pause")
    before = behind.catalog.list_models()
    reply = await client.post(f"{MODELS}/m/rollout/{verb}?dry_run=true")
    states = {"abort": "rolled_back", "pause": "paused", "resume": "waiting"}
    assert (reply.status_code, reply.json()["rollout"]["state"]) == (200, states[verb])
    assert behind.catalog.list_models() == before


async def test_a_dry_run_answers_a_plan_and_keeps_nothing(client: httpx.AsyncClient, behind: FakePlatform) -> None:
    reply = await client.post(f"{MODELS}?dry_run=true", json=SPEC | {"message": "why"})
    assert (reply.status_code, reply.json()["action"], reply.json()["generation"]) == (200, "create", 0)
    assert behind.catalog.list_models() == ()
    assert (await client.post(f"{MODELS}?dry_run=false", json=SPEC)).status_code == 201


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("expected_generation=1", {}),
        ("", {"if-match": "1"}),
        ("", {"if-match": '"1"'}),
        ("expected_generation=1", {"if-match": "7"}),
    ],
)
async def test_a_registration_may_be_for_one_generation_only(
    client: httpx.AsyncClient, query: str, headers: dict[str, str]
) -> None:
    refused = await client.post(f"{MODELS}?{query}", json=SPEC, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    await client.post(MODELS, json=SPEC)
    assert (await client.post(f"{MODELS}?{query}", json=SPEC | {"uri": "x"}, headers=headers)).status_code == 200
    assert (await client.post(f"{MODELS}?{query}", json=SPEC, headers=headers)).status_code == 409


CHANGES = [
    (method, path)
    for method, path, _ in AdminHandlers(HandleTransport(Away(TimeoutError()))).routes()  # type: ignore[arg-type]
    if method != "GET"
]
BODIES: dict[str, dict[str, Any]] = {
    f"POST {MODELS}": SPEC,
    f"PUT {MODELS}/{{model}}/traffic": {"weights": {"1": 100}},
    f"PUT {MODELS}/{{model}}/labels/{{label}}": {"revision": 1},
    f"POST {MODELS}/{{model}}/rollout": {"to": 2},
}
"""Of those changes that need one."""


async def _change(client: httpx.AsyncClient, method: str, path: str, **parts: Any) -> httpx.Response:
    """One of the changes, of a model ``m`` and its label ``own``."""
    body = BODIES.get(f"{method} {path}", {})
    content = b"" if method == "DELETE" else json.dumps(body)
    return await client.request(method, path.format(model="m", label="own"), content=content, **parts)


@pytest.mark.parametrize(("method", "path"), CHANGES)
async def test_every_change_may_be_for_one_generation_only(
    client: httpx.AsyncClient, platform: AsyncPlatform, method: str, path: str
) -> None:
    await platform.set_label("m", "own", 2)
    generation = (await (platform.pause("m") if path.endswith("resume") else platform.status("m"))).generation
    for stale in (
        {"params": {"expected_generation": generation - 1}},
        {"headers": {"if-match": f'"{generation + 1}"'}},
    ):
        refused = await _change(client, method, path, **stale)
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
        assert f"got {generation}" in refused.json()["error"]
    done = await _change(client, method, path, headers={"if-match": str(generation)})
    assert done.is_success, done.text


@pytest.mark.parametrize(("method", "path"), CHANGES)
async def test_a_generation_that_is_none_goes_no_further(
    client: httpx.AsyncClient, behind: FakePlatform, method: str, path: str
) -> None:
    for where, nonsense in (
        ("query", {"params": {"expected_generation": "new"}}),
        ("header", {"headers": {"if-match": "*"}}),
    ):
        reply = await _change(client, method, path, **nonsense)
        assert reply.status_code == 400
        assert reply.json()["error"].startswith(where)
    assert behind.requests == []


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_the_document_says_that_every_change_may_be_for_one_generation(method: str, path: str) -> None:
    (operation,) = [one for one in OPERATIONS if (one.method, one.path) == (method, path)]
    assert {"ExpectedGeneration", "IfMatch"} <= set(operation.parameters)


async def test_a_spec_is_what_would_register_the_model_again(client: httpx.AsyncClient) -> None:
    await client.post(MODELS, json=SPEC)
    reply = await client.get(f"{MODELS}/m/spec")
    assert (reply.status_code, reply.json()) == (200, SPEC)
    assert (await client.get(f"{MODELS}/none/spec")).status_code == 404


def nested(depth: int) -> bytes:
    inner = b'{"a":' * depth + b"1" + b"}" * depth
    return json.dumps(SPEC).encode()[:-1] + b', "options": ' + inner + b"}"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "it is empty"),
        (b"[]", 400, "expected an object, got a list"),
        (nested(64), 400, "at most 64 objects and lists inside each other"),
        (nested(900), 400, "at most 64 objects and lists inside each other"),
        (json.dumps({**SPEC, "description": "d" * 1024 * 1024}).encode(), 413, "at most 1048576 bytes"),
        (json.dumps({**SPEC, "message": "m" * 4097}).encode(), 413, "at most 4096 characters, got 4097"),
        (json.dumps({**SPEC, "message": 1}).encode(), 400, "message: expected a string, got 1"),
    ],
)
async def test_a_bad_registration_goes_no_further(
    client: httpx.AsyncClient, behind: FakePlatform, body: bytes, status: int, words: str
) -> None:
    reply = await client.post(MODELS, content=body)
    assert (reply.status_code, set(reply.json())) == (status, {"error", "code"})
    assert words in reply.json()["error"]
    assert behind.requests == []


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_a_bad_change_goes_no_further(client: httpx.AsyncClient, behind: FakePlatform, verb: str) -> None:
    for body in (b"[]", b"{", b'{"message": 1}', b'{"message": "' + b"m" * 4097 + b'"}'):
        assert (await client.post(f"{MODELS}/m/{verb}", content=body)).status_code in (400, 413)
    assert (await client.delete(f"{MODELS}/m", params={"message": "m" * 4097})).status_code == 413
    assert behind.requests == []


async def test_a_registration_that_is_nested_as_deep_as_may_be_is_passed_on(
    client: httpx.AsyncClient, behind: FakePlatform
) -> None:
    await client.post(MODELS, content=nested(62))
    assert len(behind.requests) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("PUT", "traffic", {}, "expected weights or shadow, got neither"),
        ("PUT", "traffic", {"weights": {}}, "weights: expected a mapping that is not empty"),
        ("PUT", "traffic", {"weights": {"1": "all"}}, 'weights.1: expected a valid number, got "all"'),
        ("PUT", "traffic", {"shadow": {"revision": 2, "percent": 101}}, "shadow.percent: expected a number > 0 and <="),
        ("PUT", "traffic", {"shadow": {}}, "shadow.revision: expected a text"),
        ("PUT", "traffic", {"weight": {"1": 100}}, 'weight: unknown key; did you mean "weights"?'),
        ("PUT", "labels/mine", {}, "revision: expected a revision's number or label, got nothing"),
        ("PUT", "labels/mine", {"revision": 1.5}, "revision: expected a revision's number or label, got 1.5"),
        ("PUT", "labels/mine", {"revision": ""}, "revision: expected a revision's number or label"),
        ("PUT", "labels/mine", {"revision": 1, "number": 2}, 'expected revision and message, got the unknown keys "nu'),
        ("POST", "rollout", {}, "to: expected a text"),
        ("POST", "rollout", {"to": True}, "to: expected a text that is not empty, got true"),
        ("POST", "rollout", {"to": 2, "steps": [50, 10]}, "steps: expected each step to be higher than the last"),
        ("POST", "rollout", {"to": 2, "gates": {"p99": 3}}, 'gates.p99: unknown key; did you mean "p99_ms"?'),
        ("POST", "rollout/pause", {"revision": 2}, 'expected message, got the unknown keys "revision"'),
        ("POST", "rollout/resume", {"message": 3}, "message: expected a string, got 3"),
        ("POST", "promote", {"to": 2}, 'expected revision and message, got the unknown keys "to"'),
        ("POST", "rollback", {"revision": []}, "revision: expected a revision's number or label, got a list"),
    ],
)
async def test_a_bad_change_of_traffic_goes_no_further(
    client: httpx.AsyncClient, behind: FakePlatform, method: str, path: str, body: dict[str, Any], words: str
) -> None:
    reply = await client.request(method, f"{MODELS}/m/{path}", json=body)
    assert reply.status_code == 400
    assert words in reply.json()["error"]
    assert behind.requests == []


async def test_every_verb_of_traffic_is_passed_on(platform: AsyncPlatform) -> None:
    await platform.rollback("m")
    status = await platform.set_traffic("m", {1: 90, "2": 10}, shadow={"revision": 2, "percent": 5}, message="try")
    assert (status.traffic, status.shadow and status.shadow.percent) == ({"1": 90, "2": 10}, 5)
    assert (await platform.set_traffic("m", shadow=None)).shadow is None
    assert (await platform.set_label("m", "mine", 2)).labels["mine"] == "2"
    assert "mine" not in (await platform.remove_label("m", "mine")).labels
    await platform.rollout("m", "2", steps=[10, 50, 100], interval_s=0, gates={"error_rate": 0.1})
    await platform.status("m")
    paused = (await platform.pause("m")).rollout
    assert paused is not None
    assert (paused.state, paused.percent, paused.gates.error_rate) == (RolloutState.PAUSED, 10, 0.1)
    assert (await platform.resume("m")).rollout != paused
    back = (await platform.rollback("m", message="no")).rollout
    assert back is not None
    assert (back.state, back.reason) == (RolloutState.ROLLED_BACK, "no")
    assert (await platform.promote("m", 2)).traffic == {"2": 100}
    assert (await platform.rollback("m")).traffic == {"1": 100}
    assert [one.number for one in await platform.revisions("m")] == [2, 1]
    assert [event.kind for event in await platform.events("m", limit=2)] == ["promoted", "rolled_back"]


@pytest.mark.parametrize("revision", [2, "2", "mine"])
async def test_numbers_and_texts_name_a_revision(
    client: httpx.AsyncClient, platform: AsyncPlatform, revision: int | str
) -> None:
    await platform.set_label("m", "mine", 2)
    for method, path, body in (
        ("PUT", "labels/other", {"revision": revision}),
        ("PUT", "traffic", {"shadow": {"revision": revision}}),
        ("POST", "rollout", {"to": revision, "steps": [1]}),
        ("POST", "promote", {"revision": revision}),
    ):
        reply = await client.request(method, f"{MODELS}/m/{path}", json=body)
        assert reply.is_success, reply.text
    assert reply.json()["traffic"] == {"2": 100}


async def test_a_change_that_goes_on_is_202(client: httpx.AsyncClient, platform: AsyncPlatform) -> None:
    assert (await client.post(f"{MODELS}/m/rollout", json={"to": 2, "steps": [10]})).status_code == 202
    assert (await client.post(f"{MODELS}/m/promote")).status_code == 200
    assert (await client.post(f"{MODELS}/m/promote")).status_code == 409


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("limit=0", 'query limit: expected an integer from 1 to 1000, got "0"'),
        ("limit=1001", "query limit: expected an integer from 1 to 1000"),
        ("limit=ten", 'got "ten"'),
        ("after=-1", "query after: expected an integer from 0 to 9223372036854775807"),
        ("after=99999999999999999999", "query after: expected"),
        ("watch=yes", 'query watch: expected true or false, got "yes"'),
    ],
)
async def test_a_bad_question_for_events_goes_no_further(
    client: httpx.AsyncClient, behind: FakePlatform, query: str, words: str
) -> None:
    for path in ("/platform/v1/events", f"{MODELS}/m/events"):
        reply = await client.get(f"{path}?{query}")
        assert reply.status_code == 400
        assert words in reply.json()["error"]
    assert behind.requests == []


async def test_events_are_the_latest_or_those_after_one(client: httpx.AsyncClient, platform: AsyncPlatform) -> None:
    latest = (await client.get("/platform/v1/events?limit=1")).json()["events"]
    assert [event["kind"] for event in latest] == ["revised"]
    after = (await client.get(f"{MODELS}/m/events?after=0")).json()["events"]
    assert [event["kind"] for event in after] == ["created", "revised"]
    assert (await client.get(f"{MODELS}/none/events")).json() == {"events": []}


class Stream:
    """A client that listens until it goes away."""

    def __init__(self, app: ASGIApp, path: str, query: str = "", headers: dict[str, str] | None = None) -> None:
        self.headers = [(key.encode(), value.encode()) for key, value in (headers or {}).items()]
        scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), SHORT_WAY: b"id"}
        self.sent: list[dict[str, Any]] = []
        self._gone = asyncio.Event()
        self._begun = False
        self.task = asyncio.create_task(app({**scope, "headers": self.headers}, self._receive, self._send))  # type: ignore[arg-type]

    async def _receive(self) -> dict[str, Any]:
        if not self._begun:
            self._begun = True
            return {"type": "http.request"}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def leave(self) -> None:
        self._gone.set()
        await asyncio.wait_for(self.task, 10)


async def test_events_are_sent_as_they_come_until_the_client_goes_away(app, platform, until) -> None:
    stream = Stream(app, f"{MODELS}/m/events", "watch=true")
    await until(lambda: stream.sent)
    assert dict(stream.sent[0]["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    await platform.set_label("m", "mine", 2, message="why")
    await until(lambda: "event: label" in stream.text)
    await until(lambda: ": keep-alive" in stream.text)
    await stream.leave()
    kind, ident, data, *_ = stream.text[stream.text.index("event: ") :].split("\n")
    event = json.loads(data.removeprefix("data: "))
    assert (kind, ident) == ("event: label", f"id: {event['id']}")
    assert (event["kind"], event["message"], event["detail"]) == ("label", "why", {"label": "mine", "revision": 2})


@pytest.mark.parametrize(
    ("query", "headers", "kinds"),
    [
        ("after=0", {"accept": "text/event-stream"}, ["created", "revised"]),
        ("after=0&watch=true", {"last-event-id": "1"}, ["revised"]),
    ],
)
async def test_a_stream_goes_on_where_the_last_one_ended(app, platform, until, query, headers, kinds) -> None:
    stream = Stream(app, "/platform/v1/events", query, headers)
    await until(lambda: stream.text.count("event: ") == len(kinds))
    await stream.leave()
    assert [line[7:] for line in stream.text.splitlines() if line.startswith("event: ")] == kinds


async def test_a_stream_outlives_a_controller_that_is_away(behind, app, platform, until) -> None:
    stream = Stream(app, "/platform/v1/events", "after=0&watch=true")
    await until(lambda: "revised" in stream.text)
    asked = len(behind.requests)
    behind.is_away = True
    await until(lambda: len(behind.requests) > asked + 1)
    behind.is_away = False
    await platform.set_label("m", "mine", 1)
    await until(lambda: "event: label" in stream.text)
    await stream.leave()


async def test_a_last_event_that_is_none_is_refused(client: httpx.AsyncClient) -> None:
    reply = await client.get("/platform/v1/events?watch=true", headers={"last-event-id": "x"})
    assert reply.status_code == 400
    assert reply.json()["error"].startswith("header last-event-id: expected an integer from 0")
