# SPDX-License-Identifier: Apache-2.0
"""Models on the event loop, several calls at once, and members: further models of the same replica."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from modelyard.batching import Answer, group_key
from modelyard.dataplane import DataPlane
from modelyard.errors import InvalidRequest, ModelFailed, SignatureNotFound
from modelyard.inference import InferenceRequest
from modelyard.model import Model, describe
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.serve.runners import Runners
from modelyard.tensor import Parameters, Tensors
from modelyard.testing import FakeModel, FakeOptions


class Waiting(FakeModel):
    """Answers on the event loop, once the test says so."""

    concurrency = 3

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__(bias, FakeOptions())
        self.begun = 0
        self.gate = asyncio.Event()

    async def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:  # type: ignore[override]
        self.begun += 1
        await self.gate.wait()
        if (inputs["input-0"] == 13).any():
            raise ArithmeticError("cannot add up 13")
        return {"output-0": inputs["input-0"].sum(axis=1)}


class Host(FakeModel):
    """A model with two members."""

    def __init__(self, publishes: bool = True) -> None:
        super().__init__(0.0, FakeOptions())
        self.publishes_members = publishes
        self.both = {"one": FakeModel(1.0, FakeOptions()), "two": FakeModel(2.0, FakeOptions(columns=("a", "b")))}

    @property
    def members(self) -> Mapping[str, Model]:
        return self.both


def _values(answer: Answer) -> list[float]:
    assert answer.merged is not None, answer
    return answer.merged["output-0"].tolist()


async def test_an_asynchronous_model_has_as_many_calls_at_once_as_it_says(start_runner, make_call, until) -> None:
    model = Waiting()
    runner = start_runner(model, max_batch_size=1)
    futures = [runner.submit(make_call(value)) for value in range(5)]
    await until(lambda: model.begun == 3)
    await asyncio.sleep(0.02)
    assert (model.begun, runner.ongoing) == (3, 5)
    model.gate.set()
    assert [_values(answer) for answer in await asyncio.gather(*futures)] == [[0], [4], [8], [12], [16]]
    assert runner.ongoing == 0


async def test_what_waits_for_an_asynchronous_model_travels_together_and_fails_alone(start_runner, make_call, until):
    model = Waiting()
    runner = start_runner(model)
    first = [runner.submit(make_call(value)) for value in range(3)]
    await until(lambda: model.begun == 1)
    others = [runner.submit(make_call(value)) for value in (1, 13, 2)]
    model.gate.set()
    await asyncio.gather(*first)
    good, bad, last = await asyncio.gather(*others)
    assert [one.parts[0]["output-0"].tolist() for one in (good, last)] == [[4], [8]]
    assert isinstance(bad.parts[0], ModelFailed)


async def test_draining_waits_for_every_call_of_an_asynchronous_model(start_runner, make_call, until) -> None:
    model = Waiting()
    runner = start_runner(model, max_batch_size=1)
    futures = [runner.submit(make_call(value)) for value in (1, 2)]
    await until(lambda: model.begun == 2)
    draining = asyncio.create_task(runner.drain())
    await asyncio.sleep(0.02)
    assert not draining.done()
    model.gate.set()
    await asyncio.wait_for(draining, 5)
    assert [future.done() for future in futures] == [True, True]
    assert model.is_closed


async def test_a_plain_model_with_concurrency_predicts_in_threads(start_runner, gated, make_call, until) -> None:
    model = gated()
    model.concurrency = 2
    runner = start_runner(model, max_batch_size=1)
    futures = [runner.submit(make_call(value)) for value in (1, 2, 3)]
    await until(lambda: model.begun == 2)
    await asyncio.sleep(0.02)
    assert model.begun == 2
    model.let(3)
    assert [_values(answer) for answer in await asyncio.gather(*futures)] == [[4], [8], [12]]
    assert len({call.thread for call in model.calls}) == 2


async def test_members_answer_what_is_for_them_and_count_it(make_call) -> None:
    host = Host()
    runners = Runners("host", host)
    runners.start()
    calls = [make_call(1), replace(make_call(1), member="one"), replace(make_call(1), member="one")]
    assert [_values(await runners.submit(call)) for call in calls] == [[4], [5], [5]]
    assert {name: counts.inference_count for name, counts in runners.statistics.items()} == {"": 1, "one": 2, "two": 0}
    with pytest.raises(InvalidRequest, match='no member "three"'):
        runners.submit(replace(make_call(1), member="three"))
    await runners.drain()
    assert (host.is_closed, [member.is_closed for member in host.both.values()]) == (True, [True, True])


async def test_signatures_count_as_their_model(make_call) -> None:
    runners = Runners("host", Host(publishes=False))
    runners.start()
    for call in (make_call(1), replace(make_call(1), member="one")):
        await runners.submit(call)
    assert {name: counts.inference_count for name, counts in runners.statistics.items()} == {"": 2}
    await runners.drain()


def test_calls_for_different_members_do_not_travel_together(make_call) -> None:
    assert group_key(make_call(1)) != group_key(replace(make_call(1), member="one"))


def _route(host: Host) -> ModelRoute:
    told = describe(host)
    revision = RevisionRoute("repo", "1", "repo@1", "fake", "ready", signature=told.signature)
    revision = replace(revision, members=told.members, publishes_members=told.publishes_members)
    return ModelRoute("repo", "1", {"1": revision})


def test_members_of_a_repository_are_models_of_their_own() -> None:
    one, two = _route(Host()).published_members()
    assert (one.name, two.name) == ("one", "two")
    route = two.revisions["1"]
    assert (route.model, route.application, route.member, route.is_ready) == ("two", "repo@1", "two", True)
    assert route.signature is not None
    assert route.signature.inputs[0].shape == (-1, 2)
    assert list(_route(Host(publishes=False)).published_members()) == []


class RecordingTransport:
    def __init__(self) -> None:
        self.calls = []

    async def call(self, revision, call, timeout_s):
        self.calls.append((revision.member, call.member))
        self.parameters = call.parameters
        return {"output-0": np.zeros(1)}


async def test_a_signature_is_asked_for_by_name() -> None:
    transport = RecordingTransport()
    plane = DataPlane(transport)
    plane.follow(RouteTable("e", 1, {"repo": _route(Host(publishes=False))}))
    revision, signature = plane.get_ready("repo", "", "two")
    await plane.infer(revision, signature, InferenceRequest({"x": np.zeros((1, 2))}))
    assert transport.calls == [("two", "two")]
    with pytest.raises(SignatureNotFound, match=r'"three" not found .*: expected "serving_default", "one", "two"'):
        plane.get_ready("repo", "", "three")


PARAMETERS = {"signature_name": "two", "k": 1}


async def test_the_signature_may_be_a_parameter_of_the_request() -> None:
    transport = RecordingTransport()
    plane = DataPlane(transport)
    plane.follow(RouteTable("e", 1, {"repo": _route(Host(publishes=False))}))
    revision, signature = plane.get_ready("repo")
    await plane.infer(revision, signature, InferenceRequest({"x": np.zeros((1, 2))}, parameters=PARAMETERS))
    assert (transport.calls, transport.parameters) == ([("two", "two")], {"k": 1})
    for wrong, match in (("three", "three"), (7, "expected a string")):
        with pytest.raises(InvalidRequest, match=match):
            await plane.infer(
                revision, signature, InferenceRequest({"x": np.zeros((1, 2))}, parameters={"signature_name": wrong})
            )


@pytest.mark.parametrize("host", [Host(publishes=True), FakeModel(0.0, FakeOptions(columns=("a", "b")))])
async def test_a_model_with_one_signature_gets_the_parameter_itself(host) -> None:
    transport = RecordingTransport()
    plane = DataPlane(transport)
    plane.follow(RouteTable("e", 1, {"repo": _route(host)}))
    rows = np.zeros((1, len(host.signature.columns)))
    await plane.infer(*plane.get_ready("repo"), InferenceRequest({"x": rows}, parameters=PARAMETERS))
    assert (transport.calls, transport.parameters) == ([("", "")], PARAMETERS)
