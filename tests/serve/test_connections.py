# SPDX-License-Identifier: Apache-2.0
"""Many revisions over one connection to each replica of their pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from modelyard.batching import Answer, Call
from modelyard.errors import DeadlineExceeded
from modelyard.routing import RevisionRoute
from modelyard.serve.caller import RevisionCaller
from modelyard.serve.connections import SharedConnections
from modelyard.serve.laneserver import LaneServer
from modelyard.tensor import Tensors


@dataclass
class Recording:
    """What answers in a replica: sums, when it is let; remembers who was asked.

    Attributes:
        asked: The resident of each call.
        gate: Set while it answers.
        cancelled: Calls that nobody waited for any more.
    """

    asked: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: int = 0

    def submit(self, call: Call) -> asyncio.Future[Answer]:
        self.asked.append(call.resident)
        return asyncio.ensure_future(self._answer(call))

    async def _answer(self, call: Call) -> Answer:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Answer(merged={"output-0": call.inputs["input-0"].sum(axis=1)})

    async def stream(self, call: Call):
        raise NotImplementedError
        yield


@dataclass
class Replica:
    path: Path
    answers: Recording
    server: LaneServer

    async def drain(self) -> None:
        self.server.stop_accepting()
        await self.server.drain()
        await self.server.stop()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[Replica]]]:
    replicas: list[Replica] = []

    async def start() -> Replica:
        path, answers = tmp_path / f"{len(replicas)}.sock", Recording()
        answers.gate.set()
        replicas.append(Replica(path, answers, LaneServer(path, answers)))
        await replicas[-1].server.start()
        return replicas[-1]

    yield start
    for replica in replicas:
        replica.server.stop_accepting()
        await replica.server.stop()
    await asyncio.sleep(0.001)


@pytest.fixture
async def make_caller() -> AsyncIterator[Callable[[str], RevisionCaller]]:
    callers: list[RevisionCaller] = []
    shared = SharedConnections()

    def make(name: str) -> RevisionCaller:
        route = RevisionRoute(name, "1", f"{name}@1", "fake", "ready", replicas=2, pool="pool@fake", resident=name)
        callers.append(RevisionCaller(route, _no_handle, _no_handle, shared))
        return callers[-1]

    yield make
    for caller in callers:
        caller.retire()
    await asyncio.sleep(0.001)


async def _no_handle(call: Call) -> Answer:
    raise AssertionError("this test's requests go over lanes")


def _ask(caller: RevisionCaller, call: Call, timeout_s: float = 10.0) -> asyncio.Task[Tensors]:
    name = caller._route.resident
    return asyncio.create_task(caller.call(replace(call, resident=name), timeout_s))


async def test_many_share_one_connection_and_get_their_own_answers(start, make_caller, make_call):
    replica = await start()
    callers = [make_caller(f"m{number}") for number in range(20)]
    await asyncio.gather(*(caller.connect([replica.path]) for caller in callers))
    answers = await asyncio.gather(*(_ask(caller, make_call(value)) for value, caller in enumerate(callers)))
    assert [answer["output-0"].tolist() for answer in answers] == [[4.0 * value] for value in range(20)]
    assert sorted(replica.answers.asked) == sorted(f"m{number}" for number in range(20))
    assert len(replica.server._connections) == 1


async def test_one_that_waits_holds_up_no_other(start, make_caller, make_call, until):
    replica = await start()
    slow, fast = make_caller("slow"), make_caller("fast")
    for caller in (slow, fast):
        await caller.connect([replica.path])
    replica.answers.gate.clear()
    waiting = [_ask(slow, make_call(1))]
    await until(lambda: replica.answers.asked)
    waiting += [_ask(slow, make_call(1)) for _ in range(4)]
    other = _ask(fast, make_call(2))
    await until(lambda: "fast" in replica.answers.asked)
    assert replica.answers.asked.count("slow") == 1  # the others travel together when it has answered
    replica.answers.gate.set()
    await asyncio.gather(other, *waiting)
    assert replica.answers.asked == ["slow", "fast", "slow"]


async def test_all_of_one_revision_go_to_one_replica_and_revisions_are_spread(start, make_caller, make_call):
    replicas = [await start(), await start()]
    callers = [make_caller(f"m{number}") for number in range(40)]
    for caller in callers:
        await caller.connect([replica.path for replica in replicas])
    for _ in range(3):
        await asyncio.gather(*(_ask(caller, make_call(1)) for caller in callers))
    one, other = (set(replica.answers.asked) for replica in replicas)
    assert not one & other
    assert len(one | other) == 40
    assert min(len(one), len(other)) > 5


async def test_a_replica_that_leaves_loses_nothing(start, make_caller, make_call, until):
    replicas = [await start(), await start()]
    callers = [make_caller(f"m{number}") for number in range(10)]
    for caller in callers:
        await caller.connect([replica.path for replica in replicas])
    replicas[0].answers.gate.clear()
    waiting = [_ask(caller, make_call(1)) for caller in callers for _ in range(3)]
    await until(lambda: len(replicas[0].answers.asked) + len(replicas[1].answers.asked) >= len(callers))
    draining = asyncio.create_task(replicas[0].drain())
    await until(lambda: replicas[0].server._told)
    replicas[0].answers.gate.set()
    answers = await asyncio.gather(*waiting)
    assert all(answer["output-0"].tolist() == [4.0] for answer in answers)
    await asyncio.wait_for(draining, 5)
    replicas[1].answers.asked.clear()
    await asyncio.gather(*(_ask(caller, make_call(1)) for caller in callers))
    assert len(replicas[1].answers.asked) == 10  # who was there goes to the other from now on


async def test_a_replica_that_dies_has_its_calls_done_elsewhere(start, make_caller, make_call, until):
    replicas = [await start(), await start()]
    callers = [make_caller(f"m{number}") for number in range(10)]
    for caller in callers:
        await caller.connect([replica.path for replica in replicas])
    replicas[0].answers.gate.clear()
    waiting = [_ask(caller, make_call(1)) for caller in callers]
    await until(lambda: len(replicas[0].answers.asked) + len(replicas[1].answers.asked) == 10)
    for protocol in list(replicas[0].server._connections):
        protocol.abort()
    answers = await asyncio.gather(*waiting)
    assert all(answer["output-0"].tolist() == [4.0] for answer in answers)
    assert set(replicas[1].answers.asked) == {f"m{number}" for number in range(10)}


async def test_a_call_that_nobody_waits_for_is_cancelled_and_its_place_is_free(start, make_caller, make_call, until):
    replica, caller = await start(), make_caller("m")
    await caller.connect([replica.path])
    replica.answers.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await _ask(caller, make_call(1), 0.05)
    await until(lambda: replica.answers.cancelled == 1)
    replica.answers.gate.set()
    assert (await _ask(caller, make_call(2)))["output-0"].tolist() == [8.0]


async def test_the_connection_ends_with_the_last_that_uses_it(start, make_caller, make_call, until):
    replica = await start()
    first, second = make_caller("a"), make_caller("b")
    for caller in (first, second):
        await caller.connect([replica.path])
    first.retire()
    assert (await _ask(second, make_call(1)))["output-0"].tolist() == [4.0]
    second.retire()
    await until(lambda: not replica.server._connections)
    third = make_caller("c")
    await third.connect([replica.path])
    assert (await _ask(third, make_call(1)))["output-0"].tolist() == [4.0]


async def test_what_all_of_them_let_wait_is_told(start, make_caller, make_call, until):
    replica = await start()
    callers = [make_caller("a"), make_caller("b")]
    for caller in callers:
        await caller.connect([replica.path])
    replica.answers.gate.clear()
    waiting = [_ask(caller, make_call(*[1] * 64)) for caller in callers for _ in range(4)]
    await until(lambda: len(replica.answers.asked) == 4)
    assert replica.server.backlog == 4
    replica.answers.gate.set()
    await asyncio.gather(*waiting)
    assert replica.server.backlog == 0


async def test_a_socket_that_nobody_listens_on_is_removed_for_all(start, make_caller, tmp_path):
    replica = await start()
    dead = tmp_path / "dead.sock"
    await replica.drain()
    server = await asyncio.start_unix_server(lambda *_: None, str(dead))
    server.close()
    dead.touch()
    callers = [make_caller("a"), make_caller("b")]
    await asyncio.gather(*(caller.connect([dead]) for caller in callers))
    assert not dead.exists()


async def test_revisions_are_spread_evenly_over_many_replicas(start, make_caller, make_call):
    replicas = [await start() for _ in range(4)]
    callers = [make_caller(f"m{number}") for number in range(200)]
    for caller in callers:
        await caller.connect([replica.path for replica in replicas])
    await asyncio.gather(*(_ask(caller, make_call(1)) for caller in callers))
    shares = [len(replica.answers.asked) for replica in replicas]
    assert sum(shares) == 200
    assert min(shares) > 25


async def test_what_one_let_wait_and_gave_up_is_not_told_for_ever(start, make_caller, make_call, until):
    replica = await start()
    first, second = make_caller("a"), make_caller("b")
    for caller in (first, second):
        await caller.connect([replica.path])
    replica.answers.gate.clear()
    asked = [_ask(first, make_call(*[1] * 64), 0.1) for _ in range(9)]
    await until(lambda: len(replica.answers.asked) == 2)
    assert replica.server.backlog > 0
    await asyncio.gather(*asked, return_exceptions=True)
    await until(lambda: replica.answers.cancelled == 2)
    other = _ask(second, make_call(1))
    await until(lambda: "b" in replica.answers.asked)
    assert replica.server.backlog == 0
    replica.answers.gate.set()
    await other
