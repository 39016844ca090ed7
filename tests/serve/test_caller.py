# SPDX-License-Identifier: Apache-2.0
"""The ingress's end and the replica's end of a lane together, over real sockets: coalescing, crashes, draining."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from modelyard.batching import Answer, Call
from modelyard.errors import DeadlineExceeded, ModelFailed, ModelNotReady, ModelyardError, Overloaded
from modelyard.routing import RevisionRoute
from modelyard.serve.caller import RevisionCaller
from modelyard.serve.lane import Kind, LaneProtocol
from modelyard.serve.laneserver import LaneServer
from modelyard.serve.runner import ModelRunner
from modelyard.tensor import Tensors
from modelyard.testing import FakeModel

ROUTE = RevisionRoute("m", "1", "m@1", "fake", "ready", replicas=1, max_batch_size=8)


@dataclass
class Replica:
    """A replica without Ray: a socket in front of a runner."""

    path: Path
    model: FakeModel
    runner: ModelRunner
    server: LaneServer

    async def drain(self) -> None:
        """As ``ModelReplica`` does when Serve stops it."""
        self.server.stop_accepting()
        await self.server.drain()
        await self.runner.drain()
        await self.server.stop()


@pytest.fixture
async def start_replica(tmp_path: Path, start_runner) -> AsyncIterator[Callable[..., Awaitable[Replica]]]:
    replicas: list[Replica] = []

    async def start(model: FakeModel, **limits: int) -> Replica:
        runner = start_runner(model, **limits)
        path = tmp_path / f"{len(replicas)}.sock"
        replica = Replica(path, model, runner, LaneServer(path, runner))
        await replica.server.start()
        replicas.append(replica)
        return replica

    yield start
    for replica in replicas:
        replica.server.stop_accepting()
        await replica.server.stop()
    await asyncio.sleep(0.001)


@pytest.fixture
async def make_caller() -> AsyncIterator[Callable[..., RevisionCaller]]:
    callers: list[RevisionCaller] = []

    def make(by_handle=None, stream_by_handle=None, **changes: object) -> RevisionCaller:
        caller = RevisionCaller(replace(ROUTE, **changes), by_handle or _no_handle, stream_by_handle or _no_stream)
        callers.append(caller)
        return caller

    yield make
    for caller in callers:
        caller.retire()
    await asyncio.sleep(0.001)


async def _no_handle(call: Call) -> Answer:
    raise AssertionError("this test's requests go over lanes")


async def _no_stream(call: Call, replica: str) -> AsyncGenerator[Tensors | ModelyardError]:
    raise AssertionError("this test's streams go over lanes")
    yield


async def _sums(call: Call) -> Answer:
    """What a replica would answer by handle."""
    return Answer(merged={"output-0": call.inputs["input-0"].sum(axis=1)})


def _ask(caller: RevisionCaller, call: Call, timeout_s: float = 10.0) -> asyncio.Task[list[float]]:
    async def ask() -> list[float]:
        return (await caller.call(call, timeout_s))["output-0"].tolist()

    return asyncio.create_task(ask())


async def _start_crashing(path: Path, crashes: list[int]) -> asyncio.AbstractServer:
    """A replica that dies of its first call, again and again; counts them."""

    def die(protocol: LaneProtocol, kind: Kind, ident: int, payload: object) -> None:
        if kind is Kind.CALL:
            crashes.append(len(payload[0].rows))
            protocol.abort()

    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(lambda: LaneProtocol(die, lambda _: None), str(path))


# -- the usual way


async def test_a_request_is_answered(start_replica, make_caller, fake, make_call):
    replica, caller = await start_replica(fake()), make_caller()
    await caller.connect([replica.path])
    assert await _ask(caller, make_call(1, 2)) == [4, 8]
    assert caller.ongoing == 0


async def test_requests_of_one_turn_travel_together(start_replica, make_caller, fake, make_call):
    replica, caller = await start_replica(fake()), make_caller()
    await caller.connect([replica.path])
    answers = await asyncio.gather(*[_ask(caller, make_call(value)) for value in range(5)])
    assert answers == [[0], [4], [8], [12], [16]]
    assert [call.rows for call in replica.model.calls] == [5]


async def test_groups_and_the_row_limit_end_a_call(start_replica, make_caller, fake, make_call):
    replica, caller = await start_replica(fake(), max_batch_size=4), make_caller(max_batch_size=4)
    await caller.connect([replica.path])
    calls = [make_call(1, 1, 1), make_call(1, 1), make_call(*range(9)), make_call(1, outputs=("output-0", "rows"))]
    await asyncio.gather(*[_ask(caller, call) for call in calls])
    assert sorted(call.rows for call in replica.model.calls) == [1, 2, 3, 9]


async def test_a_request_that_breaks_a_call_fails_alone(start_replica, make_caller, fake, make_call):
    replica, caller = await start_replica(fake(fail_on_value=13.0)), make_caller()
    await caller.connect([replica.path])
    tasks = [_ask(caller, make_call(value)) for value in (1, 13, 2)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[0::2] == [[4], [8]]
    assert isinstance(answers[1], ModelFailed)


async def test_calls_are_spread_over_the_replicas(start_replica, make_caller, gated, make_call, until):
    replicas = [await start_replica(gated()) for _ in range(2)]
    caller = make_caller(max_batch_size=1, replicas=2)
    await caller.connect([replica.path for replica in replicas])
    tasks = [_ask(caller, make_call(value)) for value in range(2)]
    await until(lambda: all(replica.model.begun for replica in replicas))
    for replica in replicas:
        replica.model.let(9)
    assert await asyncio.gather(*tasks) == [[0], [4]]


# -- limits, deadlines, cancellation


async def test_too_many_at_once_are_refused_and_the_others_answered(
    start_replica, make_caller, gated, make_call, until
):
    replica, caller = await start_replica(gated()), make_caller(max_inflight_requests=2)
    await caller.connect([replica.path])
    tasks = [_ask(caller, make_call(1)), _ask(caller, make_call(2))]
    await until(lambda: replica.model.begun)
    with pytest.raises(Overloaded):
        await caller.call(make_call(3), 1)
    replica.model.let(9)
    assert await asyncio.gather(*tasks) == [[4], [8]]
    assert await _ask(caller, make_call(3)) == [12]


async def test_a_full_replica_refuses_with_its_own_error(start_replica, make_caller, gated, make_call, until):
    replica = await start_replica(gated(), max_batch_size=1, max_queued=1)
    callers = [make_caller(max_batch_size=1) for _ in range(3)]
    for caller in callers:
        await caller.connect([replica.path])
    first = _ask(callers[0], make_call(1))
    await until(lambda: replica.model.begun)
    second = _ask(callers[1], make_call(1))
    await until(lambda: replica.runner.ongoing == 2)
    with pytest.raises(Overloaded):
        await _ask(callers[2], make_call(1))
    replica.model.let(9)
    await asyncio.gather(first, second)


async def test_a_deadline_ends_the_wait_and_the_work(start_replica, make_caller, gated, make_call, until):
    replica, caller = await start_replica(gated(), max_batch_size=1), make_caller(max_batch_size=1)
    await caller.connect([replica.path])
    running = _ask(caller, make_call(1))
    await until(lambda: replica.model.begun)
    queued_there = _ask(caller, make_call(2), 0.02)
    queued_here = _ask(caller, make_call(3), 0.02)
    for task in (queued_there, queued_here):
        with pytest.raises(DeadlineExceeded):
            await task
    await until(lambda: replica.runner.ongoing == 1)
    replica.model.let(9)
    assert await running == [4]
    assert len(replica.model.calls) == 1


async def test_a_cancelled_request_is_never_predicted(start_replica, make_caller, gated, make_call, until):
    replica, caller = await start_replica(gated(), max_batch_size=1), make_caller(max_batch_size=1)
    await caller.connect([replica.path])
    running = _ask(caller, make_call(1))
    await until(lambda: replica.model.begun)
    cancelled = [_ask(caller, make_call(2)), _ask(caller, make_call(3))]
    await until(lambda: replica.runner.ongoing == 2)
    for task in cancelled:
        task.cancel()
    await until(lambda: replica.runner.ongoing == 1 and caller.ongoing == 1)
    replica.model.let(9)
    assert await running == [4]
    assert await _ask(caller, make_call(4)) == [16]
    assert len(replica.model.calls) == 2


async def test_cancelling_one_request_of_a_call_leaves_the_others(start_replica, make_caller, gated, make_call, until):
    replica, caller = await start_replica(gated()), make_caller()
    await caller.connect([replica.path])
    tasks = [_ask(caller, make_call(value)) for value in range(3)]
    await until(lambda: replica.model.begun)
    tasks[1].cancel()
    await asyncio.sleep(0)
    replica.model.let(9)
    assert await asyncio.gather(tasks[0], tasks[2]) == [[0], [8]]


async def test_the_backlog_is_told_and_forgotten(start_replica, make_caller, gated, make_call, until):
    replica, caller = await start_replica(gated(), max_batch_size=1), make_caller(max_batch_size=1)
    await caller.connect([replica.path])
    tasks = [_ask(caller, make_call(value)) for value in range(8)]
    await until(lambda: replica.server.backlog == 6)
    for task in tasks:
        task.cancel()
    await until(lambda: replica.server.backlog == 0)


# -- replicas come and go


async def test_requests_wait_for_the_first_replica_by_handle(make_caller, make_call):
    assert await _ask(make_caller(_sums), make_call(1)) == [4]


async def test_a_lane_is_used_as_soon_as_it_is_there(start_replica, make_caller, fake, make_call):
    never = asyncio.get_running_loop().create_future()
    caller = make_caller(lambda _: never, max_batch_size=1)
    stuck = [_ask(caller, make_call(0)) for _ in range(8)]
    waiting = _ask(caller, make_call(1))
    await asyncio.sleep(0)
    replica = await start_replica(fake())
    await caller.connect([replica.path])
    assert await waiting == [4]
    for task in stuck:
        task.cancel()


async def test_a_cancelled_request_frees_its_place_on_the_handle(make_caller, make_call, until):
    never = asyncio.get_running_loop().create_future()
    caller = make_caller(lambda call: never if call.rows == (1,) else _sums(call), max_batch_size=2)
    stuck = [_ask(caller, make_call(0, name=str(index))) for index in range(8)]
    waiting = _ask(caller, make_call(1, 1))
    await asyncio.sleep(0.001)
    assert not waiting.done()
    stuck[0].cancel()
    never = asyncio.get_running_loop().create_future()
    assert await asyncio.wait_for(waiting, 5) == [4, 4]
    for task in stuck:
        task.cancel()


async def test_a_call_whose_replica_dies_is_tried_again_request_by_request(
    tmp_path, start_replica, make_caller, fake, make_call, until
):
    crashes: list[int] = []
    dying = await _start_crashing(tmp_path / "dying", crashes)
    healthy, caller = await start_replica(fake()), make_caller()
    await caller.connect([tmp_path / "dying", healthy.path])
    tasks = [_ask(caller, make_call(value)) for value in range(3)]
    assert await asyncio.gather(*tasks) == [[0], [4], [8]]
    assert crashes == [3]
    assert [call.rows for call in healthy.model.calls] == [1, 1, 1]
    dying.close()


async def test_a_request_that_kills_two_replicas_is_not_tried_again(tmp_path, make_caller, make_call):
    crashes: list[int] = []
    paths = [tmp_path / "a", tmp_path / "b"]
    servers = [await _start_crashing(path, crashes) for path in paths]
    caller = make_caller(replicas=2)
    await caller.connect(paths)
    with pytest.raises(ModelFailed, match="its replica died while answering"):
        await _ask(caller, make_call(1))
    assert crashes == [1, 1]
    for server in servers:
        server.close()


async def test_retries_do_not_share_a_replica(tmp_path, make_caller, make_call, gated, start_replica, until):
    crashes: list[int] = []
    dying = await _start_crashing(tmp_path / "dying", crashes)
    healthy, caller = await start_replica(gated()), make_caller()
    await caller.connect([tmp_path / "dying", healthy.path])
    tasks = [_ask(caller, make_call(value)) for value in range(3)]
    await until(lambda: healthy.model.begun)
    assert healthy.runner.ongoing == 1
    fresh = _ask(caller, make_call(3))
    await asyncio.sleep(0.005)
    assert healthy.runner.ongoing == 1
    healthy.model.let(9)
    assert await asyncio.gather(*tasks, fresh) == [[0], [4], [8], [12]]
    dying.close()


async def test_a_failed_call_by_handle_is_tried_again_alone(make_caller, make_call):
    seen: list[int] = []

    async def dying(call: Call) -> Answer:
        seen.append(len(call.rows))
        if len(call.rows) > 1:
            raise ConnectionResetError("actor died")
        return await _sums(call)

    caller = make_caller(dying)
    assert await asyncio.gather(*[_ask(caller, make_call(value)) for value in range(3)]) == [[0], [4], [8]]
    assert seen == [3, 1, 1, 1]


async def test_a_revision_that_is_gone_says_so(make_caller, make_call):
    async def gone(call: Call) -> Answer:
        raise RuntimeError("application deleted")

    with pytest.raises(ModelNotReady, match="its replica went away"):
        await _ask(make_caller(gone), make_call(1))


async def test_errors_by_handle_are_the_replicas(make_caller, make_call):
    async def full(call: Call) -> Answer:
        return Answer(parts=(Overloaded("full"),) * len(call.rows))

    answers = await asyncio.gather(*[_ask(make_caller(full), make_call(1))] * 2, return_exceptions=True)
    assert all(isinstance(answer, ModelyardError) for answer in answers)


async def test_a_dead_replicas_socket_is_removed(tmp_path, make_caller, start_replica, fake, make_call):
    listener = await asyncio.get_running_loop().create_unix_server(asyncio.Protocol, str(tmp_path / "dead"))
    listener.close()
    replica, caller = await start_replica(fake()), make_caller()
    await caller.connect([tmp_path / "dead", tmp_path / "never", replica.path])
    assert not (tmp_path / "dead").exists()
    assert await _ask(caller, make_call(1)) == [4]


async def test_two_looks_at_once_open_one_lane(start_replica, make_caller, fake, until):
    replica, caller = await start_replica(fake()), make_caller()
    await asyncio.gather(*[caller.connect([replica.path]) for _ in range(3)])
    await until(lambda: replica.server._connections)
    await asyncio.sleep(0.005)
    assert len(replica.server._connections) == 1


async def test_a_lane_lost_while_it_opens_does_not_block_the_others(tmp_path, make_caller, make_call, until):
    closed: list[LaneProtocol] = []

    class Slamming(asyncio.Protocol):
        def connection_made(self, transport):
            transport.abort()
            closed.append(transport)

    server = await asyncio.get_running_loop().create_unix_server(Slamming, str(tmp_path / "s"))
    caller = make_caller(_sums)
    await caller.connect([tmp_path / "s"])
    await until(lambda: closed)
    await asyncio.sleep(0.005)
    assert await _ask(caller, make_call(1), 1.0) == [4]
    server.close()


# -- draining


async def test_draining_answers_what_was_sent(start_replica, make_caller, gated, make_call, until):
    replica, caller = await start_replica(gated(), max_batch_size=1), make_caller(_sums, max_batch_size=1)
    await caller.connect([replica.path])
    tasks = [_ask(caller, make_call(value)) for value in range(6)]
    await until(lambda: replica.model.begun)
    drained = asyncio.create_task(replica.drain())
    await until(lambda: not replica.path.exists())
    replica.model.let(9)
    assert await asyncio.gather(*tasks) == [[4.0 * value] for value in range(6)]
    await asyncio.wait_for(drained, 5)
    assert replica.model.is_closed
    assert len(replica.model.calls) == 2  # the others went by handle at once


async def test_a_call_on_its_way_while_the_replica_says_goodbye_is_answered(
    start_replica, make_caller, fake, make_call
):
    replica, caller = await start_replica(fake()), make_caller()
    await caller.connect([replica.path])
    await _ask(caller, make_call(0))
    task = _ask(caller, make_call(1))
    drained = asyncio.create_task(replica.drain())
    assert await task == [4]
    await asyncio.wait_for(drained, 5)
    assert [call.rows for call in replica.model.calls] == [1, 1]


async def test_nothing_is_lost_while_replicas_are_replaced(start_replica, make_caller, fake, make_call):
    caller = make_caller(_sums)
    answers: list[asyncio.Task[list[float]]] = []
    replica = await start_replica(fake())
    await caller.connect([replica.path])
    for _ in range(10):
        answers += [_ask(caller, make_call(value)) for value in range(20)]
        following = await start_replica(fake())
        await caller.connect([following.path])
        answers += [_ask(caller, make_call(value)) for value in range(20)]
        await asyncio.wait_for(replica.drain(), 5)
        replica = following
    assert await asyncio.gather(*answers) == [[4.0 * value] for value in range(20)] * 20


async def test_an_idle_lane_does_not_hold_up_draining(start_replica, make_caller, fake):
    replica, caller = await start_replica(fake()), make_caller()
    await caller.connect([replica.path])
    await asyncio.wait_for(replica.drain(), 5)


async def test_a_retired_caller_answers_what_waits_and_closes_its_lanes(
    start_replica, make_caller, gated, make_call, until
):
    replica, caller = await start_replica(gated(), max_batch_size=1), make_caller(max_batch_size=1)
    await caller.connect([replica.path])
    tasks = [_ask(caller, make_call(value)) for value in range(6)]
    await until(lambda: replica.model.begun)
    caller.retire()
    replica.model.let(9)
    assert await asyncio.gather(*tasks) == [[4.0 * value] for value in range(6)]
    await until(lambda: not replica.server._connections)
    await caller.connect([replica.path])
    assert not replica.server._connections


async def test_a_lane_that_opens_as_its_caller_retires_is_closed(start_replica, make_caller, fake, until):
    replica, caller = await start_replica(fake()), make_caller()
    connecting = asyncio.create_task(caller.connect([replica.path]))
    await asyncio.sleep(0)
    caller.retire()
    await connecting
    await until(lambda: not replica.server._connections)
