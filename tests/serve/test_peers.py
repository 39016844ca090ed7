# SPDX-License-Identifier: Apache-2.0
"""Models that call other models: what a replica has for it, over runners in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from time import monotonic_ns

import numpy as np
import pytest

from modelyard import Signature, TensorSpec
from modelyard.batching import Answer, Call
from modelyard.errors import DeadlineExceeded, InvalidRequest, ModelFailed, ModelNotReady, ModelyardError
from modelyard.model import Model
from modelyard.openai import OpenAIMember, OpenAIModel, OpenAIRequest, Part, ask
from modelyard.peers import set_peers
from modelyard.protocol.openai import to_affinity
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.serve.peers import ReplicaPeers
from modelyard.serve.runner import ModelRunner
from modelyard.testing import FakeModel, FakeOptions

SIGNATURE = Signature((TensorSpec("x", "FP64", (-1, 4)),), (TensorSpec("y", "FP64", (-1,)),))


class Outer(Model):
    """Asks the model ``inner``, in the thread of ``predict``."""

    signature = SIGNATURE
    asks = "inner"

    def predict(self, inputs, outputs, parameters):
        return {"y": self.call(self.asks, {"input-0": inputs["x"]}, ["output-0"])["output-0"] * 10}


class AsyncOuter(Model):
    """Asks two models at once, on the event loop."""

    signature = SIGNATURE
    concurrency = 8

    async def predict(self, inputs, outputs, parameters):
        asked = [self.call_async(name, {"input-0": inputs["x"]}, timeout_s=5) for name in ("inner", "other")]
        one, two = await asyncio.gather(*asked)
        return {"y": one["output-0"] + two["output-0"]}


class World:
    """Models with runners, and the route table that a controller would make of them."""

    def __init__(self) -> None:
        self.runners: dict[str, ModelRunner] = {}
        self.calls: list[Call] = []
        self.timeouts: list[float] = []
        self.news: asyncio.Queue[RouteTable] = asyncio.Queue()
        self.routes: dict[str, ModelRoute] = {}

    def add(self, name: str, model: Model, **route: object) -> ModelRunner:
        runner = self.runners[f"{name}@1"] = ModelRunner(name, model, 64, 0.0, 1000)
        runner.start()
        first = RevisionRoute(name, "1", f"{name}@1", "fake", "ready", signature=model.signature, **route)
        self.routes[name] = ModelRoute(name, "1", {"1": first}, {"stable": "1"})
        self.news.put_nowait(RouteTable("e", len(self.routes), dict(self.routes)))
        return runner

    async def watch(self, epoch: str, version: int) -> tuple[RouteTable, bool]:
        return await self.news.get(), True

    # -- what stands for the callers

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> object:
        self.calls.append(call)
        self.timeouts.append(timeout_s)
        try:
            answer = await asyncio.wait_for(self.runners[revision.application].submit(call), timeout_s)
        except TimeoutError as exc:
            raise DeadlineExceeded(timeout_s) from exc
        return _outputs(answer)

    def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[object]:
        self.calls.append(call)
        return self.runners[revision.application + revision.member].stream(call)

    async def update(self, table: RouteTable) -> None: ...

    async def scan(self) -> None: ...

    def leave(self) -> None: ...


def _outputs(answer: Answer) -> dict[str, np.ndarray]:
    if answer.merged is not None:
        return dict(answer.merged)
    (part,) = answer.parts
    if isinstance(part, ModelyardError):
        raise part
    return dict(part)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """The models of a test; whichever calls others is ``outer@1``."""
    made = World()
    peers = ReplicaPeers("outer@1", made.watch, asyncio.get_running_loop(), lambda: made)
    set_peers(peers)
    yield made
    await peers.close()
    set_peers(None)
    for runner in made.runners.values():
        await asyncio.wait_for(runner.drain(), 10)


def _sums(bias: float = 0.0, **options: object) -> FakeModel:
    return FakeModel(bias, FakeOptions.model_validate(options))


def _call(value: float = 1.0, **changes: object) -> Call:
    call = Call({"x": np.full((1, 4), value)}, (1,), ("y",), {})
    return replace(call, **changes)


async def _ask(world: World, call: Call | None = None) -> list[float]:
    answer = await asyncio.wait_for(world.runners["outer@1"].submit(call or _call()), 10)
    return _outputs(answer)["y"].tolist()


async def test_a_model_asks_another_by_name_and_that_counts_there(world: World) -> None:
    inner = world.add("inner", _sums(0.5))
    world.add("outer", Outer())
    assert await _ask(world) == [45]
    assert inner.statistics.success.count == 1
    assert world.calls[0].via == ("outer@1",)


async def test_an_asynchronous_model_asks_two_at_once(world: World, gated, until) -> None:
    inner, other = gated(), gated()
    world.add("inner", inner)
    world.add("other", other)
    world.add("outer", AsyncOuter())
    asking = asyncio.create_task(_ask(world))
    await until(lambda: inner.begun and other.begun)
    inner.let()
    other.let()
    assert await asking == [8]


async def test_eight_requests_at_once_get_their_own_rows(world: World) -> None:
    world.add("inner", _sums(latency_s=0.005))
    world.add("other", _sums(100))
    world.add("outer", AsyncOuter())
    for _ in range(5):
        answers = await asyncio.gather(*(_ask(world, _call(value)) for value in range(8)))
        assert answers == [[value * 8 + 100] for value in range(8)]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"asks": "absent"}, ModelNotReady, 'model "absent" is not ready: the platform has no model of that name'),
        ({"asks": "late"}, ModelNotReady, 'model "late" is not ready: it starts'),
        ({"asks": "outer"}, ModelFailed, "in a circle: outer@1 → outer@1"),
        ({"asks": "strict"}, ModelFailed, 'ValueError: call of the model "strict": unknown requested output'),
        ({"asks": "words"}, ModelFailed, 'model "words" answers with a stream: use call_stream'),
    ],
)
async def test_a_call_that_cannot_be_made_is_no_mistake_of_the_client(world: World, changes, error, text) -> None:
    world.add("words", _sums(answers=3))
    world.add("strict", Outer())
    late = RevisionRoute("late", "1", "late@1", "fake", "loading", reason="it starts")
    world.routes["late"] = ModelRoute("late", "1", {"1": late})
    outer = Outer()
    vars(outer).update(changes)
    world.add("outer", outer)
    with pytest.raises(error, match=text):
        await _ask(world)


async def test_a_wrong_input_is_the_callers_mistake(world: World) -> None:
    class Careless(Outer):
        def predict(self, inputs, outputs, parameters):
            return self.call("strict", {"x": [["a", "b", "c", "d"]]})

    world.add("strict", Outer())
    world.add("outer", Careless())
    with pytest.raises(ModelFailed, match=r'call of the model "strict": input "x": expected FP64 \[-1,4\], got BYTES'):
        await _ask(world)


async def test_what_the_other_model_refuses_is_the_clients_mistake(world: World) -> None:
    world.add("inner", _sums(refuse_value=13))
    world.add("outer", Outer())
    with pytest.raises(InvalidRequest, match="13 is not a value"):
        await _ask(world, _call(13))


async def test_a_circle_over_several_models_ends(world: World) -> None:
    world.add("inner", _sums())
    world.add("outer", Outer())
    with pytest.raises(ModelFailed, match="in a circle: inner@1 → b@1 → outer@1 → inner@1"):
        await _ask(world, _call(via=("inner@1", "b@1")))


async def test_a_call_ends_with_the_request_it_is_made_for(world: World, gated) -> None:
    inner = gated()
    world.add("inner", inner)
    world.add("outer", Outer())
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await _ask(world, _call(deadline_ns=monotonic_ns() + 50_000_000))
    assert time.monotonic() - begun < 5
    assert world.timeouts[0] <= 0.05
    inner.let()


async def test_a_model_says_itself_how_long_it_waits(world: World, gated) -> None:
    inner = gated()
    world.add("inner", inner)
    outer = Outer()
    outer.predict = lambda inputs, *_: outer.call("inner", {"input-0": inputs["x"]}, timeout_s=0.05)  # type: ignore[method-assign]
    world.add("outer", outer)
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        await _ask(world)
    inner.let()


async def test_a_stream_comes_answer_by_answer(world: World) -> None:
    class Reader(Outer):
        def predict(self, inputs, outputs, parameters):
            answers = [one["output-0"] for one in self.call_stream("inner", {"input-0": inputs["x"]})]
            return {"y": np.sum(answers, axis=0)}

    world.add("inner", _sums(answers=3))
    world.add("outer", Reader())
    assert await _ask(world) == [4 + 5 + 6]


class Parrot(OpenAIModel):
    """Says what it was asked, in two parts."""

    signature = SIGNATURE

    async def predict(self, inputs, outputs, parameters):
        raise NotImplementedError

    async def answer(self, request):
        yield Part(request.route.encode())
        yield Part(request.body)


class Asker(AsyncOuter):
    """Asks the model ``inner`` by the OpenAI protocol; answers with how many parts came, and keeps them."""

    route = "completions"

    async def predict(self, inputs, outputs, parameters):
        self.parts = [part async for part in ask("inner", OpenAIRequest(self.route, b'{"prompt": "a"}'))]
        return {"y": np.array([len(self.parts)], float)}


async def test_a_language_model_is_asked_by_its_own_protocol(world: World) -> None:
    parrot, asker = Parrot(), Asker()
    world.add("inner", parrot, openai_routes=("completions",))
    world.runners["inner@1openai"] = ModelRunner("inner", OpenAIMember(parrot), 64, 0.0, 1000)
    world.runners["inner@1openai"].start()
    world.add("outer", asker)
    assert await _ask(world) == [2]
    assert [part.data for part in asker.parts] == [b"completions", b'{"prompt": "a"}']
    [call] = world.calls
    assert (call.member, call.via, call.affinity) == ("openai", ("outer@1",), to_affinity({"prompt": "a"}))


async def test_a_language_model_is_not_asked_what_it_does_not_answer(world: World) -> None:
    asker = Asker()
    asker.route = "embeddings"
    world.add("inner", Parrot(), openai_routes=("completions",))
    world.add("outer", asker)
    with pytest.raises(ModelFailed, match="it does not answer embeddings"):
        await _ask(world)


async def test_a_stream_comes_to_a_loop_of_the_models_own(world: World) -> None:
    class OwnLoop(Outer):
        def predict(self, inputs, outputs, parameters):
            async def read() -> list[np.ndarray]:
                stream = self.call_stream_async("inner", {"input-0": inputs["x"]})
                return [one["output-0"] async for one in stream]

            return {"y": np.sum(asyncio.run(read()), axis=0)}

    world.add("inner", _sums(answers=3))
    world.add("outer", OwnLoop())
    assert await _ask(world) == [4 + 5 + 6]


async def test_a_stream_can_be_left(world: World, until: Callable[..., object]) -> None:
    class Leaver(Outer):
        async def predict(self, inputs, outputs, parameters):
            stream = self.call_stream_async("inner", {"input-0": inputs["x"]})
            first = await anext(stream)
            await stream.aclose()
            return {"y": first["output-0"]}

    inner = _sums(answers=1000)
    world.add("inner", inner)
    world.add("outer", Leaver())
    assert await _ask(world) == [4]
    await until(lambda: inner.ended == 1)
    assert inner.given < 1000


async def test_a_plain_call_in_an_async_def_says_what_to_write(world: World) -> None:
    class Blocking(Outer):
        async def predict(self, inputs, outputs, parameters):
            return {"y": self.call("inner", {"input-0": inputs["x"]})["output-0"]}

    world.add("inner", _sums())
    world.add("outer", Blocking())
    with pytest.raises(ModelFailed, match=r"await self.call_async"):
        await _ask(world)


async def test_a_plain_call_is_made_while_serve_s_own_loop_loads_the_model(world: World) -> None:
    async def load() -> list[float]:
        return Outer().predict({"x": np.ones((1, 4))}, (), {})["y"].tolist()

    world.add("inner", _sums(0.5))
    assert await asyncio.to_thread(lambda: asyncio.run(load())) == [45]


async def test_what_is_asked_while_loading_waits_for_the_other_model(world: World, until) -> None:
    def load() -> list[float]:
        return Outer().predict({"x": np.ones((1, 4))}, (), {})["y"].tolist()

    world.add("other", _sums())
    loading = asyncio.create_task(asyncio.to_thread(load))
    await until(world.news.empty)  # it knows by now that there is no other model
    world.add("inner", _sums(0.5))
    assert await asyncio.wait_for(loading, 10) == [45]


@pytest.mark.parametrize("streams", [False, True])
async def test_what_is_asked_while_loading_waits_no_longer_than_it_says(world: World, streams: bool) -> None:
    def load() -> object:
        outer = Outer()
        if streams:
            return list(outer.call_stream("inner", {}, timeout_s=0.05))
        return outer.call("inner", {}, timeout_s=0.05)

    world.add("other", _sums())
    with pytest.raises(ModelNotReady, match='model "inner" is not ready: the platform has no model of that name'):
        await asyncio.wait_for(asyncio.to_thread(load), 5)


@pytest.mark.parametrize(("said", "priority"), [({}, 3), ({"priority": 1}, 1)])
async def test_a_call_has_the_priority_of_the_request_it_is_made_for(world: World, said, priority: int) -> None:
    class Urgent(Outer):
        def predict(self, inputs, outputs, parameters):
            return {"y": self.call("inner", {"input-0": inputs["x"]}, parameters=said)["output-0"]}

    world.add("inner", _sums())
    world.add("outer", Urgent())
    assert await _ask(world, _call(priority=3)) == [4]
    assert (world.calls[0].priority, world.calls[0].parameters) == (priority, {})


async def test_a_controller_that_says_nothing_is_not_waited_for_longer_than_the_request(world: World) -> None:
    outer = world.runners["outer@1"] = ModelRunner("outer", Outer(), 64, 0.0, 1000)
    outer.start()
    begun = time.monotonic()
    with pytest.raises(ModelNotReady, match="controller does not say where others are"):
        await _ask(world, _call(deadline_ns=monotonic_ns() + 50_000_000))
    assert time.monotonic() - begun < 5


async def test_a_version_that_nobody_knows_is_not_waited_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.serve.peers._UNKNOWN_S", 0.05)
    peers = ReplicaPeers("outer@1", world.watch, asyncio.get_running_loop(), lambda: world)
    world.add("inner", _sums())
    with pytest.raises(ModelNotReady, match='model "inner" is not ready: it has no version "canary"'):
        await asyncio.wait_for(peers.until_ready("inner", "canary", 60), 5)
    await peers.close()


async def test_nobody_waits_for_itself(world: World) -> None:
    peers = ReplicaPeers("outer@2", world.watch, asyncio.get_running_loop(), lambda: world)
    world.add("inner", _sums())
    with pytest.raises(ModelNotReady, match='model "outer" is not ready: it would have to be there before itself'):
        await asyncio.wait_for(peers.until_ready("outer", "", 60), 5)
    await peers.close()


async def test_who_waits_for_a_model_hears_when_it_is_there(world: World) -> None:
    world.add("inner", _sums())
    peers = ReplicaPeers("outer@1", world.watch, asyncio.get_running_loop(), lambda: world)
    with pytest.raises(ModelNotReady, match='model "other" is not ready: the platform has no model of that name'):
        await peers.until_ready("other", "", 0.01)
    assert peers.find_signature("other") is None
    waiting = asyncio.create_task(peers.until_ready("other", "", 5))
    await asyncio.sleep(0.01)
    world.add("other", _sums(columns=("a", "b")))
    assert (await waiting).columns == ("a", "b")
    assert peers.find_signature("other") is await waiting
    await peers.close()


async def test_who_can_do_without_a_model_hears_when_it_is_gone(world: World) -> None:
    world.add("inner", _sums())
    peers = ReplicaPeers("outer@1", world.watch, asyncio.get_running_loop(), lambda: world)
    gone = asyncio.create_task(peers.until_gone("inner"))
    await asyncio.sleep(0.01)
    assert not gone.done()
    revisions = {"1": replace(world.routes["inner"].revisions["1"], state="loading")}
    world.news.put_nowait(RouteTable("e", 9, {"inner": replace(world.routes["inner"], revisions=revisions)}))
    await asyncio.wait_for(gone, 5)
    await peers.close()


def test_without_a_platform_it_says_how_to_test() -> None:
    with pytest.raises(RuntimeError, match=r'no platform here to call the model "inner" on.*FakePeers'):
        Outer().predict({"x": np.zeros((1, 4))}, ("y",), {})
