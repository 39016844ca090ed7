# SPDX-License-Identifier: Apache-2.0
"""Triton's extensions over HTTP: configuration, statistics, generate, classification, and what there is none of."""

from __future__ import annotations

import json

import pytest

from modelyard.signature import Signature, TensorSpec
from modelyard.testing import FakeModel, FakeOptions

CONFIG, STATS = "/v2/models/iris/config", "/v2/models/iris/stats"
GENERATE, STREAM = "/v2/models/iris/generate", "/v2/models/iris/generate_stream"
ROW = {"input-0": [1, 2, 3, 4]}


async def _post(edge, path: str, document: object):
    return await edge.post(path, json.dumps(document).encode())


def _events(text: str) -> list[dict[str, object]]:
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n") if part]


# -- configuration and statistics


async def test_config_has_the_shapes_without_rows(make_edge):
    config = (await make_edge().client.get(CONFIG)).json()
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("iris", "fake", 64)
    assert (config["input"][0]["data_type"], config["input"][0]["dims"]) == ("TYPE_FP64", [4])
    assert (config["output"][0]["dims"], config["output"][0]["reshape"]) == ([1], {"shape": []})
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    assert "model_transaction_policy" not in config


async def test_config_of_a_decoupled_model(make_edge, fake):
    config = (await make_edge(fake(answers=2)).client.get(CONFIG)).json()
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (0, [-1, 4])
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert "dynamic_batching" not in config


@pytest.mark.parametrize(
    "path", [CONFIG, STATS, "/v2/models/iris/versions/1/config", "/v2/models/iris/versions/1/stats"]
)
async def test_what_is_not_there_is_404(make_edge, path):
    edge = make_edge()
    assert (await edge.client.get(path)).status_code == 200
    assert (await edge.client.get(path.replace("iris", "nope"))).status_code == 404
    assert (await edge.client.get(path.replace("iris", "late"))).status_code == 503


async def test_statistics_count_requests_rows_and_calls(make_edge):
    edge = make_edge()
    three = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [3, 4], "data": [0.0] * 12}]}
    for body in (three, three):
        await _post(edge, "/v2/models/iris/infer", body)
    await _post(edge, "/v2/models/iris/infer", json.loads(json.dumps(three).replace("0.0", "13.0")))
    (counts,) = (await edge.client.get(STATS)).json()["model_stats"]
    stats = counts["inference_stats"]
    assert (counts["inference_count"], counts["execution_count"]) == (6, 3)
    assert (stats["success"]["count"], stats["fail"]["count"], stats["queue"]["count"]) == (2, 1, 2)
    assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] > 0
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in counts["batch_stats"]] == [(3, 2)]
    assert counts["last_inference"] > 1_700_000_000_000


async def test_statistics_of_large_calls_do_not_grow_without_end(make_edge, make_call):
    edge = make_edge(max_batch_size=4096)
    for rows in (1023, 1024, 1025, 1500, 2048, 2049):
        await edge.plane._transport._runner.submit(make_call(*[1.0] * rows))
    (stats,) = (await edge.client.get(STATS)).json()["model_stats"]
    assert [(b["batch_size"], b["compute_infer"]["count"]) for b in stats["batch_stats"]] == [
        (1023, 1),
        (1024, 1),
        (2048, 3),
        (4096, 1),
    ]
    assert stats["inference_count"] == 1023 + 1024 + 1025 + 1500 + 2048 + 2049


async def test_statistics_of_all_are_those_of_the_ready_ones(make_edge):
    found = (await make_edge().client.get("/v2/models/stats")).json()["model_stats"]
    assert [(one["name"], one["version"]) for one in found] == [("iris", "1"), ("iris", "2"), ("a.b-c_d", "1")]


# -- generate


async def test_generate_answers_with_one_flat_object(make_edge):
    reply = await _post(make_edge(), GENERATE, {**ROW, "id": "7"})
    assert reply.json() == {"id": "7", "model_name": "iris", "model_version": "2", "output-0": 10.0}


async def test_generate_takes_columns_and_nested_parameters(make_edge):
    edge = make_edge()
    assert (await _post(edge, GENERATE, {"a": 1, "b": 2, "c": 3, "parameters": {"d": 4}})).json()["output-0"] == 10.0


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ([1], "expected an object"),
        ({}, '"input-0" is missing'),
        ({"input-0": "text"}, 'input "input-0"[0]: expected a number'),
        ({"input-0": [1, 2, 3]}, "expected 4 elements"),
        ({**ROW, "other": [1]}, '"other", which is no input of the model: expected a string, number or boolean'),
        ({**ROW, "other": None}, "got null"),
        ({**ROW, "id": 7}, "id: expected a string, got 7"),
        ({**ROW, "parameters": 7}, "parameters: expected an object"),
        ({**ROW, "parameters": ROW}, 'input "input-0" is given twice'),
        ({**ROW, "priority": -1}, 'parameter "priority"'),
    ],
)
@pytest.mark.parametrize("path", [GENERATE, STREAM])
async def test_a_wrong_body_is_told_before_anything_is_sent(make_edge, path, document, text):
    reply = await _post(make_edge(), path, document)
    assert reply.status_code == 400
    assert text in reply.json()["error"]


@pytest.mark.parametrize("answers", [0, 2])
async def test_generate_wants_exactly_one_answer(make_edge, fake, answers):
    reply = await _post(make_edge(fake(answers=answers)), GENERATE, ROW)
    assert reply.status_code == 400
    assert "use generate_stream" in reply.json()["error"]


async def test_generate_of_a_decoupled_model_with_one_answer(make_edge, fake):
    assert (await _post(make_edge(fake(answers=1)), GENERATE, ROW)).json()["output-0"] == 10.0


async def test_a_decoupled_model_has_no_infer(make_edge, fake):
    reply = await make_edge(fake(answers=1)).post("/v2/models/iris/infer")
    assert reply.status_code == 501
    assert "generate_stream" in reply.json()["error"]


async def test_each_answer_is_an_event(make_edge, fake):
    reply = await _post(make_edge(fake(answers=3)), STREAM, {**ROW, "id": "7"})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = _events(reply.text)
    assert [event["output-0"] for event in events] == [10.0, 11.0, 12.0]
    assert {event["id"] for event in events} == {"7"}


async def test_an_ordinary_model_streams_its_one_answer(make_edge):
    assert [event["output-0"] for event in _events((await _post(make_edge(), STREAM, ROW)).text)] == [10.0]


async def test_no_answer_is_an_empty_stream(make_edge, fake):
    reply = await _post(make_edge(fake(answers=0)), STREAM, ROW)
    assert (reply.status_code, reply.text) == (200, "")


async def test_an_error_after_the_first_answer_is_the_last_event(make_edge, fake):
    reply = await _post(make_edge(fake(answers=3, fail_after=1)), STREAM, ROW)
    assert reply.status_code == 200
    first, last = _events(reply.text)
    assert (first["output-0"], last["error"]) == (10.0, 'model "m" failed: ArithmeticError: cannot count beyond 1')


async def test_an_error_before_the_first_answer_is_a_status(make_edge, fake):
    reply = await _post(make_edge(fake(answers=3, fail_after=0)), STREAM, ROW)
    assert reply.status_code == 500
    assert "cannot count beyond 0" in reply.json()["error"]


# -- classification and priority


class Classifier(FakeModel):
    """Gives back its input as scores of four classes."""

    def __init__(self) -> None:
        super().__init__(0.0, FakeOptions())
        self._signature = Signature(
            inputs=(TensorSpec("input-0", "FP64", (-1, 4)),),
            outputs=(TensorSpec("scores", "FP64", (-1, 4)),),
            labels={"scores": ("cat", "dog", "bird")},
        )

    def predict(self, inputs, outputs, parameters):
        return {"scores": inputs["input-0"]}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["4.000000:3"]),
        (3, ["4.000000:3", "3.000000:2:bird", "2.000000:1:dog"]),
        (9, ["4.000000:3", "3.000000:2:bird", "2.000000:1:dog", "1.000000:0:cat"]),
    ],
)
async def test_classification_gives_the_best_classes(make_edge, count, expected):
    body = {
        "inputs": [{"name": "input-0", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4]}],
        "outputs": [{"name": "scores", "parameters": {"classification": count}}],
    }
    (output,) = (await _post(make_edge(Classifier()), "/v2/models/iris/infer", body)).json()["outputs"]
    assert (output["datatype"], output["shape"], output["data"]) == ("BYTES", [1, len(expected)], expected)


async def test_no_rows_have_no_classes(make_edge):
    body = {
        "inputs": [{"name": "input-0", "datatype": "FP64", "shape": [0, 4], "data": []}],
        "outputs": [{"name": "scores", "parameters": {"classification": 2}}],
    }
    (output,) = (await _post(make_edge(Classifier()), "/v2/models/iris/infer", body)).json()["outputs"]
    assert (output["datatype"], output["shape"], output["data"]) == ("BYTES", [0, 2], [])


@pytest.mark.parametrize("count", [-1, "2", 2.0, True])
async def test_a_wrong_number_of_classes_is_told(make_edge, count):
    body = {
        "inputs": [{"name": "input-0", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4]}],
        "outputs": [{"name": "scores", "parameters": {"classification": count}}],
    }
    reply = await _post(make_edge(Classifier()), "/v2/models/iris/infer", body)
    assert reply.status_code == 400
    assert "expected a number of classes" in reply.json()["error"]


# -- what there is none of


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("GET", "/v2/systemsharedmemory/status", "shared memory"),
        ("POST", "/v2/systemsharedmemory/region/r/register", "shared memory"),
        ("POST", "/v2/cudasharedmemory/unregister", "shared memory"),
        ("GET", "/v2/trace/setting", "trace settings"),
        ("POST", "/v2/models/iris/trace/setting", "trace settings"),
        ("GET", "/v2/logging", "log settings"),
        ("POST", "/v2/logging", "log settings"),
    ],
)
async def test_what_there_is_none_of_says_so(make_edge, method, path, text):
    reply = await make_edge().client.request(method, path)
    assert reply.status_code == 501
    assert text in reply.json()["error"]
