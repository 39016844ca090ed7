# SPDX-License-Identifier: Apache-2.0
"""The controller over a real catalog and a Serve that only remembers, one round at a time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelyard.admin import ModelState
from modelyard.batching import reports_batch_id
from modelyard.errors import (
    Conflict,
    InvalidConfig,
    ModelLoadError,
    ModelNotFound,
    ModelNotReady,
    ModelyardError,
    Overloaded,
    Unavailable,
)
from modelyard.model import describe as describe_model
from modelyard.model import refresh_frameworks
from modelyard.outcomes import Outcomes
from modelyard.routing import RouteTable
from modelyard.scaling import Decision, Load
from modelyard.serve import autoscaling, counts, descriptions, failures, knowledge, pools
from modelyard.serve import controller as module
from modelyard.serve.admin import HandleTransport
from modelyard.serve.applications import RevisionDeployment
from modelyard.serve.controller import Controller
from modelyard.serve.observed import Observed
from modelyard.serve.residents import Resident
from modelyard.store.artifact import LocalArtifact
from modelyard.store.remote import StoreAway, StoreError
from modelyard.testing import FakeFramework, FakeModel, FakeOptions


class RememberingServe:
    """Ray Serve, as far as the controller uses it.

    Attributes:
        states: Replica states by application.
        deployed: Applications deployed, in order.
        deleted: Applications deleted, in order.
        deleting: Those of which Serve's loop has not taken notice.
        silent: Applications whose replicas do not describe themselves.
        given_up: Applications that Serve could not start.
        lingering: Applications that answer what they have before they go.
        refused: Applications that Serve does not take.
        loaded: Revisions that a pool has loaded to describe them, in order.
        unloadable: What a pool answers for a revision instead of its description.
        deadly: A revision whose load ends the pool's process, for all that are loaded with it.
        asked_now: Revisions that the pool is loading.
        message: What Serve says of applications.
        attempts: What replicas of applications report under.
        versions: Of applications as they are deployed; what is deployed again with the same one stays as it is.
    """

    def __init__(self) -> None:
        self.states: dict[str, dict[str, int]] = {}
        self.deployed: list[str] = []
        self.refused: set[str] = set()
        self.deleted: list[str] = []
        self.silent: set[str] = set()
        self.given_up: set[str] = set()
        self.lingering: set[str] = set()
        self.loaded: list[str] = []
        self.unloadable: dict[str, ModelyardError] = {}
        self.deadly = ""
        self.asked_now: set[str] = set()
        self.message: dict[str, str] = {}
        self.attempts: dict[str, str] = {}
        self.deleting: set[str] = set()
        self.versions: dict[str, str] = {}

    def get_replica_context(self) -> Any:
        return SimpleNamespace(app_name="platform")

    def read_applications(self) -> dict[str, Observed]:
        self._turn()
        found = {"platform": Observed()}
        for name, states in self.states.items():
            all_states = [state for state, count in states.items() for _ in range(count)]
            replicas = [{"replica_id": f"r{number}", "state": state} for number, state in enumerate(all_states)]
            deployment = {"message": self.message.get(name, ""), "replicas": replicas}
            status = self._status_of(name)  # of what is being deleted Serve lists no deployments
            deployments = {} if status == "DELETING" else {"Model": deployment}
            found[name] = Observed.from_details({"status": status, "message": "", "deployments": deployments})
        return found

    def _turn(self) -> None:
        """One turn of Serve's loop: what was deleted since the last one, and not deployed again, goes."""
        for name in self.deleting:
            self.given_up.discard(name)
            if self.states.pop(name, None) is not None and name in self.lingering:
                self.states[name] = {"STOPPING": 1}
        self.deleting.clear()

    def _status_of(self, name: str) -> str:
        if name in self.given_up:
            return "DEPLOY_FAILED"
        is_leaving = name in self.lingering and self.states[name] == {"STOPPING": 1}
        return "DELETING" if is_leaving else "RUNNING"

    def run_many(self, targets: list[Any], **_: object) -> None:
        if refused := self.refused.intersection(target.name for target in targets):
            raise ValueError(f"no such thing in {', '.join(refused)}")
        for target in targets:
            self.deployed.append(target.name)
            self.deleting.discard(target.name)
            bound = target.target._bound_deployment
            if self.states.get(target.name) in (None, {"STOPPING": 1}) or self.versions[target.name] != bound.version:
                self.given_up.discard(target.name)
                self.states[target.name] = self.states.get(target.name, {}) | {"STARTING": 1}
                self.attempts[target.name], self.versions[target.name] = bound.init_args[-1], bound.version

    def delete(self, name: str, _blocking: bool) -> None:
        self.deleted.append(name)
        self.deleting.add(name)

    def get_deployment_handle(self, _: str, app_name: str) -> Any:
        async def describe() -> Any:
            if app_name in self.silent:
                await asyncio.Event().wait()
            return describe_model(FakeModel(0.0, FakeOptions()))

        return SimpleNamespace(describe=SimpleNamespace(remote=describe))

    async def describe_resident(self, resident: Resident) -> Any:
        self.asked_now.add(resident.application)
        await asyncio.sleep(0)
        try:
            return self._describe_resident(resident)
        finally:
            await asyncio.sleep(0)
            self.asked_now.discard(resident.application)

    def _describe_resident(self, resident: Resident) -> Any:
        self.loaded.append(resident.application)
        if self.deadly in self.asked_now:
            raise ConnectionError("the replica died")
        failure = self.unloadable.get(resident.application)
        return failure or describe_model(FakeModel(0.0, FakeOptions()))

    def run(self, name: str) -> None:
        """Its replica has started."""
        self.states[name] = {"RUNNING": 1}

    def fail(self, name: str, reason: str) -> None:
        """A replica of it reports why it cannot load its model."""
        failures.report_failure(name, self.attempts[name], reason)


class Stepped(Controller):
    """Reconciles when the test says so."""

    def _reconcile_forever(self) -> None:
        return

    def _watch_versions(self) -> None:
        return

    now = 0.0

    async def _look_first(self) -> None:
        if not self._table.version:
            await self.round()

    async def look(self, times: int = 1) -> None:
        """So many looks at the folders of versions."""
        for _ in range(times):
            await asyncio.to_thread(self._registrations.follow_versions)

    async def round(self) -> bool:
        self._clock = lambda: self.now
        return await asyncio.to_thread(self._reconcile)

    async def step(self) -> bool:
        """One round, and where applications have to leave, another one when their time is over."""
        is_busy = await self.round()
        self.now += 10
        return await self.round() if self._leaving else is_busy


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """Ray's key-value store."""
    store: dict[bytes, bytes] = {}

    def full(key: bytes, namespace: bytes) -> bytes:
        return namespace + b":" + key

    def find(prefix: bytes, namespace: bytes) -> list[bytes]:
        known = [key for key in store if key.startswith(full(prefix, namespace))]
        return [key.removeprefix(full(b"", namespace)) for key in known]

    def clear(prefix: bytes, namespace: bytes, *, del_by_prefix: bool = False) -> None:
        for key in find(prefix, namespace) if del_by_prefix else [prefix]:
            store.pop(full(key, namespace), None)

    def put(key: bytes, value: bytes, *, overwrite: bool, namespace: bytes) -> None:
        store[full(key, namespace)] = value

    monkeypatch.setattr(failures, "_internal_kv_put", put)
    monkeypatch.setattr(failures, "_internal_kv_get", lambda key, namespace: store.get(full(key, namespace)))
    monkeypatch.setattr(failures, "_internal_kv_list", find)
    monkeypatch.setattr(failures, "_internal_kv_del", clear)
    monkeypatch.setattr(counts, "_internal_kv_list", find)
    monkeypatch.setattr(counts, "_internal_kv_del", clear)
    described: dict[bytes, bytes] = {}
    monkeypatch.setattr(descriptions, "_internal_kv_get", lambda key, namespace: described.get(key))
    monkeypatch.setattr(descriptions, "_internal_kv_del", lambda key, namespace: described.pop(key, None))
    monkeypatch.setattr(descriptions, "_internal_kv_put", lambda key, kept, **_: described.update({key: kept}))
    monkeypatch.setattr(descriptions, "_internal_kv_list", lambda prefix, namespace: list(described))
    monkeypatch.setattr(autoscaling, "_internal_kv_get", lambda key, namespace: store.get(b"scaling " + key))
    monkeypatch.setattr(autoscaling, "_internal_kv_del", lambda key, namespace: store.pop(b"scaling " + key, None))
    return store


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch, kept) -> RememberingServe:
    fake = RememberingServe()
    monkeypatch.setattr(module.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 64.0}, "Labels": {}}])
    monkeypatch.setattr(module, "serve", fake)
    monkeypatch.setattr(knowledge, "serve", fake)
    monkeypatch.setattr(module, "read_applications", fake.read_applications)
    monkeypatch.setattr(pools, "_ask", fake.describe_resident)
    for name in ("modelyard", "modelyard_deployments"):  # the constructor joins Serve's log: undone afterwards
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    return fake


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder of artifacts, with the fake framework installed."""
    info = tmp_path / "fake-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[modelyard.frameworks]\nfake = modelyard.testing:FakeFramework\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    refresh_frameworks()
    (tmp_path / "one.fake").write_text("1")
    (tmp_path / "two.fake").write_text("2")
    yield tmp_path
    monkeypatch.undo()
    refresh_frameworks()


@pytest.fixture
def start(artifacts: Path, remembering: RememberingServe) -> Callable[..., Awaitable[Stepped]]:
    async def start(**models: str) -> Stepped:
        specs = [{"name": name, "framework": "fake", "uri": str(artifacts / file)} for name, file in models.items()]
        return Stepped({"catalog": {"url": f"sqlite:///{artifacts}/catalog.db"}, "models": specs})

    return start


def _spec(artifacts: Path, file: str = "one.fake", **settings: object) -> dict[str, Any]:
    return {"name": "m", "framework": "fake", "uri": str(artifacts / file), **settings}


async def _table(controller: Controller) -> RouteTable:
    return (await controller.watch("", -1))[0]


async def test_a_declared_model_is_deployed_once_and_routed_when_it_runs(start, remembering):
    controller = await start(m="one.fake")
    assert await controller.step()
    assert not (await controller.watch("", -1))[1]
    remembering.run("m@1")
    for _ in range(3):
        is_busy = await controller.step()
    assert (is_busy, remembering.deployed) == (False, ["m@1"])
    table, is_settled = await controller.watch("", -1)
    assert is_settled
    assert table.get_ready("m")[0].application == "m@1"


async def test_one_that_serve_refuses_waits_with_the_reason_and_keeps_no_other_from_it(start, remembering, caplog):
    remembering.refused = {"bad@1"}
    controller = await start(bad="one.fake", good="two.fake")
    for _ in range(5):
        await controller.round()
    assert remembering.deployed == ["good@1"]
    remembering.run("good@1")
    await controller.round()
    status = await controller.status("bad")
    reason = "Ray Serve does not take it: ValueError: no such thing in bad@1"
    assert (status.state, status.reason) == (ModelState.PENDING, reason)
    assert (await controller.status("good")).state is ModelState.READY
    assert len([record for record in caplog.records if "does not take it" in record.message]) == 1
    remembering.refused = set()
    controller.now += 10
    await controller.round()
    assert remembering.deployed == ["good@1", "bad@1"]


async def test_what_is_wanted_once_more_is_tried_by_the_next_round_where_one_fails(start, remembering, monkeypatch):
    controller = await start(m="one.fake")
    await controller.step()
    remembering.given_up.add("m@1")
    await controller.round()
    assert (await controller.status("m")).state is ModelState.FAILED
    await controller.load("m", "me", "")

    def read() -> Any:
        raise ConnectionError("Serve's controller starts anew")

    with monkeypatch.context() as patch:
        patch.setattr(module, "read_applications", read)
        with pytest.raises(ConnectionError):
            await controller.round()
    await controller.step()
    await controller.step()
    assert remembering.deployed == ["m@1", "m@1"]


async def test_a_model_that_cannot_be_forgotten_now_keeps_no_other_from_being_deployed(
    start, remembering, artifacts, monkeypatch
):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.unregister("m", "me", "")
    await controller.register({**_spec(artifacts, "two.fake"), "name": "n"}, "me", "")

    def purge(name: str) -> None:
        raise Unavailable("the catalog's database failed: disk full")

    with monkeypatch.context() as patch:
        patch.setattr(controller._catalog, "purge_model", purge)
        await controller.round()
    assert (await controller.status("m")).state is ModelState.REMOVING
    assert remembering.deployed == ["n@1"]
    await controller.round()
    assert isinstance(await controller.status("m"), ModelNotFound)


async def test_a_controller_whose_rounds_do_not_end_is_not_healthy(start):
    controller = await start()
    await controller.round()
    controller._threads = []
    controller._round_began = 0.0
    controller.now = 100.0
    controller.check_health()
    controller.now = 1000.0
    with pytest.raises(RuntimeError, match="reconciliation has been stuck for 1000 s"):
        controller.check_health()


async def test_a_controller_that_has_not_looked_gives_no_empty_table(start, remembering):
    await (await start(m="one.fake")).step()
    remembering.run("m@1")
    following = await start(m="one.fake")
    watching = asyncio.create_task(following.watch("another", 7))
    await asyncio.sleep(0.01)
    assert not watching.done()
    await following.step()
    table, _ = await watching
    assert table.get_ready("m")[0].application == "m@1"


async def test_a_controller_that_has_not_looked_does_not_call_a_ready_model_pending(start, remembering, monkeypatch):
    await (await start(m="one.fake")).step()
    remembering.run("m@1")
    monkeypatch.setattr(Stepped, "_look_first", Controller._look_first)
    following = await start(m="one.fake")
    asking = asyncio.gather(following.status("m"), following.list_models(), following.revisions("m"))
    await asyncio.sleep(0.01)
    assert not asking.done()
    await following.step()
    status, listed, revisions = await asking
    assert {status.state, listed[0].state, revisions[0].state} == {"ready"}


async def test_nobody_hears_of_traffic_that_has_moved_before_the_ingress_replicas_do(
    start, remembering, artifacts, monkeypatch
):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    await controller.register(_spec(artifacts, "two.fake"), "me", "")
    await controller.step()
    remembering.run("m@2")
    advance, told = controller._rollouts.advance, []

    def advance_while_somebody_asks(model, plan):
        moved = advance(model, plan)
        asking = threading.Thread(target=lambda: told.append((controller._tell("m"), controller._table)))
        asking.start()
        asking.join(0.05)
        return moved

    monkeypatch.setattr(controller._rollouts, "advance", advance_while_somebody_asks)
    await controller.step()
    await controller.status("m")
    assert [(status.version, table.models["m"].active) for status, table in told if status.state == "ready"] == [
        ("2", "2")
    ]


async def test_a_missing_artifact_fails_its_own_model_only(start, remembering):
    controller = await start(m="one.fake", gone="gone.fake")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    table, is_settled = await controller.watch("", -1)
    assert is_settled
    assert (table.get_revision("m").state, table.get_revision("gone").state) == ("ready", "failed")
    assert "does not exist" in table.get_revision("gone").reason
    assert remembering.deployed == ["m@1"]


async def test_registering_a_declared_model_is_refused_and_tries_nothing_again(start, remembering, artifacts):
    controller = await start(m="one.fake")
    await controller.step()
    remembering.fail("m@1", "broken")
    await controller.step()
    assert (await controller.status("m")).state == "failed"
    assert isinstance(await controller.register(_spec(artifacts), "me", ""), Conflict)
    await controller.step()
    assert ((await controller.status("m")).state, remembering.deployed) == ("failed", ["m@1"])


async def test_a_scheme_nobody_reads_fails_its_own_model_only(artifacts, remembering):
    spec = {"name": "far", "framework": "fake", "uri": "ftp://host/far"}
    controller = Stepped({"catalog": {"url": f"sqlite:///{artifacts}/catalog.db"}, "models": [spec]})
    await controller.step()
    assert 'got the scheme "ftp"' in (await _table(controller)).get_revision("far").reason


@pytest.mark.parametrize("folder", ["one.fake", "versions"])
async def test_models_go_on_as_they_were_where_their_store_is_away_at_a_start(
    artifacts, remembering, monkeypatch, folder
):
    for number in (1, 2):
        (artifacts / "versions" / str(number)).mkdir(parents=True)
        (artifacts / "versions" / str(number) / "model.fake").write_text(str(number))
    spec = {"name": "far", "framework": "fake", "uri": "s3://bucket/far"}
    asked: list[str] = []

    def away(uri: str) -> Any:
        asked.append(uri)
        raise StoreAway("nobody answers")

    def start(*models: dict[str, Any]) -> Stepped:
        return Stepped({"catalog": {"url": f"sqlite:///{artifacts}/catalog.db"}, "models": list(models)})

    monkeypatch.setattr("modelyard.serve.artifacts.find_artifact", lambda uri: LocalArtifact(artifacts / folder))
    first = start(spec)
    await first.step()
    known = (await _table(first)).models["far"]
    remembering.run(f"far@{known.active}")
    monkeypatch.setattr("modelyard.serve.artifacts.find_artifact", away)
    second = start(spec, {**spec, "name": "other", "uri": "s3://bucket/other"})
    await second.step()
    status = await second.status("far")
    assert (status.state, status.version, status.reason) == ("ready", known.active, "")
    assert set((await _table(second)).models["far"].revisions) == set(known.revisions)
    assert (await second.status("other")).reason == "nobody answers"
    assert asked == ["s3://bucket/far"], "a store that is away is not asked for each of its models"
    refused = await second.register({**spec, "name": "new"}, "", "")
    assert (type(refused), refused.http_status) == (StoreAway, 503), "that is not the client's fault"
    asked.clear()
    await second.look()
    assert len(asked) == 1
    monkeypatch.setattr("modelyard.serve.artifacts.find_artifact", lambda uri: LocalArtifact(artifacts / folder))
    second._registrations._silent.clear()
    await second.look()
    await second.step()
    remembering.run(f"other@{(await second.status('other')).version}")
    await second.step()
    assert (await second.status("other")).state is ModelState.READY, "its store answers"
    monkeypatch.setattr("modelyard.serve.artifacts.find_artifact", away)
    for change in ({"options": {"load_s": 0.5}}, {"uri": "s3://bucket/elsewhere"}):
        changed = start({**spec, **change})
        await changed.step()
        assert (await changed.status("far")).reason.endswith("nobody answers"), "that is another revision"


async def test_the_old_revision_serves_until_the_new_one_is_ready(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    await controller.register(_spec(artifacts, "two.fake"), "me", "")
    await controller.step()
    assert remembering.deployed == ["m@1", "m@2"]
    assert (await _table(controller)).get_ready("m")[0].version == "1"
    remembering.run("m@2")
    await controller.step()
    assert (await _table(controller)).get_ready("m")[0].version == "2"
    assert remembering.deleted == ["m@1"]


async def test_an_application_leaves_only_after_the_ingress_had_time_to_follow(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    await controller.unregister("m", "me", "")
    assert await controller.round()
    assert (await _table(controller)).get_revision("m").state == "removing"
    assert remembering.deleted == []
    controller.now += 10
    await controller.round()
    assert remembering.deleted == ["m@1"]


async def test_one_that_sleeps_leaves_only_after_serve_had_time_to_wake_it_for_a_last_request(
    start, remembering, artifacts
):
    controller = await start()
    await controller.register(_spec(artifacts, autoscaling={"min_replicas": 0}), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    remembering.states["m@1"] = {}
    await controller.round()
    await controller.unregister("m", "me", "")
    await controller.round()
    controller.now += 2
    await controller.round()
    remembering.states["m@1"] = {"STARTING": 1}
    controller.now += 2
    await controller.round()
    assert remembering.deleted == []
    remembering.run("m@1")
    await controller.round()
    controller.now += 2
    await controller.round()
    assert remembering.deleted == ["m@1"]


async def test_registering_a_failed_model_again_tries_again(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.fail("m@1", "no memory")
    await controller.step()
    assert (await controller.status("m")).state == "failed"
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    assert remembering.deployed == ["m@1", "m@1"]


async def test_a_new_revision_that_fails_leaves_the_old_one_serving(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    await controller.register(_spec(artifacts, "two.fake"), "me", "")
    await controller.step()
    remembering.fail("m@2", "expected a number")
    await controller.step()
    assert not await controller.step()  # nothing left to do, so nothing to hurry for
    assert (await _table(controller)).get_ready("m")[0].version == "1"
    status = await controller.status("m")
    assert (status.state, status.version) == ("ready", "1")
    assert "revision 2 failed and gets no traffic: expected a number" in status.reason
    assert remembering.deleted == ["m@2"]


async def test_a_failed_application_leaves_when_serve_has_given_it_up(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.round()
    remembering.fail("m@1", "no memory")
    await controller.unregister("m", "me", "")
    for now in (0.0, 5.0):
        controller.now = now
        assert await controller.round()
        assert remembering.deleted == []
    remembering.given_up.add("m@1")
    await controller.round()
    assert remembering.deleted == ["m@1"]


async def test_a_repaired_artifact_does_not_wait_for_the_attempt_that_fails(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.round()
    remembering.fail("m@1", "expected a number")
    await controller.round()
    (artifacts / "one.fake").write_text("3")
    await controller.load("m", "me", "")
    await controller.round()
    assert (remembering.deployed, remembering.deleted) == (["m@1", "m@2"], [])


async def test_a_changed_setting_deploys_again_without_a_new_revision(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    await controller.register(_spec(artifacts, batching={"max_batch_size": 8}), "me", "")
    await controller.step()
    assert remembering.deployed == ["m@1", "m@1"]
    remembering.states["m@1"] = {"UPDATING": 1}
    await controller.step()
    assert (await _table(controller)).get_ready("m")[0].max_batch_size == 8


async def test_an_unregistered_model_is_taken_down_then_forgotten(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    assert (await controller.unregister("m", "me", "")).state == "removing"
    await controller.step()
    assert (await _table(controller)).get_revision("m").state == "removing"
    assert remembering.deleted == ["m@1"]
    await controller.step()
    assert isinstance(await controller.status("m"), ModelNotFound)
    assert (await _table(controller)).find_model("m") is None


async def test_a_model_registered_anew_does_not_inherit_a_failure(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts, "two.fake"), "me", "")
    await controller.step()
    remembering.fail("m@1", "expected a number")
    await controller.step()
    assert (await controller.status("m")).state == "failed"
    await controller.unregister("m", "me", "")
    for _ in range(3):
        await controller.step()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    assert remembering.deployed == ["m@1", "m@1"]
    remembering.run("m@1")
    await controller.step()
    assert (await controller.status("m")).state == "ready"


async def test_one_registered_again_while_it_goes_comes_back(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    await controller.unregister("m", "me", "")
    await controller.step()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    assert remembering.deployed == ["m@1", "m@1"]


async def test_a_new_controller_goes_on_where_the_last_one_died(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    following = await start()
    await following.step()
    remembering.run("m@1")
    await following.step()
    assert (await _table(following)).get_ready("m")[0].application == "m@1"


async def test_changing_one_declared_model_touches_no_other(start, remembering):
    controller = await start(a="one.fake", b="one.fake")
    await controller.step()
    remembering.run("a@1")
    remembering.run("b@1")
    following = await start(a="two.fake", c="one.fake")
    await following.step()
    await following.step()
    assert remembering.deleted == ["b@1"]
    table = await _table(following)
    assert table.get_ready("a")[0].version == "1"
    assert {"a@2", "c@1"} <= set(remembering.deployed)


async def test_an_application_nobody_wants_is_taken_down_and_others_are_left_alone(start, remembering):
    controller = await start()
    remembering.run("lost@1")
    remembering.run("theirs")
    await controller.step()
    assert remembering.deleted == ["lost@1"]


async def test_a_replica_that_does_not_describe_itself_is_loading_and_holds_up_nobody(
    start, remembering, monkeypatch, until
):
    monkeypatch.setattr(knowledge, "_DESCRIBE_TIMEOUT_S", 0.02)
    controller = await start(a="one.fake", b="one.fake", c="one.fake")
    await controller.step()
    remembering.silent |= {"a@1", "b@1"}
    for name in ("a@1", "b@1", "c@1"):
        remembering.run(name)
    await controller.step()
    table = await _table(controller)
    assert [table.get_revision(name).state for name in "abc"] == ["loading", "loading", "ready"]
    await asyncio.sleep(0.03)
    await controller.round()
    await until(lambda: len(asyncio.all_tasks()) == 1)  # none of those that asked is left


async def test_requests_wait_for_the_next_replica_where_the_last_one_has_ended_and_not_for_long(start, remembering):
    controller = await start(m="one.fake")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    remembering.states["m@1"] = {"STARTING": 1}
    await controller.round()
    status = await controller.status("m")
    assert (status.state, status.reason, status.replicas_ready) == (
        "ready",
        "its last replica has ended; requests wait for the next one",
        0,
    )
    assert (await _table(controller)).get_ready("m")[0].replicas == 0
    controller.now += 60
    await controller.round()
    assert (await controller.status("m")).state == "loading"
    remembering.run("m@1")
    await controller.round()
    remembering.states["m@1"] = {"STARTING": 1}
    remembering.fail("m@1", "its file is gone")
    await controller.round()
    assert (await controller.status("m")).state == "failed"


async def test_under_a_new_controller_a_model_answers_before_its_replica_has_described_itself(start, remembering):
    controller = await start(m="one.fake")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    remembering.silent.add("m@1")
    again = await start(m="one.fake")
    await again.step()
    assert (await _table(again)).get_ready("m")[0].version == "1"


async def test_a_declared_model_that_no_node_has_room_for_keeps_the_platform_from_being_ready_for_a_while_only(
    start, remembering, caplog
):
    controller = await start(m="one.fake", large="one.fake")
    await controller.step()
    remembering.run("m@1")
    remembering.message["large@1"] = (
        "Deployment 'Model' has 1 replicas that have taken more than 30s to be scheduled. Resources required for each "
        "replica: {'CPU': 8.0}, total resources available: {'CPU': 1.0}."
    )
    controller._began = controller.now
    await controller.round()
    assert not (await controller.watch("", -1))[1], "a node may be about to come"
    controller.now += 60
    await controller.round()
    assert (await controller.watch("", -1))[1]
    status = await controller.status("large")
    assert (status.state, status.reason) == (
        "pending",
        "no node has room for a replica: it needs {'CPU': 8.0} of each node, free are {'CPU': 1.0}",
    )
    await controller.round()
    assert caplog.text.count('model "large" waits: no node has room') == 1


async def test_the_history_and_a_metric_tell_which_revisions_became_ready_and_which_failed(
    start, remembering, artifacts, monkeypatch
):
    told: dict[tuple[str, str], float] = {}
    monkeypatch.setattr(
        "modelyard.serve.news.Gauge.set", lambda _, value, tags: told.update({(tags["model"], tags["revision"]): value})
    )
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    await controller.register(_spec(artifacts, "two.fake"), "me", "")
    await controller.step()
    remembering.fail("m@2", "its file is gone")
    await controller.step()
    events = [(one.kind, one.actor, one.detail) for one in await controller.events("m", None, 100)]
    assert [one for one in events if one[1] == "controller"] == [
        ("failed", "controller", {"revision": 2, "reason": "its file is gone"}),
        ("ready", "controller", {"revision": 1, "reason": ""}),
    ]
    assert told == {("m", "2"): 1.0}
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    assert told == {("m", "2"): 0.0}


async def test_what_cannot_be_deployed_is_not_tried_in_each_round(start, remembering, artifacts, monkeypatch, caplog):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()

    def refuse(*_: object, **__: object) -> None:
        raise InvalidConfig(("resources: no",))

    with monkeypatch.context() as patched:
        patched.setattr(RevisionDeployment, "to_target", refuse)
        await controller.register(_spec(artifacts, batching={"max_batch_size": 7}), "me", "")
        assert [await controller.round() for _ in range(3)][1:] == [False, False]
    assert caplog.text.count("cannot be loaded") == 1
    deployed = len(remembering.deployed)
    controller.now += 100
    await controller.round()
    assert remembering.deployed[deployed:] == ["m@1"]


async def test_a_spec_is_that_of_the_revision_which_has_the_traffic(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    two = str(artifacts / "two.fake")
    await controller.register(_spec(artifacts, "two.fake", batching={"max_batch_size": 7}), "me", "")
    await controller.step()
    remembering.run("m@2")
    await controller.step()
    await controller.step()
    assert (await controller.spec("m"))["uri"] == two
    await controller.rollback("m", None, "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    spec = await controller.spec("m")
    assert (spec["uri"], spec["batching"]) == (str(artifacts / "one.fake"), {"max_batch_size": 7})


async def test_a_model_may_sleep_where_an_hour_lets_it(start, remembering, artifacts):
    controller = await start()
    night = {"start": "22:00", "end": "06:00", "min_replicas": 0}
    await controller.register(_spec(artifacts, autoscaling={"schedule": [night]}), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    remembering.states["m@1"] = {}
    controller.now += 60
    await controller.round()
    status = await controller.status("m")
    assert (status.state, status.reason) == (
        "ready",
        "scaled to zero: the next request starts a replica, and waits for it",
    )


async def test_a_status_says_what_has_become_of_a_shadows_copies(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    await controller.register(_spec(artifacts, "two.fake", rollout={"steps": []}), "me", "")
    await controller.set_traffic("m", {"shadow": {"revision": 2}}, "me", "")
    await controller.report({"m@2": Outcomes(same=7, different=2, dropped=1)})
    status = await controller.status("m")
    assert status.shadow.measured == {"compared": 9, "different": 2, "dropped": 1}
    assert status.to_dict()["shadow"]["measured"]["different"] == 2


async def test_nothing_is_put_up_while_serve_goes_down(start, remembering, monkeypatch):
    controller = await start(m="one.fake")
    monkeypatch.setattr(module, "read_applications", dict)
    assert not await controller.step()
    assert remembering.deployed == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [({"framework": "nope"}, "framework"), ({"uri": "nowhere.fake"}, "uri"), ({"surplus": 1}, "surplus")],
)
async def test_a_wrong_registration_is_refused_and_nothing_kept(start, artifacts, change, problem):
    controller = await start()
    error = await controller.register(_spec(artifacts) | change, "me", "")
    assert isinstance(error, InvalidConfig)
    assert problem in str(error)
    assert await controller.list_models() == ()


WORKERS = "whose workers have its GPUs in processes of their own"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"resources": {"num_gpus": 6}}, "resources.num_gpus: expected a multiple of 4, its workers, got 6"),
        (
            {"resources": {"num_gpus": 4}, "autoscaling": {"target_gpu_percent": 70}},
            f"autoscaling.target_gpu_percent: expected none for a model {WORKERS}, got 70",
        ),
    ],
)
async def test_what_the_workers_of_a_model_cannot_have_is_refused_at_once(
    start, artifacts, monkeypatch, settings, problem
):
    monkeypatch.setattr(FakeFramework, "workers", lambda *_: 4)
    controller = await start()
    found = await controller.register(_spec(artifacts, **settings), "me", "")
    assert isinstance(found, InvalidConfig)
    assert found.problems == (problem,)
    assert await controller.list_models() == ()


async def test_a_dry_run_reads_the_artifact_and_wakes_nobody(start, remembering, artifacts):
    controller = await start()
    assert (await controller.plan(_spec(artifacts))).action == "create"
    assert await controller.list_models() == ()
    await controller.register(_spec(artifacts), "me", "")
    controller._wake.clear()
    assert (await controller.plan(_spec(artifacts))).action == "nothing"
    (artifacts / "one.fake").write_text("3")
    plan = await controller.plan(_spec(artifacts))
    assert (plan.action, plan.revision, plan.changed) == ("revise", 2, {})
    missing = await controller.plan(_spec(artifacts, "none.fake"))
    assert isinstance(missing, InvalidConfig)
    assert missing.problems[0].startswith("uri: ")
    assert not controller._wake.is_set()
    assert (await controller.status("m")).generation == 1


async def test_a_dry_run_does_not_try_a_failed_model_again(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.fail("m@1", "no memory")
    await controller.step()
    assert (await controller.plan(_spec(artifacts))).action == "load"
    refused = await controller.register(_spec(artifacts), "me", "", 7)
    assert isinstance(refused, Conflict)
    await controller.step()
    assert ((await controller.status("m")).state, remembering.deployed) == ("failed", ["m@1"])


async def test_a_spec_has_no_defaults_and_is_none_where_the_catalogs_cannot_be_used(start, artifacts):
    controller = await start()
    assert isinstance(await controller.spec("m"), ModelNotFound)
    await controller.register(_spec(artifacts, batching={"max_batch_size": 8}), "me", "")
    assert await controller.spec("m") == _spec(artifacts, batching={"max_batch_size": 8})
    with contextlib.closing(sqlite3.connect(artifacts / "catalog.db")) as connection:
        connection.execute("UPDATE models SET spec = json_set(spec, '$.surplus', 1)")
        connection.commit()
    assert isinstance(await controller.spec("m"), ModelLoadError)


async def test_how_many_may_be_in_flight_counts_what_replicas_take(start, remembering, artifacts):
    controller = await start()
    limits = {"max_queued_requests": 0, "max_ongoing_requests": 4}
    await controller.register(_spec(artifacts, limits=limits), "me", "")
    await controller.step()
    remembering.states["m@1"] = {"RUNNING": 2}
    await controller.step()
    assert (await _table(controller)).get_revision("m").max_inflight_requests == 8


# -- load and unload


@pytest.fixture
def serving(start, remembering, artifacts) -> Callable[..., Awaitable[Stepped]]:
    """A controller with the registered model ``m``, which serves."""

    async def serving() -> Stepped:
        controller = await start()
        await controller.register(_spec(artifacts), "me", "")
        await controller.step()
        remembering.run("m@1")
        await controller.step()
        return controller

    return serving


async def test_a_dry_run_of_a_change_wakes_nobody_and_tries_nothing_again(serving, remembering, artifacts):
    controller = await serving()
    await controller.register(_spec(artifacts, "two.fake", rollout={"steps": []}), "me", "")
    await controller.step()
    remembering.fail("m@2", "expected a number")
    await controller.step()
    before = await controller.status("m"), await controller.events("m", None, 100)
    controller._wake.clear()
    by = {"actor": "me", "message": "", "dry_run": True}
    found = {
        "set_traffic": await controller.set_traffic("m", {"weights": {"1": 50, "2": 50}}, **by),
        "promote": await controller.promote("m", "2", **by),
        "load": await controller.load("m", **by),
        "unload": await controller.unload("m", **by),
        "unregister": await controller.unregister("m", **by),
    }
    assert {(status.generation, status.updated_at) for status in found.values()} == {
        (before[0].generation, before[0].updated_at)
    }
    assert found["set_traffic"].traffic == {"1": 50, "2": 50}
    assert [found[name].state for name in ("unload", "unregister")] == ["unloading", "removing"]
    assert isinstance(await controller.unload("m", **by, expected_generation=99), Conflict)
    assert not controller._wake.is_set()
    deployed = list(remembering.deployed)
    await controller.step()
    assert (await controller.status("m"), await controller.events("m", None, 100)) == before
    assert remembering.deployed == deployed


async def test_an_unloaded_model_is_refused_before_its_application_goes(serving, remembering):
    controller = await serving()
    status = await controller.unload("m", "me", "night")
    assert (status.state, status.version) == ("unloading", "1")
    remembering.lingering.add("m@1")
    await controller.round()
    with pytest.raises(ModelNotReady, match="it is being unloaded"):
        (await _table(controller)).get_ready("m")
    assert remembering.deleted == []
    controller.now += 10
    assert await controller.round()
    assert remembering.deleted == ["m@1"]
    assert (await controller.status("m")).state == "unloading"
    del remembering.states["m@1"]
    assert not await controller.round()
    status = await controller.status("m")
    assert (status.state, status.reason, status.replicas_wanted) == ("unloaded", "unloaded", 0)
    with pytest.raises(ModelNotReady, match="unloaded"):
        (await _table(controller)).get_ready("m", "1")


async def test_a_loaded_model_is_deployed_again(serving, remembering):
    controller = await serving()
    await controller.unload("m", "me", "")
    await controller.step()
    assert (await controller.load("m", "me", "")).state == "pending"
    await controller.step()
    assert remembering.deployed == ["m@1", "m@1"]
    remembering.run("m@1")
    await controller.step()
    assert (await _table(controller)).get_ready("m")[0].version == "1"


async def test_one_loaded_before_its_application_went_serves_on(serving, remembering):
    controller = await serving()
    await controller.unload("m", "me", "")
    await controller.round()
    await controller.load("m", "me", "")
    controller.now += 10
    await controller.round()
    assert (await _table(controller)).get_ready("m")[0].version == "1"
    assert remembering.deleted == []


async def test_one_loaded_while_its_application_goes_is_ready_only_when_it_is_back(serving, remembering):
    controller = await serving()
    remembering.lingering.add("m@1")
    await controller.unload("m", "me", "")
    await controller.step()
    assert remembering.deleted == ["m@1"]
    await controller.load("m", "me", "")
    await controller.round()
    assert remembering.deployed == ["m@1", "m@1"]
    assert (await controller.status("m")).state == "pending"
    await controller.round()
    assert (await controller.status("m")).state == "loading"


async def test_an_unload_survives_the_controller(serving, start, remembering):
    await (await serving()).unload("m", "me", "")
    following = await start()
    assert (await following.status("m")).state == "unloading"  # it has not looked yet
    await following.step()
    await following.step()
    assert remembering.deleted == ["m@1"]
    assert remembering.deployed == ["m@1"]
    assert (await following.status("m")).state == "unloaded"


async def test_a_declared_model_stays_unloaded_over_a_start_and_holds_up_nobody(start, remembering, caplog):
    controller = await start(m="one.fake")
    await controller.unload("m", "me", "")
    await controller.step()
    remembering.deployed.clear()
    with caplog.at_level(logging.INFO, module.__name__):
        following = await start(m="one.fake")
    assert caplog.messages == ['model "m" stays unloaded: `modelyard load m` runs it again']
    assert not await following.step()
    assert (await following.watch("", -1))[1]
    assert remembering.deployed == []
    assert (await following.load("m", "me", "")).owner == "declared"
    await following.step()
    assert remembering.deployed == ["m@1"]


async def test_loading_a_changed_artifact_serves_the_next_revision(serving, remembering, artifacts):
    controller = await serving()
    (artifacts / "one.fake").write_text("3")
    status = await controller.load("m", "me", "retrained")
    assert (status.state, status.version, status.message) == ("pending", "2", "retrained")
    await controller.step()
    table = await _table(controller)
    assert (table.get_ready("m")[0].version, table.get_model("m").newest.state) == ("1", "pending")
    remembering.run("m@2")
    await controller.step()
    assert (await _table(controller)).get_ready("m")[0].version == "2"
    assert remembering.deleted == ["m@1"]


async def test_loading_what_serves_unchanged_changes_nothing(serving, remembering):
    controller = await serving()
    before = await controller.status("m")
    assert await controller.load("m", "me", "") == before
    await controller.step()
    assert remembering.deployed == ["m@1"]


async def test_loading_without_the_artifact_is_refused_and_leaves_all_as_it_was(serving, artifacts):
    controller = await serving()
    (artifacts / "one.fake").unlink()
    error = await controller.load("m", "me", "")
    assert isinstance(error, ModelLoadError)
    assert "does not exist" in str(error)
    assert (await _table(controller)).get_ready("m")[0].version == "1"


async def test_loading_another_generation_reads_no_artifact(serving, artifacts):
    controller = await serving()
    (artifacts / "one.fake").unlink()
    error = await controller.load("m", "me", "", 7)
    assert isinstance(error, Conflict)
    assert "expected generation 7, got 1" in str(error)


@pytest.mark.parametrize(("expected", "attempts"), [(None, 2), (1, 1)])
async def test_a_change_while_the_artifact_is_read_is_waited_out_unless_a_generation_is_named(
    serving, monkeypatch, expected, attempts
):
    controller = await serving()
    registrations, seen = controller._registrations, []
    read = registrations._read_again

    def read_while_another_changes_it(record):
        seen.append(record.generation)
        controller._catalog.set_label("m", "mine", 1)
        return read(record)

    monkeypatch.setattr(registrations, "_read_again", read_while_another_changes_it)
    answer = await controller.load("m", "me", "", expected)
    assert (len(seen), isinstance(answer, Conflict)) == (attempts, expected is not None)


CHANGES: dict[str, tuple[Any, ...]] = {
    "unregister": (),
    "load": (),
    "unload": (),
    "set_traffic": ({"weights": {"1": 100}},),
    "set_label": ("mine", "1"),
    "rollout": ({"to": 1},),
    "promote": ("1",),
    "rollback": ("1",),
    "abort": (),
    "pause": (),
    "resume": (),
}


@pytest.mark.parametrize("verb", CHANGES)
async def test_every_change_by_handle_may_be_for_one_generation(serving, verb):
    controller = await serving()

    class Handle:
        def __getattr__(self, name: str) -> Any:
            return SimpleNamespace(remote=getattr(controller, name))

    change = getattr(HandleTransport(Handle()), verb)
    with pytest.raises(Conflict, match="expected generation 7, got 1"):
        await change("m", *CHANGES[verb], actor="me", message="", expected_generation=7)


async def test_a_failed_model_is_tried_again_though_serve_has_not_forgotten_it(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.round()
    remembering.given_up.add("m@1")
    remembering.fail("m@1", "no memory")
    await controller.round()
    failed = await controller.status("m")
    assert (failed.state, failed.reason) == ("failed", "no memory")
    again = await controller.load("m", "me", "")
    assert (again.state, again.generation) == ("pending", failed.generation + 1)
    await controller.round()
    assert (remembering.deleted, remembering.deployed) == (["m@1"], ["m@1", "m@1"])
    await controller.round()
    assert (await controller.status("m")).state == "loading", "Serve has not taken it for the one that it has given up"
    remembering.run("m@1")
    await controller.round()
    assert (await controller.status("m")).state == "ready"


async def test_a_failed_model_can_be_unloaded_and_then_tried_again(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.step()
    remembering.fail("m@1", "no memory")
    await controller.step()
    await controller.unload("m", "me", "")
    await controller.step()
    await controller.step()
    assert (await controller.status("m")).state == "unloaded"
    await controller.load("m", "me", "")
    await controller.step()
    assert remembering.deployed == ["m@1", "m@1"]


async def test_the_table_has_a_new_revision_that_failed_with_its_reason(serving, remembering, artifacts):
    controller = await serving()
    await controller.register(_spec(artifacts, "two.fake"), "me", "")
    await controller.step()
    remembering.fail("m@2", "expected a number")
    await controller.step()
    model = (await _table(controller)).get_model("m")
    assert (model.active, model.ready_versions) == ("1", ("1",))
    assert (model.newest.version, model.newest.state, model.newest.reason) == ("2", "failed", "expected a number")


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_a_model_that_is_not_there_is_neither_loaded_nor_unloaded(serving, verb):
    controller = await serving()
    assert isinstance(await getattr(controller, verb)("none", "me", ""), ModelNotFound)
    await controller.unregister("m", "me", "")
    assert isinstance(await getattr(controller, verb)("m", "me", ""), Conflict)


# -- one bad thing stays one bad thing


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE models SET spec = json_set(spec, '$.surplus', 1) WHERE name = 'm'", "surplus"),
        ("UPDATE models SET wanted = 'asleep' WHERE name = 'm'", "asleep"),
        ("UPDATE models SET created_at = 'yesterday' WHERE name = 'm'", "yesterday"),
        ("UPDATE revisions SET content = '{}' WHERE model = 'm'", "framework"),
    ],
)
async def test_a_bad_catalog_row_fails_its_own_model_only(start, remembering, artifacts, statement, reason):
    controller = await start(good="one.fake")
    await controller.register(_spec(artifacts), "me", "")
    with contextlib.closing(sqlite3.connect(artifacts / "catalog.db")) as connection:
        connection.execute(statement)
        connection.commit()
    await controller.round()
    remembering.run("good@1")
    await controller.round()
    table, is_settled = await controller.watch("", -1)
    assert is_settled
    assert table.get_ready("good")[0].version == "1"
    with pytest.raises(ModelNotReady, match=f"its entry in the catalog cannot be used: .*{reason}"):
        table.get_ready("m")
    assert (await controller.status("m")).state == "failed"
    await controller.unregister("m", "me", "")
    await controller.round()
    assert (await _table(controller)).find_model("m") is None


async def test_a_name_that_is_registered_already_is_left_out_of_the_file(serving, start, remembering, caplog):
    await serving()
    following = await start(m="two.fake", other="one.fake")
    assert "the configuration file declares it too" in caplog.text
    await following.step()
    remembering.run("other@1")
    await following.step()
    status = await following.status("m")
    assert (status.owner, status.state, status.version) == ("registered", "ready", "1")
    assert "the configuration file declares it too" in status.reason
    assert (await following.status("other")).state == "ready"


async def test_ids_of_batches_are_reported_where_the_setting_says_so_in_place(serving, artifacts):
    controller = await serving()
    assert not reports_batch_id((await _table(controller)).get_ready("m")[1])
    await controller.register(_spec(artifacts, batching={"report_batch_id": True}), "me", "")
    await controller.step()
    revision, signature = (await _table(controller)).get_ready("m")
    assert (revision.version, reports_batch_id(signature)) == ("1", True)


# -- folders of versions


def _add_version(artifacts: Path, name: str, text: str = "1") -> None:
    folder = artifacts / "many" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.fake").write_text(text)


def _versions(table: RouteTable) -> dict[str, str]:
    model = table.get_model("m")
    return {number: revision.state for number, revision in model.revisions.items()} | {"active": model.active}


async def _serve_all(controller: Stepped, remembering: RememberingServe) -> None:
    await controller.step()
    for name in list(remembering.states):
        remembering.run(name)
    await controller.step()


async def test_a_folder_of_versions_serves_the_highest(start, remembering, artifacts):
    for name in ("2", "00000010", "9", "notes"):
        _add_version(artifacts, name)
    controller = await start()
    await controller.register(_spec(artifacts, "many"), "me", "")
    await _serve_all(controller, remembering)
    assert _versions(await _table(controller)) == {"10": "ready", "active": "10"}
    assert (await controller.status("m")).version == "10"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [({"latest": 2}, ["9", "10"]), ({"all": True}, ["2", "9", "10"]), ({"specific": [2, 10, 11]}, ["2", "10"])],
    ids=["latest", "all", "specific"],
)
async def test_a_policy_chooses_the_versions(start, remembering, artifacts, policy, expected):
    for name in ("2", "9", "10"):
        _add_version(artifacts, name)
    controller = await start()
    await controller.register(_spec(artifacts, "many", version_policy=policy), "me", "")
    await _serve_all(controller, remembering)
    table = await _table(controller)
    assert list(table.get_model("m").revisions) == expected
    assert [table.get_ready("m", number)[0].application for number in expected] == [f"m@{one}" for one in expected]
    assert table.get_ready("m")[0].version == "10"
    assert table.get_ready("m", "stable")[0].version == "10"


async def test_a_version_that_appears_is_loaded_before_the_old_one_goes(start, remembering, artifacts):
    _add_version(artifacts, "1")
    controller = await start()
    await controller.register(_spec(artifacts, "many"), "me", "")
    await _serve_all(controller, remembering)
    _add_version(artifacts, "2", "half")
    await controller.look()
    _add_version(artifacts, "2", "2")  # whoever copies it has not finished
    await controller.look()
    await controller.step()
    assert remembering.deployed == ["m@1"]
    await controller.look()
    await controller.step()
    assert _versions(await _table(controller)) == {"1": "ready", "2": "pending", "active": "1"}
    remembering.run("m@2")
    await controller.step()
    assert _versions(await _table(controller)) == {"2": "ready", "active": "2"}
    assert remembering.deleted == ["m@1"]
    await controller.look(3)
    assert not await controller.step()


async def test_a_store_that_is_away_is_told_once_and_holds_up_no_other_folder_of_versions(
    artifacts, remembering, monkeypatch, caplog
):
    _add_version(artifacts, "1")
    asked: list[str] = []
    error: type[StoreError] | None = None
    now = 100.0

    def find(uri: str) -> LocalArtifact:
        asked.append(uri)
        if error is not None and uri.startswith("s3:"):
            raise error("nobody answers")
        return LocalArtifact(artifacts / "many")

    monkeypatch.setattr("modelyard.serve.artifacts.find_artifact", find)
    monkeypatch.setattr("modelyard.serve.artifacts._REMOTE_LOOK_S", 0.0)
    specs = [{**_spec(artifacts), "name": name, "uri": f"s3://bucket/{name}"} for name in ("a", "b")]
    specs.append({**_spec(artifacts, "many"), "name": "here"})
    controller = Stepped({"catalog": {"url": f"sqlite:///{artifacts}/catalog.db"}, "models": specs})
    controller._registrations._clock = lambda: now
    here = str(artifacts / "many")
    error = StoreError
    await controller.look()
    asked.clear()
    await controller.look()
    assert asked == ["s3://bucket/a", "s3://bucket/b", here], "it answers: what it says of one is not said of all"
    caplog.clear()
    error = StoreAway
    now += 1000
    for _ in range(3):
        now += 20
        asked.clear()
        await controller.look()
    assert asked == [here]
    now += 60
    asked.clear()
    await controller.look()
    assert asked == ["s3://bucket/a", here]
    assert caplog.text.count("cannot be followed: nobody answers") == 1


async def test_a_version_that_goes_is_unloaded_but_not_the_last(start, remembering, artifacts):
    for name in ("1", "2"):
        _add_version(artifacts, name)
    controller = await start()
    await controller.register(_spec(artifacts, "many", version_policy={"all": True}), "me", "")
    await _serve_all(controller, remembering)
    (artifacts / "many" / "2").rename(artifacts / "away")
    await controller.look(2)
    await controller.step()
    assert _versions(await _table(controller)) == {"1": "ready", "active": "1"}
    (artifacts / "many" / "1").rename(artifacts / "far")
    await controller.look(2)
    await controller.step()
    assert _versions(await _table(controller)) == {"1": "ready", "active": "1"}


async def test_a_version_that_fails_is_tried_again_when_its_files_change(start, remembering, artifacts):
    _add_version(artifacts, "1")
    controller = await start()
    await controller.register(_spec(artifacts, "many"), "me", "")
    await _serve_all(controller, remembering)
    _add_version(artifacts, "2", "broken")
    await controller.look(2)
    await controller.step()
    remembering.fail("m@2", "expected a number")
    remembering.given_up.add("m@2")
    await controller.step()
    assert _versions(await _table(controller)) == {"1": "ready", "2": "failed", "active": "1"}
    await controller.look(4)
    await controller.step()
    assert remembering.deployed.count("m@2") == 1
    _add_version(artifacts, "2", "2")
    await controller.look(2)
    await controller.step()
    remembering.run("m@2")
    await controller.step()
    assert _versions(await _table(controller)) == {"2": "ready", "active": "2"}


async def test_what_a_replica_reports_late_is_no_word_on_the_repaired_version(start, remembering, artifacts):
    _add_version(artifacts, "1")
    controller = await start()
    await controller.register(_spec(artifacts, "many"), "me", "")
    await _serve_all(controller, remembering)
    _add_version(artifacts, "2", "broken")
    await controller.look(2)
    await controller.round()
    before = remembering.attempts["m@2"]
    remembering.fail("m@2", "expected a number")
    await controller.round()
    assert _versions(await _table(controller)) == {"1": "ready", "2": "failed", "active": "1"}
    _add_version(artifacts, "2", "2")
    await controller.look(2)
    await controller.round()
    failures.report_failure("m@2", before, "expected a number")  # its second attempt was on its way
    await controller.step()
    await controller.step()
    assert _versions(await _table(controller)) == {"1": "ready", "2": "loading", "active": "1"}
    remembering.run("m@2")
    await controller.step()
    assert _versions(await _table(controller)) == {"2": "ready", "active": "2"}


async def test_what_fails_between_the_repair_and_its_round_is_no_word_on_the_repaired_version(
    start, remembering, artifacts
):
    _add_version(artifacts, "1")
    controller = await start()
    await controller.register(_spec(artifacts, "many"), "me", "")
    await _serve_all(controller, remembering)
    for number, is_given_up in ((2, False), (3, True)):
        _add_version(artifacts, str(number), "broken")
        await controller.look(2)
        await controller.round()
        _add_version(artifacts, str(number), str(number))
        await controller.load("m", "me", "")  # nobody knows yet that it fails, so nothing is tried again
        remembering.fail(f"m@{number}", "expected a number")
        if is_given_up:
            remembering.given_up.add(f"m@{number}")
        await controller.round()
        await controller.round()
        found = _versions(await _table(controller))
        assert found == {str(number - 1): "ready", str(number): "loading", "active": str(number - 1)}
        remembering.given_up.add(f"m@{number}")
        await controller.round()
        assert _versions(await _table(controller))[str(number)] == "failed", "this is the repaired one"
        await controller.load("m", "me", "")
        await controller.round()
        remembering.run(f"m@{number}")
        for _ in range(3):
            await controller.step()
        assert _versions(await _table(controller)) == {str(number): "ready", "active": str(number)}


async def test_a_reason_that_was_learnt_too_early_goes_with_its_attempt(start, remembering, artifacts):
    _add_version(artifacts, "1", "broken")
    controller = await start()
    await controller.register(_spec(artifacts, "many"), "me", "")
    await controller.round()
    read = controller._catalog.list_models

    def read_and_repair() -> Any:
        """The record changes, and the old attempt fails, when the round has read the models."""
        models = read()
        _add_version(artifacts, "1", "1")
        controller._registrations.load("m", "me", "")
        remembering.fail("m@1", "expected a number")
        controller._catalog.list_models = read
        return models

    controller._catalog.list_models = read_and_repair
    await controller.round()
    assert controller._knowledge.failures == {"m@1": "expected a number"}
    await controller.round()
    await controller.round()
    assert (await controller.status("m")).state == "loading"


async def test_versions_whose_store_did_not_answer_are_taken_later(start, remembering, artifacts, monkeypatch):
    _add_version(artifacts, "1")
    controller = await start()
    await controller.register(_spec(artifacts, "many"), "me", "")
    await _serve_all(controller, remembering)
    _add_version(artifacts, "2")

    reads: list[Path] = []

    def read(path: Path) -> str:
        reads.append(path)
        raise ModelLoadError("it cannot be read: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("modelyard.store.artifact.digest", read)
        await controller.look(5)
        assert len(reads) == 1, "what may be large is not read again at every look"
        patch.setattr("modelyard.serve.artifacts._READ_AGAIN_S", 0.0)
        controller._registrations._artifacts.look_anew("m")
        await controller.look()
    assert len(reads) == 2
    await controller.look()
    await _serve_all(controller, remembering)
    assert _versions(await _table(controller)) == {"2": "ready", "active": "2"}


async def test_who_cannot_write_has_asked_for_no_attempt(start, remembering, artifacts, monkeypatch):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.round()
    remembering.fail("m@1", "no memory")
    await controller.round()

    def load(entry: object, **_: object) -> None:
        raise Unavailable("the catalog's database failed: database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(controller._catalog, "load_model", load)
        assert isinstance(await controller.load("m", "me", ""), Unavailable)
    await controller.round()
    status = await controller.status("m")
    assert (status.state, status.reason, remembering.deleted) == ("failed", "no memory", [])


async def test_who_comes_too_late_takes_back_no_others_attempt(start, remembering, artifacts):
    controller = await start()
    await controller.register(_spec(artifacts), "me", "")
    await controller.round()
    remembering.fail("m@1", "no memory")
    await controller.round()
    really = controller._catalog.load_model

    def load(entry: Any, **by: Any) -> Any:
        """Somebody else has the lock first, after both have asked."""
        controller._catalog.load_model = really
        controller._registrations.load("m", "other", "", by["expected_generation"])
        return really(entry, **by)

    controller._catalog.load_model = load
    generation = (await controller.status("m")).generation
    assert isinstance(await controller.load("m", "me", "", expected_generation=generation), Conflict)
    await controller.round()
    assert remembering.deployed == ["m@1", "m@1"]


async def test_a_dry_run_of_a_model_that_changes_meanwhile_looks_again(serving, remembering, artifacts, monkeypatch):
    controller = await serving()
    really = module.Traffic.set_label
    generations: list[int] = []

    def set_label(self: Any, *args: Any, **by: Any) -> Any:
        if not generations:
            controller._catalog.set_label("m", "other", 1)
        generations.append(by["expected_generation"])
        return really(self, *args, **by)

    monkeypatch.setattr(module.Traffic, "set_label", set_label)
    status = await controller.set_label("m", "mine", "1", actor="me", message="", dry_run=True)
    assert status.labels == {"mine": "1", "other": "1", "stable": "1"}
    assert generations == [status.generation - 1, status.generation]
    assert status.generation == (await controller.status("m")).generation


async def test_what_a_replica_reports_late_is_no_word_on_the_next_attempt(start, remembering, artifacts):
    controller = await start(m="one.fake")
    await controller.round()
    before = remembering.attempts["m@1"]
    remembering.fail("m@1", "no memory")
    await controller.round()
    assert (await controller.status("m")).state == "failed"
    await controller.load("m", "me", "")
    await controller.round()
    failures.report_failure("m@1", before, "no memory")
    await controller.round()
    assert (await controller.status("m")).state == "loading"
    remembering.fail("m@1", "no memory again")
    await controller.round()
    assert (await controller.status("m")).reason == "no memory again"


async def test_the_next_controller_knows_an_attempt_and_restarts_no_replica_for_it(start, remembering, artifacts):
    controller = await start(m="one.fake")
    await controller.round()
    remembering.fail("m@1", "no memory")
    await controller.round()
    await controller.load("m", "me", "")
    await controller.round()
    remembering.run("m@1")
    await controller.round()
    version = remembering.versions["m@1"]
    controller = await start(m="one.fake")
    await controller.round()
    assert (remembering.deployed.count("m@1"), remembering.versions["m@1"]) == (3, version)
    assert remembering.states["m@1"] == {"RUNNING": 1}
    remembering.states["m@1"] = {"STARTING": 1}
    remembering.fail("m@1", "its file is gone")
    await controller.round()
    assert (await controller.status("m")).reason == "its file is gone"
    controller = await start()
    for _ in range(3):
        await controller.step()
    assert failures.list_attempts() == {}


async def test_versions_that_the_catalog_did_not_take_are_taken_later(start, remembering, artifacts, monkeypatch):
    _add_version(artifacts, "1")
    controller = await start()
    await controller.register(_spec(artifacts, "many"), "me", "")
    await _serve_all(controller, remembering)

    def load(entry: object, **_: object) -> None:
        raise Unavailable("the catalog's database failed: database is locked")

    _add_version(artifacts, "2")
    with monkeypatch.context() as patch:
        patch.setattr(controller._catalog, "load_model", load)
        await controller.look(3)
    assert _versions(await _table(controller)) == {"1": "ready", "active": "1"}
    await controller.look()
    await _serve_all(controller, remembering)
    assert _versions(await _table(controller)) == {"2": "ready", "active": "2"}


async def test_labels_point_at_versions(start, remembering, artifacts):
    for name in ("1", "2"):
        _add_version(artifacts, name)
    controller = await start()
    policy = {"all": True, "labels": {"stable": 1, "canary": 2}}
    await controller.register(_spec(artifacts, "many", version_policy=policy), "me", "")
    await _serve_all(controller, remembering)
    table = await _table(controller)
    assert [table.get_ready("m", label)[0].version for label in ("stable", "canary")] == ["1", "2"]
    wrong = _spec(artifacts, "many", version_policy={"labels": {"old": 1}})
    problem = await controller.register(wrong, "me", "")
    assert "version_policy.labels.old: expected one of the versions served, 2, got 1" in str(problem)


async def test_a_policy_needs_versions(start, artifacts):
    (artifacts / "many").mkdir()
    controller = await start()
    problem = await controller.register(_spec(artifacts, "many", version_policy={"latest": 1}), "me", "")
    assert "expected folders of versions" in str(problem)


async def test_versions_are_the_same_after_a_restart(start, remembering, artifacts):
    for name in ("1", "2"):
        _add_version(artifacts, name)
    controller = await start()
    await controller.register(_spec(artifacts, "many", version_policy={"all": True}), "me", "")
    await _serve_all(controller, remembering)
    following = await start()
    await following.step()
    await following.look(3)
    await following.step()
    assert _versions(await _table(following)) == {"1": "ready", "2": "ready", "active": "2"}
    assert remembering.deleted == []


# -- lists of models that replace one another


def _listed(artifacts: Path, *names: str, **policy: object) -> list[dict[str, Any]]:
    folder = {"framework": "fake", "uri": str(artifacts / "many"), "version_policy": policy or {"latest": 1}}
    return [{"name": name, **folder} for name in names]


async def test_a_reload_serves_its_list_and_takes_down_what_left_it(start, remembering, artifacts):
    _add_version(artifacts, "1")
    controller = await start(file="one.fake")
    await controller.register({**_spec(artifacts), "name": "mine"}, "me", "")
    statuses = await controller.reload(_listed(artifacts, "a", "b"), "grpc", "why")
    assert [(status.name, status.owner, status.message) for status in statuses] == [
        ("a", "reloaded", "why"),
        ("b", "reloaded", "why"),
    ]
    await _serve_all(controller, remembering)
    statuses = await controller.reload(_listed(artifacts, "b", "c"), "grpc", "")
    assert [(status.name, status.state) for status in statuses] == [
        ("b", "ready"),
        ("c", "pending"),
        ("a", "removing"),
    ]
    await _serve_all(controller, remembering)
    await controller.step()
    assert remembering.deleted == ["a@1"]
    table = await _table(controller)
    assert [name for name in table.models if table.get_model(name).ready_versions] == ["b", "c", "file", "mine"]


async def test_a_reload_changes_the_versions_that_are_served(start, remembering, artifacts):
    for name in ("1", "2"):
        _add_version(artifacts, name)
    controller = await start()
    await controller.reload(_listed(artifacts, "m"), "grpc", "")
    await _serve_all(controller, remembering)
    assert _versions(await _table(controller)) == {"2": "ready", "active": "2"}
    await controller.reload(_listed(artifacts, "m", all=True, labels={"old": 1}), "grpc", "")
    await _serve_all(controller, remembering)
    table = await _table(controller)
    assert _versions(table) == {"1": "ready", "2": "ready", "active": "2"}
    assert table.get_ready("m", "old")[0].version == "1"
    assert remembering.deployed == ["m@2", "m@1"]


async def test_a_reload_that_is_refused_changes_nothing_and_tells_all_problems(start, remembering, artifacts):
    _add_version(artifacts, "1")
    controller = await start(file="one.fake")
    await controller.reload(_listed(artifacts, "a"), "grpc", "")
    nowhere = {"name": "n", "framework": "fake", "uri": str(artifacts / "nowhere"), "version_policy": {"latest": 1}}
    wrong = [nowhere, {"name": "?", "framework": "fake", "uri": "/x"}, *_listed(artifacts, "l", labels={"old": 9})]
    problem = await controller.reload(wrong, "grpc", "")
    assert isinstance(problem, InvalidConfig)
    first, second, third = problem.problems
    assert first.startswith("model_config_list.config[0].base_path: ")
    assert second.startswith("model_config_list.config[1]: name: ")
    assert third.startswith("model_config_list.config[2]: version_policy.labels.old: ")
    problem = await controller.reload(_listed(artifacts, "b", "file"), "grpc", "")
    assert "declared in the configuration file" in str(problem)
    assert [status.name for status in await controller.list_models()] == ["a", "file"]


async def test_a_reload_tries_again_what_has_failed_and_reads_it_anew(start, remembering, artifacts):
    _add_version(artifacts, "1", "broken")
    controller = await start()
    await controller.reload(_listed(artifacts, "m"), "grpc", "")
    await controller.step()
    remembering.fail("m@1", "expected a number")
    remembering.given_up.add("m@1")
    await controller.step()
    assert (await controller.status("m")).state == "failed"
    _add_version(artifacts, "1", "1")
    await controller.reload(_listed(artifacts, "m"), "grpc", "")
    await controller.step()
    await controller.step()
    await _serve_all(controller, remembering)
    assert _versions(await _table(controller)) == {"1": "ready", "active": "1"}


async def test_a_reload_does_not_read_again_what_is_served(start, remembering, artifacts, monkeypatch):
    _add_version(artifacts, "1")
    controller = await start()
    await controller.reload(_listed(artifacts, "m"), "grpc", "")
    await _serve_all(controller, remembering)
    monkeypatch.setattr("modelyard.store.artifact.digest", lambda path: pytest.fail(f"{path} is read again"))
    (status,) = await controller.reload(_listed(artifacts, "m"), "grpc", "")
    assert (status.state, status.generation) == ("ready", 1)


def _with_pip(artifacts: Path, offline: dict[str, str], requirement: str) -> dict[str, Any]:
    return _spec(artifacts, runtime={"pip": [requirement], "env_vars": offline})


async def _step_until(controller: Stepped, is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        await controller.step()
        while not is_done():
            await asyncio.sleep(0.05)
            await controller.step()


@pytest.mark.usefixtures("environments")
async def test_a_model_is_deployed_when_its_environment_is_there(start, remembering, artifacts, offline):
    controller = await start(other="one.fake")
    await controller.register(_with_pip(artifacts, offline, "tiny==1.0"), "me", "")
    await controller.step()
    assert remembering.deployed == ["other@1"]
    await controller.step()
    status = await controller.status("m")
    assert (status.state, status.reason.partition(", since")[0]) == ("pending", "its environment is being built")
    await _step_until(controller, lambda: "m@1" in remembering.deployed)


@pytest.mark.usefixtures("environments")
async def test_an_environment_that_cannot_be_made_fails_its_model(start, remembering, artifacts, offline):
    controller = await start()
    for _ in range(2):  # registering it again tries again
        await controller.register(_with_pip(artifacts, offline, "tiny==9"), "me", "")
        await _step_until(controller, lambda: "m@1" in controller._knowledge.failures)
        await controller.step()
        status = await controller.status("m")
        assert status.state == "failed"
        assert "No matching distribution found for tiny==9" in status.reason
        assert remembering.deployed == []


@pytest.mark.usefixtures("environments")
async def test_a_model_is_unloaded_while_its_environment_is_built(start, remembering, artifacts, offline):
    controller = await start()
    await controller.register(_with_pip(artifacts, offline, "tiny==1.0"), "me", "")
    await controller.step()
    await controller.unload("m", "me", "")
    await controller.step()
    assert (await controller.status("m")).state == "unloaded"
    assert (controller._builds._running, remembering.deployed) == ({}, [])


# -- models that share a process


SHARED = {"shared": True}


@pytest.fixture
def pool(artifacts: Path, remembering: RememberingServe) -> Callable[..., Stepped]:
    """Makes controllers over the same catalog."""
    return lambda: Stepped({"catalog": {"url": f"sqlite:///{artifacts}/catalog.db"}})


async def _settle(controller: Stepped) -> None:
    """Some rounds, between which pools answer."""
    for _ in range(4):
        await controller.step()
        await asyncio.sleep(0.001)


STANDBY = {"autoscaling": {"min_replicas": 0, "standby": True}}


async def test_a_model_that_sleeps_leads_to_its_pool_when_that_runs(pool, remembering, artifacts):
    controller = pool()
    await controller.register(_spec(artifacts, **STANDBY), "", "")
    await _settle(controller)
    assert remembering.deployed == ["m@1", "pool@fake"]
    remembering.run("m@1")
    await _settle(controller)
    assert (await _table(controller)).get_ready("m")[0].standby is None
    remembering.run("pool@fake")
    await _settle(controller)
    route = (await _table(controller)).get_ready("m")[0]
    assert (route.pool, route.resident, route.replicas) == ("", "", 1)
    assert route.standby is not None
    assert (route.standby.pool, route.standby.application, route.standby.standby) == ("pool@fake", "m@1", None)
    (resident,) = (await controller.residents({route.standby.resident: ""})).values()
    assert (resident.application, resident.spec.uri) == ("m@1", str(artifacts / "one.fake"))
    assert remembering.loaded == ["m@1"]
    remembering.states["m@1"] = {}
    await _settle(controller)
    route = (await _table(controller)).get_ready("m")[0]
    assert (route.replicas, route.standby.pool) == (0, "pool@fake")
    status = await controller.status("m")
    assert (status.state, status.reason) == (
        "ready",
        "scaled to zero: its pool answers the next request, which starts a replica",
    )


async def test_a_pool_that_cannot_load_a_model_does_not_stand_by_for_it(pool, remembering, artifacts, caplog):
    controller = pool()
    remembering.unloadable["m@1"] = ModelLoadError("with it its pool's process takes too much")
    await controller.register(_spec(artifacts, **STANDBY), "", "")
    await _settle(controller)
    for name in ("m@1", "pool@fake"):
        remembering.run(name)
    await _settle(controller)
    assert (await _table(controller)).get_ready("m")[0].standby is None
    assert remembering.loaded == ["m@1"], "it is not tried all the time"
    assert "m@1 has no standby: with it its pool's process takes too much" in caplog.text
    remembering.unloadable.clear()
    controller._pools._standbys["m@1"].again_at = 0.0  # a minute later
    await _settle(controller)
    assert (await _table(controller)).get_ready("m")[0].standby is not None
    del remembering.states["pool@fake"]  # it starts anew, and has none of its libraries
    await _settle(controller)
    assert (await _table(controller)).get_ready("m")[0].standby is None


async def test_a_standby_that_is_not_wanted_any_more_goes_with_its_pool(pool, remembering, artifacts):
    controller = pool()
    await controller.register(_spec(artifacts, **STANDBY), "", "")
    await _settle(controller)
    for name in ("m@1", "pool@fake"):
        remembering.run(name)
    await _settle(controller)
    key = (await _table(controller)).get_ready("m")[0].standby.resident
    await controller.register(_spec(artifacts, "two.fake", **STANDBY), "", "")
    await _settle(controller)
    remembering.run("m@2")
    await _settle(controller)
    assert await controller.residents({key: "as it was"}) == {key: None}
    assert (await _table(controller)).get_ready("m")[0].standby.application == "m@2"
    await controller.register(_spec(artifacts, "two.fake"), "", "")
    await _settle(controller)
    assert (await _table(controller)).get_ready("m")[0].standby is None
    assert remembering.deleted == ["m@1", "pool@fake"]


async def test_a_pool_that_cannot_be_started_fails_no_model_that_it_stands_by_for(pool, remembering, artifacts):
    controller = pool()
    await controller.register(_spec(artifacts, **STANDBY), "", "")
    await _settle(controller)
    remembering.run("m@1")
    remembering.given_up.add("pool@fake")
    await _settle(controller)
    status = await controller.status("m")
    assert (status.state, status.reason) == ("ready", "")


async def test_shared_models_have_one_application_between_them(pool, remembering, artifacts):
    controller = pool()
    for name in ("a", "b", "c"):
        await controller.register(_spec(artifacts, **SHARED) | {"name": name}, "", "")
    await _settle(controller)
    assert remembering.deployed == ["pool@fake"]
    remembering.run("pool@fake")
    await _settle(controller)
    table = await _table(controller)
    assert sorted(remembering.loaded) == ["a@1", "b@1", "c@1"]
    routes = [table.get_ready(name)[0] for name in "abc"]
    assert {route.pool for route in routes} == {"pool@fake"}
    assert len({route.resident for route in routes}) == 3
    assert remembering.deployed == ["pool@fake"]


async def test_a_pool_is_told_who_lives_in_it_and_what_has_changed(pool, remembering, artifacts):
    controller = pool()
    await controller.register(_spec(artifacts, **SHARED), "", "")
    await _settle(controller)
    remembering.run("pool@fake")
    await _settle(controller)
    key = (await _table(controller)).get_ready("m")[0].resident
    (one,) = (await controller.residents({key: ""})).values()
    assert one.spec.uri == str(artifacts / "one.fake")
    assert await controller.residents({key: one.fingerprint}) == {}
    await controller.register(_spec(artifacts, batching={"max_batch_size": 3}, **SHARED), "", "")
    await _settle(controller)
    assert (await controller.residents({key: one.fingerprint}))[key].batching.max_batch_size == 3
    assert remembering.loaded == ["m@1"]
    await controller.unregister("m", "", "")
    await _settle(controller)
    assert await controller.residents({key: one.fingerprint}) == {key: None}
    assert isinstance(await controller.status("m"), ModelNotFound)
    assert remembering.deleted == ["pool@fake"]


async def test_a_shared_model_that_cannot_be_loaded_fails_alone(pool, remembering, artifacts):
    controller = pool()
    remembering.unloadable["bad@1"] = ModelLoadError("its file is cut off")
    for name in ("bad", "good"):
        await controller.register(_spec(artifacts, **SHARED) | {"name": name}, "", "")
    await _settle(controller)
    remembering.run("pool@fake")
    await _settle(controller)
    assert (await controller.status("good")).state.value == "ready"
    status = await controller.status("bad")
    assert (status.state.value, status.reason) == ("failed", "its file is cut off")
    (key,) = [key for key in controller._pools._by_key if key.startswith("bad@1")]
    await controller.residents({key: ""}, {key: "its file is cut off"})
    await _settle(controller)
    assert remembering.loaded.count("bad@1") == 1
    remembering.unloadable.clear()
    await controller.register(_spec(artifacts, **SHARED) | {"name": "bad"}, "", "")  # once more
    await _settle(controller)
    assert (await controller.status("bad")).state.value == "ready"
    assert "pool@fake" not in remembering.deleted


async def test_a_shared_model_that_cannot_be_loaded_any_more_fails_until_it_can(pool, remembering, artifacts, caplog):
    controller = pool()
    for name in ("m", "other"):
        await controller.register(_spec(artifacts, **SHARED) | {"name": name}, "", "")
    await _settle(controller)
    remembering.run("pool@fake")
    await _settle(controller)
    key = (await _table(controller)).get_ready("m")[0].resident
    remembering.unloadable["m@1"] = ModelLoadError("its file has changed")
    await controller.residents({key: ""}, {key: "its file has changed", "gone@1:d": "it is no more"})
    await _settle(controller)
    status = await controller.status("m")
    assert (status.state.value, status.reason) == ("failed", "its file has changed")
    with pytest.raises(ModelNotReady, match="its file has changed"):
        (await _table(controller)).get_ready("m")
    assert (await controller.status("other")).state.value == "ready"
    await controller.residents({key: ""}, {key: "its file has changed"})
    await _settle(controller)
    assert remembering.loaded.count("m@1") == 2, "it is not tried all the time"
    assert caplog.text.count("its file has changed") == 1
    remembering.unloadable.clear()
    controller._pools._lost["m@1"] = 0.0  # some seconds later
    await _settle(controller)
    assert (await controller.status("m")).state.value == "ready"
    assert (await _table(controller)).get_ready("m")[0].resident == key
    assert remembering.deleted == []


async def test_a_pool_without_room_is_asked_again(pool, remembering, artifacts):
    controller = pool()
    remembering.unloadable["m@1"] = Overloaded("all are busy")
    await controller.register(_spec(artifacts, **SHARED), "", "")
    await _settle(controller)
    remembering.run("pool@fake")
    await _settle(controller)
    assert (await controller.status("m")).state.value == "loading"
    remembering.unloadable.clear()
    await _settle(controller)
    assert (await controller.status("m")).state.value == "ready"


async def test_shared_models_answer_at_once_under_the_next_controller(pool, remembering, artifacts):
    first = pool()
    await first.register(_spec(artifacts, **SHARED), "", "")
    await _settle(first)
    remembering.run("pool@fake")
    await _settle(first)
    second = pool()
    await second.round()
    known = (await _table(second)).get_ready("m")[0]
    assert known.resident == (await _table(first)).get_ready("m")[0].resident
    assert await second.residents({known.resident: ""})
    assert (remembering.loaded, remembering.deleted) == (["m@1"], [])


async def test_a_revision_goes_on_while_the_next_one_is_loaded_by_the_pool(pool, remembering, artifacts):
    controller = pool()
    await controller.register(_spec(artifacts, **SHARED), "", "")
    await _settle(controller)
    remembering.run("pool@fake")
    await _settle(controller)
    remembering.unloadable["m@2"] = ModelLoadError("it is no model")
    await controller.register(_spec(artifacts, "two.fake", **SHARED), "", "")
    await _settle(controller)
    assert (await _table(controller)).get_ready("m")[0].version == "1"
    del remembering.unloadable["m@2"]
    await controller.register(_spec(artifacts, "two.fake", **SHARED), "", "")
    await _settle(controller)
    assert (await _table(controller)).get_ready("m")[0].version == "2"


async def test_a_model_moves_into_a_pool_and_out_again(pool, remembering, artifacts):
    controller = pool()
    await controller.register(_spec(artifacts), "", "")
    await _settle(controller)
    remembering.run("m@1")
    await _settle(controller)
    await controller.register(_spec(artifacts, **SHARED), "", "")
    await _settle(controller)
    assert (await _table(controller)).get_ready("m")[0].application == "m@1"
    remembering.run("pool@fake")
    await _settle(controller)
    assert (await _table(controller)).get_ready("m")[0].pool == "pool@fake"
    assert remembering.deleted == ["m@1"]
    await controller.register(_spec(artifacts), "", "")
    await _settle(controller)
    remembering.run("m@3")
    await _settle(controller)
    assert (await _table(controller)).get_ready("m")[0].pool == ""
    assert remembering.deleted == ["m@1", "pool@fake"]


async def test_a_pool_that_cannot_be_started_fails_its_models(pool, remembering, artifacts):
    controller = pool()
    await controller.register(_spec(artifacts, **SHARED), "", "")
    await _settle(controller)
    remembering.given_up.add("pool@fake")
    await _settle(controller)
    assert (await controller.status("m")).state.value == "failed"
    await controller.register(_spec(artifacts, **SHARED), "", "")  # once more
    await _settle(controller)
    remembering.run("pool@fake")
    await _settle(controller)
    assert (await controller.status("m")).state.value == "ready"
    assert remembering.deployed == ["pool@fake", "pool@fake"]


async def test_a_model_whose_load_ends_the_process_fails_and_is_found_out_alone(pool, remembering, artifacts):
    controller = pool()
    remembering.deadly = "bad@1"
    for name in ("bad", "good", "other"):
        await controller.register(_spec(artifacts, **SHARED) | {"name": name}, "", "")
    await _settle(controller)
    remembering.run("pool@fake")
    for _ in range(4):
        await _settle(controller)
    states = {name: (await controller.status(name)).state.value for name in ("bad", "good", "other")}
    assert states == {"bad": "failed", "good": "ready", "other": "ready"}
    assert "died while loading" in (await controller.status("bad")).reason
    assert remembering.loaded.count("bad@1") == 3


async def test_a_pool_that_starts_slowly_fails_nobody(pool, remembering, artifacts):
    controller = pool()
    await controller.register(_spec(artifacts, limits={"load_timeout_s": 5}, **SHARED), "", "")
    await _settle(controller)
    controller.now += 100
    await _settle(controller)
    assert (await controller.status("m")).state.value == "loading"
    remembering.run("pool@fake")
    await _settle(controller)
    assert (await controller.status("m")).state.value == "ready"


async def test_a_version_of_the_same_number_with_other_content_is_described_anew(pool, remembering, artifacts):
    controller = pool()
    await controller.register(_spec(artifacts, **SHARED), "", "")
    await _settle(controller)
    remembering.run("pool@fake")
    await _settle(controller)
    model, (revision,) = controller._catalog.get_model("m"), controller._catalog.get_model("m").revisions
    changed = dataclasses.replace(revision, digest="sha256:another")
    controller._admit([RevisionDeployment.from_records(model, changed)])
    assert "m@1" not in controller._knowledge.described


async def test_a_pool_that_only_starts_anew_is_not_taken_down_for_a_model_that_is_tried_again(
    pool, remembering, artifacts
):
    controller = pool()
    remembering.unloadable["bad@1"] = ModelLoadError("its file is cut off")
    for name in ("bad", "good"):
        await controller.register(_spec(artifacts, **SHARED) | {"name": name}, "", "")
    await _settle(controller)
    remembering.run("pool@fake")
    await _settle(controller)
    remembering.states["pool@fake"] = {"STARTING": 1}
    await controller.register(_spec(artifacts, **SHARED) | {"name": "bad"}, "", "")
    await _settle(controller)
    assert remembering.deleted == []


async def test_a_status_says_how_many_replicas_were_decided_and_why(start, remembering, kept):
    controller = await start(m="one.fake")
    await controller.step()
    decision = Decision(3, "41 requests in flight, 16 for each", Load(replicas=2, in_flight=41), "2026-01-01T00:00:00")
    kept[b"scaling m@1"] = json.dumps(dataclasses.asdict(decision)).encode()
    assert (await controller.status("m")).scaling == decision
    kept[b"scaling m@1"] = b'{"of": "another version"}'
    assert (await controller.status("m")).scaling is None


async def test_a_policy_that_the_platform_does_not_have_is_refused(pool, artifacts):
    refused = await pool().register(_spec(artifacts, autoscaling={"policy": "nightly"}), "", "")
    assert isinstance(refused, InvalidConfig)
    expected = 'autoscaling.policy: expected none, for the platform has no autoscaling_policies, got "nightly"'
    assert refused.problems == (expected,)


async def test_a_model_that_no_node_could_hold_says_so_at_once(pool, remembering, artifacts, monkeypatch):
    node = {"Alive": True, "Resources": {"CPU": 2.0}, "Labels": {}}
    monkeypatch.setattr(module.ray, "nodes", lambda: [node])
    controller = pool()
    await controller.register(_spec(artifacts, resources={"num_cpus": 4}, limits={"load_timeout_s": 50}), "", "")
    await _settle(controller)
    status = await controller.status("m")
    expected = (
        "no node of the cluster is large enough for a replica: it needs CPU 4 on one node, the nodes have at most CPU 2"
    )
    assert (status.state.value, status.reason) == ("pending", expected)
    controller.now += 100
    await _settle(controller)
    assert (await controller.status("m")).state.value == "pending"  # a node may come
    node["Resources"]["CPU"] = 8.0
    await _settle(controller)
    assert (await controller.status("m")).state.value == "loading"


@pytest.mark.parametrize("error", [ModelLoadError("its artifact is gone"), FileNotFoundError("gone")], ids=repr)
async def test_a_model_whose_needs_cannot_be_told_holds_up_no_other(start, remembering, monkeypatch, error):
    def refuse(self: RevisionDeployment) -> Any:
        if self.application == "bad@1":
            raise error
        return needs(self)

    needs = RevisionDeployment.needs
    monkeypatch.setattr(RevisionDeployment, "needs", refuse)
    controller = await start(bad="one.fake", good="one.fake")
    await controller.step()
    remembering.run("good@1")
    await controller.step()
    assert (await controller.status("good")).state.value == "ready"
    assert (await controller.status("bad")).state.value == "loading"


async def test_a_status_does_not_wait_for_a_store_that_is_away(start, remembering, monkeypatch):
    controller = await start(m="one.fake")
    await controller.step()
    remembering.run("m@1")
    await controller.step()
    back = threading.Event()
    monkeypatch.setattr(module, "_DECISION_TIMEOUT_S", 0.05)
    monkeypatch.setattr(module, "find_decision", lambda _: back.wait(10))
    statuses = [await asyncio.wait_for(controller.status("m"), 5) for _ in range(10)]
    back.set()
    assert {status.state.value for status in statuses} == {"ready"}
