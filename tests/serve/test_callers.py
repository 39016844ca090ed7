# SPDX-License-Identifier: Apache-2.0
"""A revision without a replica: a pool stands in for it, over real sockets, until its own replica has started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.batching import Answer, Call
from modelyard.errors import ModelFailed, ModelNotReady, ModelyardError, Overloaded
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.serve import callers as module
from modelyard.serve import handle as handles
from modelyard.serve.callers import Callers
from modelyard.serve.lane import socket_path
from modelyard.serve.laneserver import LaneServer
from modelyard.signature import Signature, TensorSpec
from modelyard.statistics import Statistics

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
AWAKE = RevisionRoute("m", "1", "m@1", "fake", "ready", signature=SIGNATURE, replicas=1, max_batch_size=8)
AWAKE = replace(AWAKE, standby=replace(AWAKE, pool="pool@fake", resident="m@1:d"))
ASLEEP = replace(AWAKE, replicas=0, standby=replace(AWAKE.standby or AWAKE, replicas=0))


class Handle:
    """Serve's way to replicas: it starts one for what comes by, and says when."""

    asked: list[str]
    started: asyncio.Event

    def __init__(self, route: RevisionRoute) -> None:
        self._route = route

    async def wake(self) -> None:
        self.asked.append(f"wake {self._route.application}")
        await self.started.wait()

    async def call(self, call: Call) -> Answer:
        self.asked.append(f"call {self._route.pool or self._route.application}")
        await self.started.wait()
        return Answer(merged={"output-0": call.inputs["input-0"].sum(axis=1)})

    async def stream(self, call: Call) -> None:
        raise AssertionError("nothing streams here")

    async def counts(self, _: str, __: float) -> dict[str, Statistics]:
        return {
            self._route.pool or self._route.application: Statistics(execution_count=1),
            "old": Statistics(execution_count=5),
        }

    async def kept_counts(self, _: str) -> dict[str, Statistics]:
        return {"old": Statistics(execution_count=5)}


@pytest.fixture
async def handle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Handle]:
    Handle.asked, Handle.started = [], asyncio.Event()
    for used_by in (module, handles):
        monkeypatch.setattr(used_by, "RevisionHandle", Handle)
    monkeypatch.setattr(module, "session_id", str)
    monkeypatch.setattr(module, "lane_folder", lambda _: tmp_path)
    return Handle


@pytest.fixture
async def start(start_runner, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[LaneServer]]]:
    servers: list[LaneServer] = []

    async def start(application: str, answering) -> LaneServer:
        server = LaneServer(socket_path(tmp_path, application, "one"), answering)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop_accepting()
        await server.stop()


class Pooled:
    """What answers in a pool's replica: a runner, or an error."""

    def __init__(self, runner, error: ModelyardError | None = None) -> None:
        self._runner = runner
        self._error = error
        self.residents: list[str] = []

    def submit(self, call: Call) -> asyncio.Future[Answer]:
        self.residents.append(call.resident)
        if self._error is None:
            return self._runner.submit(call)
        refused: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        refused.set_exception(self._error)
        return refused


async def _follow(callers: Callers, route: RevisionRoute) -> None:
    await callers.update(RouteTable("e", 1, {"m": ModelRoute("m", "1", {"1": route})}))


async def test_while_it_starts_its_standby_answers_and_it_is_woken_once(handle, start, start_runner, fake, make_call):
    pool = Pooled(start_runner(fake()))
    await start("pool@fake", pool)
    callers = Callers()
    await _follow(callers, ASLEEP)
    for value in (1.0, 2.0, 3.0):
        outputs = await callers.call(ASLEEP, make_call(value), 10)
        assert outputs["output-0"].tolist() == [4 * value]
    assert handle.asked == ["wake m@1"]
    assert set(pool.residents) == {"m@1:d"}
    handle.started.set()
    await asyncio.sleep(0)
    own = start_runner(fake())
    await start("m@1", own)
    await _follow(callers, AWAKE)
    await callers.call(AWAKE, make_call(4.0), 10)
    assert own.statistics.execution_count == 1
    assert len(pool.residents) == 3


@pytest.mark.parametrize("error", [ModelNotReady("m", "it is larger than the pool"), Overloaded("no room")])
async def test_where_its_standby_cannot_answer_its_replica_does(handle, start, start_runner, fake, make_call, error):
    await start("pool@fake", Pooled(None, error))
    callers = Callers()
    await _follow(callers, ASLEEP)
    asked = asyncio.create_task(callers.call(ASLEEP, make_call(1.0), 10))
    await asyncio.sleep(0.01)
    assert handle.asked == ["wake m@1", "call m@1"]
    handle.started.set()
    assert (await asked)["output-0"].tolist() == [4.0]


async def test_its_replica_answers_what_its_standby_is_too_slow_for(handle, start, make_call, fake, start_runner):
    pool = Pooled(None, Overloaded("never said"))
    pool.submit = lambda call: asyncio.get_running_loop().create_future()
    await start("pool@fake", pool)
    callers = Callers()
    await _follow(callers, ASLEEP)
    asked = asyncio.create_task(callers.call(ASLEEP, make_call(1.0), 10))
    await asyncio.sleep(0.01)
    assert handle.asked == ["wake m@1"]
    handle.started.set()
    assert (await asked)["output-0"].tolist() == [4.0]
    assert handle.asked == ["wake m@1", "call m@1"]


async def test_where_the_pool_dies_of_it_its_replica_answers(handle, start, start_runner, make_call, gated, until):
    model = gated()
    server = await start("pool@fake", Pooled(start_runner(model)))
    callers = Callers()
    await _follow(callers, ASLEEP)
    asked = asyncio.create_task(callers.call(ASLEEP, make_call(1.0), 10))
    for times in (1, 2):
        await until(lambda times=times: model.begun == times or "call pool@fake" in handle.asked)
        for connection in list(server._connections):
            connection.abort()
        await callers.scan()
    handle.started.set()
    assert (await asked)["output-0"].tolist() == [4.0]
    model.let(2)


async def test_a_new_replica_is_one_though_the_table_counts_as_before(
    handle, start, start_runner, fake, make_call, until, tmp_path
):
    pool = Pooled(start_runner(fake()))
    await start("pool@fake", pool)
    old = await start("m@1", start_runner(fake()))
    callers = Callers()
    await _follow(callers, AWAKE)
    new = LaneServer(socket_path(tmp_path, "m@1", "two"), start_runner(fake()))
    await new.start()
    await callers.scan()
    old.stop_accepting()
    await old.drain()
    await until(lambda: len(callers._callers["m@1"]._lanes) == 1)
    await _follow(callers, AWAKE)
    await callers.call(AWAKE, make_call(1.0), 10)
    assert (handle.asked, pool.residents) == ([], [])
    new.stop_accepting()
    await new.stop()


async def test_what_the_model_itself_answers_is_the_answer(handle, start, make_call):
    await start("pool@fake", Pooled(None, ModelFailed("m", "it cannot divide")))
    callers = Callers()
    await _follow(callers, ASLEEP)
    with pytest.raises(ModelFailed, match="it cannot divide"):
        await callers.call(ASLEEP, make_call(1.0), 10)


async def test_its_standby_answers_before_the_table_says_that_it_sleeps(
    handle, start, start_runner, fake, make_call, until
):
    pool = Pooled(start_runner(fake()))
    await start("pool@fake", pool)
    own = await start("m@1", start_runner(fake()))
    callers = Callers()
    await _follow(callers, AWAKE)
    await callers.call(AWAKE, make_call(1.0), 10)
    assert (handle.asked, pool.residents) == ([], [])
    own.stop_accepting()
    await own.drain()
    await until(lambda: not callers._callers["m@1"].has_replica)
    outputs = await callers.call(AWAKE, make_call(2.0), 10)
    assert outputs["output-0"].tolist() == [8.0]
    assert (handle.asked, pool.residents) == (["wake m@1"], ["m@1:d"])


async def test_without_a_standby_requests_wait_for_its_replica(handle, make_call):
    callers = Callers()
    route = replace(ASLEEP, standby=None)
    await _follow(callers, route)
    handle.started.set()
    assert (await callers.call(route, make_call(1.0), 10))["output-0"].tolist() == [4.0]
    assert handle.asked == ["call m@1"]


@pytest.mark.parametrize(("route", "expected"), [(ASLEEP, 6), (AWAKE, 7), (replace(AWAKE, standby=None), 6)])
async def test_what_was_counted_on_standby_counts_too(handle, route, expected):
    assert (await Callers().statistics(route)).execution_count == expected
