# SPDX-License-Identifier: Apache-2.0
"""Index, load and unload over HTTP; the controller is a catalog and its plans, with applications the test starts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import httpx
import pytest

from modelyard.admin import By, IndexEntry, ModelStatus
from modelyard.batching import Call
from modelyard.catalog import Catalog, ModelEntry, ModelRecord, Owner
from modelyard.config import parse_model_spec
from modelyard.dataplane import DataPlane
from modelyard.errors import DeadlineExceeded, InvalidRequest, ModelLoadError, ModelNotReady, Unsupported
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.routing import RevisionRoute, RouteTable
from modelyard.serve.admin import AdminHandlers
from modelyard.serve.http import make_app
from modelyard.serve.observed import Observed
from modelyard.serve.plan import ModelPlan, plan_model
from modelyard.serve.repository import Repository, RepositoryHandlers
from modelyard.serve.rollouts import Rollouts
from modelyard.serve.v2 import V2Handlers
from modelyard.serve.views import model_route, model_status
from modelyard.signature import Description
from modelyard.tensor import Tensors
from modelyard.testing import FakeModel, FakeOptions

INFER = {"inputs": [{"name": "input-0", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
RUNNING = Observed(running=1, wanted=1)


class CatalogTransport:
    """An ``AdminTransport`` that ends at a catalog; plans are made and published when the test says so.

    Attributes:
        observed: What runs, by application.
        failures: Why applications could not be loaded.
    """

    def __init__(self, catalog: Catalog, plane: DataPlane) -> None:
        self._catalog = catalog
        self._plane = plane
        self._rollouts = Rollouts(catalog, lambda *_: None)
        self._plans: dict[str, ModelPlan] = {}
        self._signature = FakeModel(0.0, FakeOptions()).signature
        self.observed: dict[str, Observed] = {}
        self.failures: dict[str, str] = {}
        self.digest = "d1"

    def publish(self) -> None:
        """What one round of the controller tells the ingress."""
        models = [self._advance(model) for model in self._catalog.list_models()]
        self._plans = {model.name: self._plan(model) for model in models}
        known = self._signatures()
        routes = {model.name: model_route(model, self._plans[model.name], known, {}, 9) for model in models}
        self._plane.follow(RouteTable("e", self._plane.table.version + 1, routes))

    def _advance(self, model: ModelRecord) -> ModelRecord:
        return self._rollouts.advance(model, self._plan(model)) if model.is_rolling_out else model

    def _plan(self, model: ModelRecord) -> ModelPlan:
        seen = {name: found for name, found in self.observed.items() if name.startswith(f"{model.name}@")}
        return plan_model(model, seen, self._signatures(), self.failures)

    def _signatures(self) -> dict[str, Any]:
        return dict.fromkeys(self.observed, Description(self._signature))

    def _status(self, record: ModelRecord) -> ModelStatus:
        return model_status(record, self._plans.get(record.name), self._signatures())

    async def register(self, spec: Mapping[str, Any], **by: Unpack[By]) -> ModelStatus:
        found = parse_model_spec(spec)
        entry = ModelEntry(found.name, found.to_json(), found.revision_content(), self.digest)
        record = self._catalog.put_model(entry, owner=Owner.REGISTERED)
        return self._status(record)

    async def unregister(self, name: str, **by: Unpack[By]) -> ModelStatus:
        return self._status(self._catalog.remove_model(name, **by))

    async def load(self, name: str, **by: Unpack[By]) -> ModelStatus:
        again = self.failures.pop(f"{name}@1", None) is not None
        old = self._catalog.get_model(name)
        entry = ModelEntry(name, old.spec, old.active.content, self.digest)
        record = self._catalog.load_model(entry, again=again, **by)
        return self._status(record)

    async def unload(self, name: str, **by: Unpack[By]) -> ModelStatus:
        return self._status(self._catalog.unload_model(name, **by))

    async def list(self) -> tuple[ModelStatus, ...]:
        return tuple(map(self._status, self._catalog.list_models()))

    async def status(self, name: str) -> ModelStatus:
        return self._status(self._catalog.get_model(name))

    async def infer(
        self, name: str, version: str, request: InferenceRequest, *, timeout_s: float | None
    ) -> InferenceResponse:
        revision, signature = self._plane.get_ready(name, version)
        return await self._plane.infer(revision, signature, request, timeout_s)

    async def close(self) -> None:
        return


class Adding:
    """Answers calls in this process."""

    def __init__(self) -> None:
        self._model = FakeModel(0.0, FakeOptions())

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        return self._model.predict(call.inputs, call.outputs, call.parameters)


@contextlib.asynccontextmanager
async def _lifespan(_app: object) -> AsyncIterator[None]:
    yield


class Platform:
    """An ingress replica, its controller, and a client."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.plane = DataPlane(Adding())  # type: ignore[arg-type]  # streams and statistics are not asked for here
        self.controller = CatalogTransport(catalog, self.plane)
        self.repository = Repository(self.plane, self.controller)
        handlers = (
            RepositoryHandlers(self.repository),
            V2Handlers(self.plane, lambda: True),
            AdminHandlers(self.controller),
        )
        app = make_app([route for group in handlers for route in group.routes()], 4096, _lifespan)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge")

    async def add(self, name: str = "m", *running: int) -> None:
        await self.controller.register({"name": name, "framework": "fake", "uri": "x"}, actor="me", message="")
        self.controller.observed |= {f"{name}@{number}": RUNNING for number in running}
        self.controller.publish()

    async def post(self, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
        return await self.client.post(f"/v2/repository/{path}", content=body, headers=headers)

    async def is_ready(self, name: str = "m") -> bool:
        return (await self.client.get(f"/v2/models/{name}/ready")).status_code == httpx.codes.OK

    async def begin(self, path: str, **headers: str) -> asyncio.Task[httpx.Response]:
        """A request that goes as far as it can before the next table."""
        task = asyncio.create_task(asyncio.wait_for(self.post(path, **headers), 5))
        for _ in range(20):
            await asyncio.sleep(0)
        return task


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Catalog(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        yield Platform(catalog)


# -- index


@pytest.mark.parametrize("body", [b"", b" ", b"{}", b'{"ready": false}', b'{"other": 1}'])
async def test_the_index_lists_every_version_of_every_model(platform: Platform, body: bytes):
    await platform.add("b")
    await platform.add("a", 1)
    platform.controller.digest = "d2"
    platform.controller.failures["a@2"] = "no memory"
    await platform.add("a")
    reply = await platform.post("index", body)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    assert reply.json() == [
        {"name": "a", "version": "1", "state": "READY"},
        {"name": "a", "version": "2", "state": "UNAVAILABLE", "reason": "no memory"},
        {"name": "b", "version": "1", "state": "LOADING", "reason": "its replicas are being created"},
    ]


async def test_the_index_lists_what_is_ready_alone(platform: Platform):
    await platform.add("b")
    await platform.add("a", 1)
    assert (await platform.post("index", b'{"ready": true}')).json() == [
        {"name": "a", "version": "1", "state": "READY"}
    ]


async def test_versions_are_in_the_order_of_numbers(platform: Platform):
    await platform.add()
    for number in range(2, 11):
        platform.controller.digest = f"d{number}"
        await platform.add()
    platform.controller.observed = {"m@9": RUNNING, "m@10": Observed(wanted=1)}
    platform.controller.publish()
    assert [entry.version for entry in platform.repository.index()] == ["1", "9", "10"]


async def test_an_index_of_nothing_is_an_empty_list(platform: Platform):
    assert (await platform.post("index")).json() == []


async def test_an_unloaded_model_is_unloading_then_unavailable(platform: Platform):
    await platform.add("m", 1)
    await platform.controller.unload("m", actor="me", message="")
    platform.controller.publish()
    assert platform.repository.index() == (IndexEntry("m", "1", "UNLOADING", "it is being unloaded"),)
    platform.controller.observed.clear()
    platform.controller.publish()
    assert platform.repository.index() == (IndexEntry("m", "1", "UNAVAILABLE", "unloaded"),)


# -- unload


@pytest.mark.parametrize("body", [b"", b"{}", b'{"parameters": {"unload_dependents": true}}'])
async def test_unload_is_answered_when_this_ingress_routes_nothing_there_any_more(platform: Platform, body: bytes):
    await platform.add("m", 1)
    reply = asyncio.create_task(platform.post("models/m/unload", body))
    await asyncio.sleep(0.02)
    assert not reply.done()
    assert await platform.is_ready()
    platform.controller.publish()
    assert ((await reply).status_code, (await reply).content) == (200, b"")
    assert not await platform.is_ready()
    refused = await platform.client.post("/v2/models/m/infer", json=INFER)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert "unloaded" in refused.json()["error"]
    assert platform.catalog.list_events("m")[0].kind == "unloaded"


async def test_what_is_unloaded_can_be_unloaded(platform: Platform):
    await platform.add("m", 1)
    await platform.controller.unload("m", actor="me", message="")
    platform.controller.publish()
    assert (await platform.post("models/m/unload")).status_code == 200


# -- load


async def test_load_is_answered_when_the_model_answers(platform: Platform):
    await platform.add("m")
    await platform.controller.unload("m", actor="me", message="")
    platform.controller.publish()
    reply = await platform.begin("models/m/load")
    platform.controller.publish()
    await asyncio.sleep(0)
    assert not reply.done()
    platform.controller.observed["m@1"] = RUNNING
    platform.controller.publish()
    assert ((await reply).status_code, (await reply).content) == (200, b"")
    assert (await platform.client.post("/v2/models/m/infer", json=INFER)).status_code == 200


async def test_load_of_what_serves_unchanged_is_answered_at_once(platform: Platform):
    await platform.add("m", 1)
    assert (await platform.post("models/m/load", b'{"parameters": {}}')).status_code == 200


async def test_load_of_a_changed_artifact_waits_for_the_new_version(platform: Platform):
    await platform.add("m", 1)
    platform.controller.digest = "d2"
    reply = await platform.begin("models/m/load")
    platform.controller.publish()
    await asyncio.sleep(0)
    assert not reply.done()
    assert await platform.is_ready()
    platform.controller.observed["m@2"] = RUNNING
    platform.controller.publish()
    assert (await reply).status_code == 200
    assert (await platform.client.post("/v2/models/m/infer", json=INFER)).json()["model_version"] == "2"


async def test_load_of_what_fails_says_why_and_leaves_the_old_version_serving(platform: Platform):
    await platform.add("m", 1)
    platform.controller.digest = "d2"
    reply = await platform.begin("models/m/load")
    platform.controller.failures["m@2"] = "expected a number"
    platform.controller.publish()
    assert (await reply).status_code == 503
    assert (await reply).json() == {"error": 'model "m" cannot be loaded: expected a number'}
    assert await platform.is_ready()


async def test_the_failure_before_is_not_this_ones(platform: Platform):
    platform.controller.failures["m@1"] = "no memory"
    await platform.add("m")
    reply = await platform.begin("models/m/load")
    await asyncio.sleep(0)
    assert not reply.done()
    platform.controller.observed["m@1"] = RUNNING
    platform.controller.publish()
    assert (await reply).status_code == 200


@pytest.mark.parametrize(("verb", "sentence"), [("unload", "it is being unloaded"), ("unregister", "being removed")])
async def test_load_of_what_is_taken_away_meanwhile_ends(platform: Platform, verb: str, sentence: str):
    await platform.add("m")
    reply = await platform.begin("models/m/load")
    platform.controller.observed["m@1"] = Observed(wanted=1)
    await getattr(platform.controller, verb)("m", actor="me", message="")
    platform.controller.publish()
    assert (await reply).status_code == 503
    assert sentence in (await reply).json()["error"]


async def test_load_of_what_is_gone_meanwhile_is_not_found(platform: Platform):
    await platform.add("m")
    reply = await platform.begin("models/m/load")
    platform.plane.follow(RouteTable("e", 99))
    assert (await reply).status_code == 404


async def test_load_that_takes_too_long_is_504_and_goes_on(platform: Platform):
    await platform.add("m")
    reply = await platform.post("models/m/load", **{"x-request-timeout-ms": "20"})
    assert reply.status_code == 504
    assert reply.json() == {"error": "deadline exceeded: no answer within 0.02 s; the model goes on loading"}


async def test_the_platforms_own_deadline_counts_without_the_clients(platform: Platform):
    await platform.add("m")
    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
        await Repository(platform.plane, platform.controller, timeout_s=0.01).load("m", {})


# -- what is refused

REFUSED = [
    ("index", b"nope", 400, "not JSON"),
    ("index", b"[]", 400, "expected an object"),
    ("index", b'{"ready": "x"}', 400, 'ready: expected true or false, got the string "x"'),
    ("index", b'{"ready": 1}', 400, "ready"),
    ("models/m/load", b"nope", 400, "not JSON"),
    ("models/m/load", b"[]", 400, "expected an object"),
    ("models/m/load", b'{"parameters": 7}', 400, "parameters: expected an object, got 7"),
    ("models/m/load", b'{"parameters": {"config": {}}}', 400, "config"),
    ("models/m/load", b'{"parameters": {"x": 1}}', 400, 'load parameter "x"'),
    ("models/m/load", b'{"parameters": {"config": "{}"}}', 501, "register a model"),
    ("models/m/load", b'{"parameters": {"file:1/model.onnx": "AAAA"}}', 501, "register a model"),
    ("models/none/load", b"", 404, 'model "none" is not found'),
    ("models/m/unload", b"nope", 400, "not JSON"),
    ("models/m/unload", b'{"parameters": {"x": 1}}', 400, 'unload parameter "x"'),
    ("models/m/unload", b'{"parameters": {"unload_dependents": "x"}}', 400, "expected true or false"),
    ("models/none/unload", b"", 404, 'model "none" is not found'),
]


@pytest.mark.parametrize(("path", "body", "status", "sentence"), REFUSED)
async def test_a_wrong_request_is_refused_and_changes_nothing(
    platform: Platform, path: str, body: bytes, status: int, sentence: str
):
    await platform.add("m", 1)
    reply = await platform.post(path, body)
    assert (reply.status_code, set(reply.json())) == (status, {"error"})
    assert sentence in reply.json()["error"]
    assert await platform.is_ready()
    assert [event.kind for event in platform.catalog.list_events()] == ["created"]


async def test_the_paths_take_post_alone(platform: Platform):
    reply = await platform.client.get("/v2/repository/index")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


async def test_without_http_the_same_errors_are_raised(platform: Platform):
    await platform.add("m")
    for parameters, error in [({"config": "{}"}, Unsupported), ({"x": True}, InvalidRequest)]:
        with pytest.raises(error):
            await platform.repository.load("m", parameters)
    platform.controller.failures["m@1"] = "no memory"
    loading = asyncio.create_task(platform.repository.load("m", {}))
    await asyncio.sleep(0)
    platform.controller.failures["m@1"] = "still none"
    platform.controller.publish()
    with pytest.raises(ModelLoadError, match="still none"):
        await loading
    with pytest.raises(ModelNotReady):
        platform.plane.get_ready("m")


# -- the same verbs in the admin API


async def test_the_admin_api_answers_202_while_there_is_something_left_to_do(platform: Platform):
    await platform.add("m", 1)
    client, path = platform.client, "/platform/v1/models/m"
    unload = await client.post(f"{path}/unload", json={"message": "night"})
    assert (unload.status_code, unload.json()["state"]) == (202, "unloading")
    platform.controller.observed.clear()
    platform.controller.publish()
    unload = await client.post(f"{path}/unload")
    assert (unload.status_code, unload.json()["state"]) == (200, "unloaded")
    load = await client.post(f"{path}/load", content=b"")
    assert (load.status_code, load.json()["state"]) == (202, "pending")
    platform.controller.observed["m@1"] = RUNNING
    platform.controller.publish()
    load = await client.post(f"{path}/load", json={})
    assert (load.status_code, load.json()["state"]) == (200, "ready")
    assert [event.message for event in platform.catalog.list_events("m")] == ["", "night", ""]


@pytest.mark.parametrize("body", [b"[]", b"nope", b'{"message": 7}'])
async def test_the_admin_api_refuses_what_is_no_message(platform: Platform, body: bytes):
    await platform.add("m", 1)
    assert (await platform.client.post("/platform/v1/models/m/unload", content=body)).status_code == 400
    assert (await platform.client.post("/platform/v1/models/none/load")).json()["code"] == "model-not-found"
