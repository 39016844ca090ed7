# SPDX-License-Identifier: Apache-2.0
"""Which requests were predicted together, told to clients as KServe's batcher tells it."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from modelyard.batching import BATCH_ID, Answer, Call, report_batch_id, reports_batch_id
from modelyard.errors import ModelFailed
from modelyard.routing import ModelRoute, RouteTable
from modelyard.signature import Signature, TensorSpec

PREDICT = "/v1/models/iris:predict"
ASKED = ("output-0", BATCH_ID)


def _ids(answer: Answer) -> list[bytes]:
    assert answer.merged is not None, answer
    return answer.merged[BATCH_ID].tolist()


# -- the signature


def test_a_signature_that_reports_offers_one_text_a_row():
    plain = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
    told = report_batch_id(plain)
    assert (reports_batch_id(plain), reports_batch_id(told)) == (False, True)
    assert told.on_request == (TensorSpec("batchId", "BYTES", (-1,)),)
    assert told.outputs == plain.outputs


@pytest.mark.parametrize("change", [{"decoupled": True}, {"outputs": (TensorSpec("batchId", "INT64", (-1,)),)}])
def test_a_model_that_streams_or_has_such_an_output_reports_nothing(change):
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))
    changed = replace(signature, **change)
    assert report_batch_id(changed) is changed
    assert not reports_batch_id(changed)


# -- the runner


async def test_requests_predicted_in_one_call_share_an_id_and_others_do_not(start_runner, gated, make_call, until):
    model = gated()
    runner = start_runner(model)
    first = runner.submit(make_call(0, outputs=ASKED))
    await until(lambda: model.begun)
    merged = [runner.submit(make_call(*values, outputs=ASKED)) for values in [(1,), (2, 3)]]
    model.let(2)
    alone, one, two = [_ids(answer) for answer in await asyncio.gather(first, *merged)]
    assert [call.rows for call in model.calls] == [1, 3]
    assert (len(alone), len(one), len(two)) == (1, 1, 2)
    assert len({*one, *two}) == 1
    assert set(alone).isdisjoint(one)


async def test_parts_of_one_call_share_an_id_too(start_runner, fake, make_call):
    call = make_call(1, 2, 3, outputs=ASKED)
    assert len(set(_ids(await start_runner(fake()).submit(replace(call, rows=(1, 2)))))) == 1


async def test_the_model_is_not_asked_for_the_id(start_runner, fake, make_call):
    model = fake()
    runner = start_runner(model)
    await runner.submit(make_call(1, outputs=("rows", BATCH_ID)))
    await runner.submit(make_call(1, outputs=(BATCH_ID,)))
    assert [call.outputs for call in model.calls] == [("rows",), ("output-0",)]


async def test_those_that_were_predicted_again_after_a_failure_were_not_together(start_runner, gated, make_call, until):
    model = gated(fail_on_value=13.0)
    runner = start_runner(model)
    first = runner.submit(make_call(0, outputs=ASKED))
    await until(lambda: model.begun)
    others = [runner.submit(make_call(value, outputs=ASKED)) for value in (1, 13, 2)]
    model.let(99)
    _, good, bad, also_good = await asyncio.gather(first, *others)
    assert isinstance(bad.parts[0], ModelFailed)
    assert good.parts[0][BATCH_ID][0] != also_good.parts[0][BATCH_ID][0]


async def test_a_model_without_batch_axis_gives_one_id_a_call(start_runner, fake):
    runner = start_runner(fake(batch_axis=False))
    call = Call({"input-0": np.ones((3, 4))}, (0,), ASKED, {})
    assert len({_ids(await runner.submit(call))[0] for _ in range(2)}) == 2


# -- over HTTP


@pytest.fixture
async def edge(make_edge, gated):
    """Its model waits to be let, and reports."""
    edge = make_edge(gated(refuse_value=14.0))
    route = replace(edge.plane.table.get_revision("iris"), signature=report_batch_id(edge.model.signature))
    edge.plane.table = RouteTable("e", 2, {"iris": ModelRoute("iris", "1", {"1": route})})
    return edge


async def test_replies_are_those_of_kserves_batcher(edge, until):
    bodies = [json.dumps({"instances": [[value, 0, 0, 0]]}).encode() for value in (1, 2, 3)]
    first = asyncio.create_task(edge.post(PREDICT, bodies[0]))
    await until(lambda: edge.model.begun)
    others = [asyncio.create_task(edge.post(PREDICT, body)) for body in bodies[1:]]
    await asyncio.sleep(0.01)
    edge.model.let(9)
    alone, one, two = [(await task).json() for task in (first, *others)]
    assert [call.rows for call in edge.model.calls] == [1, 2]
    assert list(one) == ["message", "batchId", "predictions"]
    assert [reply["predictions"] for reply in (alone, one, two)] == [[1], [2], [3]]
    assert {reply["message"] for reply in (alone, one, two)} == {""}
    assert one["batchId"] == two["batchId"] != alone["batchId"]
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", one["batchId"])


@pytest.mark.parametrize(
    ("body", "name", "value"),
    [
        ({"inputs": [[1, 2, 3, 4]]}, "outputs", [10]),
        ({"instances": [[1, 2, 3, 4]], "outputs": ["output-0", "rows"]}, "predictions", [{"output-0": 10, "rows": 1}]),
        ({"instances": [[1, 2, 3, 4]], "outputs": ["rows", "batchId"]}, "predictions", [1]),
    ],
)
async def test_the_rest_of_the_reply_is_as_ever(edge, body, name, value):
    edge.model.let()
    reply = (await edge.post(PREDICT, json.dumps(body).encode())).json()
    assert reply.pop("batchId")
    assert reply == {"message": "", name: value}


async def test_no_rows_were_in_no_batch(edge):
    reply = await edge.post(PREDICT, b'{"inputs": {"a": [], "b": [], "c": [], "d": []}}')
    assert reply.json() == {"message": "", "batchId": "", "outputs": []}


async def test_errors_are_plain(edge):
    edge.model.let()
    reply = await edge.post(PREDICT, b'{"instances": [[14, 0, 0, 0]]}')
    assert (reply.status_code, list(reply.json())) == (400, ["error"])


async def test_v2_answers_as_ever_and_may_ask(edge):
    edge.model.let(2)
    plain = (await edge.post("/v2/models/iris/infer")).json()
    assert [output["name"] for output in plain["outputs"]] == ["output-0"]
    tensor = {"name": "x", "datatype": "FP64", "shape": [2, 4], "data": [0] * 8}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": "batchId"}]}).encode()
    (output,) = (await edge.post("/v2/models/iris/infer", body)).json()["outputs"]
    assert (output["datatype"], output["shape"], len(set(output["data"]))) == ("BYTES", [2], 1)
