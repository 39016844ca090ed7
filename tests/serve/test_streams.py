# SPDX-License-Identifier: Apache-2.0
"""Decoupled models: from their generator through the runner, the lane and the caller to whoever reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modelyard.batching import Call
from modelyard.errors import DeadlineExceeded, ModelFailed, ModelyardError, Overloaded
from modelyard.routing import RevisionRoute
from modelyard.serve.caller import RevisionCaller
from modelyard.serve.lane import STREAM_WINDOW
from modelyard.serve.laneserver import LaneServer
from modelyard.serve.runner import ModelRunner
from modelyard.tensor import Tensors
from modelyard.testing import FakeModel, FakeOptions

ROUTE = RevisionRoute("m", "1", "m@1", "fake", "ready", replicas=1)


async def _read(answers: AsyncGenerator[Tensors]) -> list[float]:
    async with contextlib.aclosing(answers):
        return [float(outputs["output-0"][0]) async for outputs in answers]


async def _read_to_error(answers: AsyncGenerator[Tensors]) -> tuple[list[float], ModelyardError]:
    found: list[float] = []
    async with contextlib.aclosing(answers):
        while True:
            try:
                found.append(float((await anext(answers))["output-0"][0]))
            except ModelyardError as error:
                return found, error


def _streaming(**options: object) -> FakeModel:
    return FakeModel(0.0, FakeOptions.model_validate({"answers": 3, **options}))


# -- the runner


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_answers_come_in_the_models_order(start_runner, make_call, asynchronous: bool) -> None:
    runner = start_runner(_streaming(asynchronous=asynchronous))
    assert await _read(runner.stream(make_call(1.0))) == [4.0, 5.0, 6.0]


async def test_no_answer_at_all_is_a_stream_too(start_runner, make_call) -> None:
    assert await _read(start_runner(_streaming(answers=0)).stream(make_call(1.0))) == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_error_ends_the_stream_after_what_came_before(start_runner, make_call, asynchronous: bool) -> None:
    runner = start_runner(_streaming(fail_after=2, asynchronous=asynchronous))
    found, error = await _read_to_error(runner.stream(make_call(1.0)))
    assert found == [4.0, 5.0]
    assert isinstance(error, ModelFailed)
    assert "cannot count beyond 2" in str(error)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_closing_the_stream_closes_the_models_generator(
    start_runner, make_call, until, asynchronous: bool
) -> None:
    model = _streaming(answers=1000, asynchronous=asynchronous)
    answers = start_runner(model).stream(make_call(1.0))
    await anext(answers)
    await answers.aclose()
    await until(lambda: model.ended == 1)
    assert model.given < 5


async def test_a_plain_generator_runs_in_the_thread_of_predict(start_runner, make_call) -> None:
    class Threads(FakeModel):
        def stream(self, inputs, outputs, parameters):
            import threading

            for _ in range(2):
                seen.append(threading.current_thread().name)
                yield {}

    seen: list[str] = []
    model = Threads(0.0, FakeOptions(answers=1))
    answers = start_runner(model).stream(make_call(1.0))
    assert [outputs async for outputs in answers] == [{}, {}]
    assert {name.partition("_")[0] for name in seen} == {"predict"}


async def test_draining_waits_for_open_streams(start_runner, make_call, until) -> None:
    runner = start_runner(_streaming())
    answers = runner.stream(make_call(1.0))
    first = await anext(answers)
    draining = asyncio.create_task(runner.drain())
    await asyncio.sleep(0.01)
    assert not draining.done()
    assert [float(first["output-0"][0]), *await _read(answers)] == [4.0, 5.0, 6.0]
    await asyncio.wait_for(draining, 5)


async def test_draining_leaves_the_loop_to_a_generator_that_still_needs_it(start_runner, make_call) -> None:
    class NeedsTheLoop(FakeModel):
        """As one that reads another model's stream and has to leave that as well."""

        def stream(self, inputs, outputs, parameters):
            try:
                yield {}
                yield {}
            finally:
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(timeout=5)
                self.ended += 1

        def close(self):
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(timeout=5)
            super().close()

    loop = asyncio.get_running_loop()
    model = NeedsTheLoop(0.0, FakeOptions(answers=1))
    runner = start_runner(model)
    answers = runner.stream(make_call(1.0))
    await anext(answers)
    await answers.aclose()
    await runner.drain()
    assert (model.ended, model.is_closed) == (1, True)


async def test_more_streams_than_may_wait_are_refused(start_runner, make_call) -> None:
    runner = start_runner(_streaming(), max_queued=1)
    async with contextlib.aclosing(runner.stream(make_call(1.0))) as answers:
        await anext(answers)
        with pytest.raises(Overloaded):
            await anext(runner.stream(make_call(1.0)))


async def test_statistics_count_streams_and_their_answers(start_runner, make_call) -> None:
    runner = start_runner(_streaming(fail_after=2))
    await _read_to_error(runner.stream(make_call(1.0)))
    runner._model._options = FakeOptions(answers=3)  # as if it had recovered
    await _read(runner.stream(make_call(1.0)))
    counts = runner.statistics
    assert (counts.success.count, counts.fail.count, counts.execution_count) == (1, 1, 2)
    assert [counts.responses[place].success.count for place in (0, 1, 2)] == [2, 2, 1]
    assert counts.responses[2].fail.count == 1


# -- over a lane


@pytest.fixture
async def connect(tmp_path: Path, start_runner) -> AsyncIterator[Callable[..., object]]:
    """A caller with a lane to each of these models' replicas."""
    servers: list[LaneServer] = []
    callers: list[RevisionCaller] = []

    async def make(
        *models: FakeModel, stream_by_handle=None, elsewhere: tuple[str, ...] = ()
    ) -> tuple[RevisionCaller, list[LaneServer]]:
        names = (*(f"{number}" for number in range(len(models))), *elsewhere)
        route = replace(ROUTE, replicas=len(names), replica_names=names)
        callers.append(RevisionCaller(route, _no_handle, stream_by_handle or _no_stream))
        for model in models:
            runner: ModelRunner = start_runner(model)
            servers.append(LaneServer(tmp_path / f"{len(servers)}.sock", runner))
            await servers[-1].start()
        own = servers[len(servers) - len(models) :]
        await callers[-1].connect([server._path for server in own])
        return callers[-1], own

    yield make
    for caller in callers:
        caller.retire()
    for server in servers:
        server.stop_accepting()
        await server.stop()
    await asyncio.sleep(0.01)


async def _no_handle(call: Call):
    raise AssertionError("these are streams")


async def _no_stream(call: Call, replica: str) -> AsyncGenerator[Tensors | ModelyardError]:
    raise AssertionError("this test's streams go over lanes")
    yield


async def test_a_stream_over_a_lane(connect, make_call) -> None:
    caller, _ = await connect(_streaming())
    assert await _read(caller.stream(make_call(1.0), 10)) == [4.0, 5.0, 6.0]
    assert caller.ongoing == 0


async def test_streams_share_a_lane_without_mixing(connect, make_call) -> None:
    caller, _ = await connect(_streaming(answers=50))
    found = await asyncio.gather(*(_read(caller.stream(make_call(float(i)), 10)) for i in range(8)))
    assert found == [[4.0 * i + step for step in range(50)] for i in range(8)]


async def test_streams_of_one_affinity_share_a_replica_unless_it_is_much_busier(connect, make_call) -> None:
    caller, servers = await connect(*(_streaming(answers=100_000, latency_s=0.001) for _ in range(2)))
    begun: list[AsyncGenerator[Tensors]] = []

    async def begin(affinity: int, count: int) -> list[int]:
        """Streams that each replica has now."""
        for _ in range(count):
            begun.append(caller.stream(replace(make_call(1.0), affinity=affinity), 10))
            await anext(begun[-1])
        return sorted(server._runner.ongoing for server in servers)

    assert await begin(7, 4) == [0, 4]
    assert await begin(7, 4) == [1, 7]
    for stream in begun:
        await stream.aclose()


async def test_affinities_spread_over_the_replicas(connect, make_call) -> None:
    caller, servers = await connect(_streaming(), _streaming())
    for affinity in range(1, 41):
        await _read(caller.stream(replace(make_call(1.0), affinity=affinity), 10))
    counts = [server._runner.statistics.success.count for server in servers]
    assert sum(counts) == 40
    assert min(counts) >= 8


async def test_an_affinity_has_one_replica_for_all_callers_also_on_another_node(connect, make_call) -> None:
    asked: dict[float, str] = {}

    async def by_handle(call: Call, replica: str) -> AsyncGenerator[Tensors | ModelyardError]:
        asked[call.affinity] = replica
        yield {"output-0": call.inputs["input-0"].sum(axis=1)}

    here, (server,) = await connect(_streaming(answers=1), elsewhere=("1", "2"), stream_by_handle=by_handle)
    for affinity in range(1, 61):
        await _read(here.stream(replace(make_call(1.0), affinity=affinity), 10))
    assert set(asked.values()) == {"1", "2"}
    assert 8 <= len(asked) == 60 - server._runner.statistics.success.count <= 52
    by_here = dict(asked)
    there, _ = await connect(elsewhere=("0", "1", "2"), stream_by_handle=by_handle)
    for affinity in range(1, 61):
        await _read(there.stream(replace(make_call(1.0), affinity=affinity), 10))
    assert asked == dict.fromkeys(range(1, 61), "0") | by_here


async def test_an_affinity_leaves_its_replica_elsewhere_when_that_is_much_busier(connect, make_call, until) -> None:
    begun: list[str] = []
    end = asyncio.Event()

    async def by_handle(call: Call, replica: str) -> AsyncGenerator[Tensors | ModelyardError]:
        begun.append(replica)
        await end.wait()
        yield {"output-0": call.inputs["input-0"].sum(axis=1)}

    caller, _ = await connect(elsewhere=("a", "b"), stream_by_handle=by_handle)
    streams = [asyncio.create_task(_read(caller.stream(replace(make_call(1.0), affinity=7), 10))) for _ in range(8)]
    await until(lambda: len(begun) == 8)
    assert [len(set(begun[:5])), begun[5:]] == [1, [""] * 3]
    end.set()
    assert await asyncio.gather(*streams) == [[4.0]] * 8
    assert not caller._handle_streams


async def test_an_affinity_leaves_a_replica_that_is_lost_before_the_route_says_so(connect, make_call, until) -> None:
    asked: list[str] = []

    async def by_handle(call: Call, replica: str) -> AsyncGenerator[Tensors | ModelyardError]:
        asked.append(replica)
        yield {"output-0": call.inputs["input-0"].sum(axis=1)}

    caller, (lost, leaving) = await connect(_streaming(), _streaming(), elsewhere=("a",), stream_by_handle=by_handle)
    await until(lambda: lost._connections and leaving._connections)
    _cut(lost)
    leaving.stop_accepting()
    await until(lambda: all(lane.is_leaving for lane in caller._lanes.values()))
    for affinity in range(1, 21):
        await _read(caller.stream(replace(make_call(1.0), affinity=affinity), 10))
    assert set(asked) == {""}, "of one that is left nothing is to choose"


async def test_a_stream_whose_replica_elsewhere_has_gone_begins_again_at_any_other(connect, make_call) -> None:
    asked: list[str] = []

    async def by_handle(call: Call, replica: str) -> AsyncGenerator[Tensors | ModelyardError]:
        asked.append(replica)
        if replica:
            raise RuntimeError("it has gone")
        yield {"output-0": call.inputs["input-0"].sum(axis=1)}

    caller, _ = await connect(elsewhere=("a", "b"), stream_by_handle=by_handle)
    assert await _read(caller.stream(replace(make_call(1.0), affinity=7), 10)) == [4.0]
    assert [bool(name) for name in asked] == [True, False]


async def test_a_slow_reader_holds_the_model_back(connect, make_call, until) -> None:
    model = _streaming(answers=10 * STREAM_WINDOW)
    caller, _ = await connect(model)
    async with contextlib.aclosing(caller.stream(make_call(1.0), 10)) as answers:
        await anext(answers)
        await until(lambda: model.given >= STREAM_WINDOW)
        await asyncio.sleep(0.05)
        assert model.given <= STREAM_WINDOW + 2
        assert len([outputs async for outputs in answers]) == 10 * STREAM_WINDOW - 1


async def test_a_reader_that_goes_away_ends_the_models_work(connect, make_call, until) -> None:
    model = _streaming(answers=100_000, latency_s=0.001)
    caller, _ = await connect(model)
    answers = caller.stream(make_call(1.0), 10)
    await anext(answers)
    await answers.aclose()
    await until(lambda: model.ended == 1)
    assert caller.ongoing == 0


async def test_an_error_of_the_model_reaches_the_reader(connect, make_call) -> None:
    caller, _ = await connect(_streaming(fail_after=1))
    found, error = await _read_to_error(caller.stream(make_call(1.0), 10))
    assert (found, type(error)) == ([4.0], ModelFailed)


async def test_a_deadline_ends_the_stream(connect, make_call, until) -> None:
    model = _streaming(answers=100_000, latency_s=0.001)
    caller, _ = await connect(model)
    found, error = await _read_to_error(caller.stream(make_call(1.0), 1.0))
    assert found
    assert isinstance(error, DeadlineExceeded)
    await until(lambda: model.ended == 1)


async def test_a_deadline_ends_the_models_work_also_where_nobody_reads(connect, make_call, until) -> None:
    model = _streaming(answers=100_000)
    caller, (server,) = await connect(model)
    async with contextlib.aclosing(caller.stream(make_call(1.0), 0.1)) as answers:
        await anext(answers)
        await until(lambda: model.ended == 1)
        assert server._runner.ongoing == 0
        assert isinstance((await _read_to_error(answers))[1], DeadlineExceeded)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_model_that_raises_cancelled_error_leaves_nobody_waiting(
    connect, make_call, asynchronous: bool
) -> None:
    class Cancels(FakeModel):
        def stream(self, inputs, outputs, parameters):
            return _cancels_later() if asynchronous else _cancels()

    caller, (server,) = await connect(Cancels(0.0, FakeOptions(answers=1)))
    found, error = await _read_to_error(caller.stream(make_call(1.0), 10))
    assert (found, type(error)) == ([1.0], ModelFailed)
    assert server._runner.statistics.fail.count == 1


def _cancels():
    yield {"output-0": np.ones(1)}
    raise asyncio.CancelledError


async def _cancels_later():
    yield {"output-0": np.ones(1)}
    task = asyncio.ensure_future(asyncio.sleep(10))
    task.cancel()
    await task


async def test_a_replica_that_dies_mid_stream_ends_it_with_an_error(connect, make_call) -> None:
    caller, (server,) = await connect(_streaming(answers=1000, latency_s=0.002))
    answers = caller.stream(make_call(1.0), 10)
    await anext(answers)
    _cut(server)
    _, error = await _read_to_error(answers)
    assert isinstance(error, ModelFailed)
    assert "died" in str(error)


async def test_a_stream_that_has_given_nothing_begins_again_elsewhere(connect, make_call, until) -> None:
    slow, other = _streaming(answers=1, latency_s=0.2), _streaming(answers=1)
    caller, servers = await connect(slow, other)
    reading = asyncio.create_task(_read(caller.stream(make_call(1.0), 10)))
    await until(lambda: slow.calls or other.calls)
    _cut(servers[0] if slow.calls else servers[1])
    assert await reading == [4.0]
    assert (len(slow.calls), len(other.calls)) == (1, 1)


async def test_a_leaving_replica_finishes_its_streams(connect, make_call) -> None:
    caller, (server,) = await connect(_streaming(answers=20, latency_s=0.005))
    answers = caller.stream(make_call(1.0), 10)
    await anext(answers)
    server.stop_accepting()
    draining = asyncio.create_task(server.drain())
    assert len(await _read(answers)) == 19
    await asyncio.wait_for(draining, 5)


async def test_without_a_lane_the_handle_is_the_way(connect, make_call) -> None:
    async def by_handle(call: Call, replica: str) -> AsyncGenerator[Tensors | ModelyardError]:
        yield {"output-0": call.inputs["input-0"].sum(axis=1)}
        yield ModelFailed("m", "it broke")

    caller, _ = await connect(stream_by_handle=by_handle)
    found, error = await _read_to_error(caller.stream(make_call(1.0), 10))
    assert (found, type(error)) == ([4.0], ModelFailed)


def _cut(server: LaneServer) -> None:
    """As if its process had died."""
    for protocol in list(server._connections):
        protocol.abort()
