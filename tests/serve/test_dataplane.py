# SPDX-License-Identifier: Apache-2.0
"""The one path of a request, with a transport that only remembers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from modelyard.batching import Call
from modelyard.dataplane import DataPlane
from modelyard.errors import InvalidRequest, ModelNotFound
from modelyard.inference import InferenceRequest, RequestedOutput
from modelyard.routing import RevisionRoute, RouteTable
from modelyard.tensor import Tensors

ROUTE = RevisionRoute("m", "3", "m@3", "fake", "ready", request_timeout_s=10.0)
ROWS = {"input-0": np.ones((2, 4))}
_MANY_ROWS = {"input-0": np.ones((20_000, 4))}


class Remembering:
    """Answers a zero for each row and output."""

    def __init__(self) -> None:
        self.calls: list[tuple[Call, float]] = []

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        self.calls.append((call, timeout_s))
        return {name: np.zeros(max(call.rows[0], 1)) for name in reversed(call.outputs)}


@pytest.fixture
def transport() -> Remembering:
    return Remembering()


@pytest.fixture
def plane(transport) -> DataPlane:
    return DataPlane(transport)


async def test_the_answer_has_the_default_outputs_and_the_revision(plane, fake):
    response = await plane.infer(ROUTE, fake().signature, InferenceRequest(ROWS, id="x"))
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "x")
    assert list(response.outputs) == ["output-0"]


async def test_requested_outputs_filter_and_order(plane, fake, transport):
    wanted = (RequestedOutput("rows"), RequestedOutput("output-0"))
    response = await plane.infer(ROUTE, fake().signature, InferenceRequest(ROWS, outputs=wanted))
    assert list(response.outputs) == ["rows", "output-0"]
    assert transport.calls[0][0].outputs == ("rows", "output-0")


async def test_an_unknown_output_goes_nowhere(plane, fake, transport):
    with pytest.raises(InvalidRequest, match='unknown requested output "y"'):
        await plane.infer(ROUTE, fake().signature, InferenceRequest(ROWS, outputs=(RequestedOutput("y"),)))
    assert transport.calls == []


async def test_the_servers_parameters_do_not_reach_the_model(plane, fake, transport):
    parameters = {
        "timeout": 5_000_000,
        "binary_data_output": True,
        "triton_enable_empty_final_response": True,
        "temperature": 0.5,
    }
    await plane.infer(ROUTE, fake().signature, InferenceRequest(ROWS, parameters=parameters))
    assert transport.calls[0][0].parameters == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("parameter", "asked_s", "expected_s"),
    [
        (None, None, 10),
        (None, 2.5, 2.5),
        (None, 99.0, 10),
        (1_000_000, 2.5, 1),
        (0, None, 10),
        (99_000_000, None, 10),
        (10**400, None, 10),
    ],
)
async def test_the_shortest_deadline_counts(plane, fake, transport, parameter, asked_s, expected_s):
    parameters = {} if parameter is None else {"timeout": parameter}
    await plane.infer(ROUTE, fake().signature, InferenceRequest(ROWS, parameters=parameters), asked_s)
    assert transport.calls[0][1] == expected_s


@pytest.mark.parametrize("timeout_us", [-1, 1.5, True, "1"])
async def test_a_timeout_that_is_none_is_refused(plane, fake, timeout_us):
    with pytest.raises(InvalidRequest, match='parameter "timeout"'):
        await plane.infer(ROUTE, fake().signature, InferenceRequest(ROWS, parameters={"timeout": timeout_us}))


async def test_no_rows_need_no_call(plane, fake, transport):
    request = InferenceRequest({"input-0": np.ones((0, 4))})
    response = await plane.infer(ROUTE, fake().signature, request)
    assert response.outputs["output-0"].shape == (0,)
    assert transport.calls == []


async def test_many_classes_do_not_hold_up_others(plane, fake):
    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turns = 0
    others = asyncio.create_task(turn())
    wanted = (RequestedOutput("output-0", {"classification": 1}),)
    response = await plane.infer(ROUTE, fake().signature, InferenceRequest(_MANY_ROWS, outputs=wanted))
    others.cancel()
    assert response.outputs["output-0"].shape == (20_000, 1)
    assert turns > 3


async def test_no_rows_need_no_stream(plane, fake):
    signature = replace(fake().signature, decoupled=True)
    request = InferenceRequest({"input-0": np.ones((0, 4))})
    answers = [response async for response in plane.stream(ROUTE, signature, request)]  # the transport has no stream
    assert [answer.outputs["output-0"].shape for answer in answers] == [(0,)]


async def test_without_a_batch_axis_there_are_no_rows_to_merge(plane, fake, transport):
    signature = replace(fake().signature, batch_axis=False)
    await plane.infer(ROUTE, signature, InferenceRequest(ROWS))
    assert transport.calls[0][0].rows == (0,)


async def test_who_waits_for_a_table_hears_of_the_first_that_has_what_he_looks_for(plane):
    waiting = [asyncio.create_task(plane.until(lambda table: table.version >= 2 or None)) for _ in range(2)]
    await asyncio.sleep(0)
    for version in (1, 2, 3):
        plane.follow(RouteTable("e", version))
        await asyncio.sleep(0)
    assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [True, True]
    assert await plane.until(lambda table: table.version) == 3


async def test_what_looking_at_a_table_raises_ends_the_waiting(plane):
    waiting = asyncio.create_task(plane.until(lambda table: table.get_model("m") if table.version else None))
    await asyncio.sleep(0)
    plane.follow(RouteTable("e", 1))
    with pytest.raises(ModelNotFound):
        await asyncio.wait_for(waiting, 1)
