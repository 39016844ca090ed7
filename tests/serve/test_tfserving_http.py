# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Serving's REST over models with signatures of SavedModels, and what the others answer there."""

from __future__ import annotations

import json

import httpx
import pytest

from modelyard.protocol.tfserving.examples import CLASSIFY
from modelyard.protos import tensorflow_pb2 as tf
from modelyard.serve.examples import ExampleHandlers
from modelyard.serve.http import make_app
from modelyard.serve.v1 import V1Handlers
from modelyard.serve.v2 import V2Handlers


class Edge:
    """The HTTP surface over these models."""

    def __init__(self, plane) -> None:
        self.transport = plane.transport
        handlers = (V2Handlers(plane, lambda: True), V1Handlers(plane), ExampleHandlers(plane))
        app = make_app([route for group in handlers for route in group.routes()], 4096, _no_lifespan)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge")

    async def post(self, path: str, body: object) -> httpx.Response:
        return await self.client.post(f"/v1/models/{path}", content=json.dumps(body).encode())


def _no_lifespan(_app: object) -> None:
    raise NotImplementedError


@pytest.fixture
def edge(saved_plane) -> Edge:
    return Edge(saved_plane)


WHERE = ["", "/versions/123", "/versions/00000123", "/labels/stable"]


@pytest.mark.parametrize("where", WHERE)
async def test_predict_as_in_tensorflow_servings_documentation(edge, where):
    reply = await edge.post(f"half{where}:predict", {"instances": [1.0, 2.0, 5.0]})
    assert (reply.text, reply.headers["content-type"]) == ('{"predictions":[2.5,3.0,4.5]}', "application/json")
    reply = await edge.post(f"half{where}:predict", {"signature_name": "serving_default", "inputs": {"x": [1.0, 2.0]}})
    assert reply.text == '{"outputs":[2.5,3.0]}'


async def test_a_last_dimension_of_one_may_be_left_out(edge):
    assert (await edge.post("column:predict", {"instances": [1.0, 2.0, 5.0]})).text == '{"predictions":[2.5,3.0,4.5]}'
    assert (await edge.post("column:predict", {"instances": [[1.0]]})).text == '{"predictions":[[2.5]]}'
    assert [call.inputs["x"].shape for call in edge.transport.calls] == [(3, 1), (1, 1)]


async def test_the_request_chooses_the_signature(edge):
    body = {"signature_name": "two", "instances": [{"a": 1, "b": "x"}, {"a": 2, "b": {"b64": "/w=="}}]}
    reply = await edge.post("half:predict", body)
    assert reply.json() == {
        "predictions": [{"sum": 2, "raw_bytes": {"b64": "eA=="}}, {"sum": 3, "raw_bytes": {"b64": "/w=="}}]
    }
    assert edge.transport.calls[0].member == "two"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (
            "half:predict",
            {"signature_name": "no", "instances": [1]},
            400,
            'signature name: "no" not found in signature',
        ),
        ("half:predict", {"signature_name": 5, "instances": [1]}, 400, "signature_name: expected a string"),
        ("half:predict", {"instances": [1], "inputs": [1]}, 400, "expecting only one of"),
        ("half:predict", {"instances": ["1"]}, 400, "expected a number (FP32)"),
        ("half:predict", {"instances": [[1]], "outputs": ["z"]}, 400, 'unknown requested output "z"'),
        ("half/versions/124:predict", {"instances": [1]}, 503, "it starts"),
        ("half/versions/9:predict", {"instances": [1]}, 404, "9"),
        ("half/labels/canary:predict", {"instances": [1]}, 404, "canary"),
        ("nope:predict", {"instances": [1]}, 404, "nope"),
        ("named:predict", {"signature_name": "no", "instances": [1]}, 400, 'expected "serving_default", "two"'),
        ("half:classify", {"examples": [{"x": 1.0}]}, 400, "expected one classification input"),
        ("half:classify", {"signature_name": "no", "examples": [{"x": 1.0}]}, 400, '"no" not found'),
        ("half:classify", {"signature_name": "regress", "examples": [{}]}, 400, "expected classification outputs"),
        ("half:regress", {"signature_name": "regress"}, 400, "key 'examples' is expected"),
        ("half:regress", {"signature_name": "regress", "examples": []}, 400, "empty array"),
        ("half/versions/124:classify", {"examples": [{"x": 1.0}]}, 503, "it starts"),
        ("nope:regress", {"examples": [{}]}, 404, "nope"),
        ("plain:classify", {"examples": [{"x": 1.0}]}, 501, 'model "plain" has no classification signature'),
        ("plain:regress", {"examples": [{"x": 1.0}]}, 501, 'model "plain" has no regression signature'),
        ("half:classify", [], 400, "expected an object"),
    ],
)
async def test_what_is_wrong_is_told(edge, path, body, status, message):
    reply = await edge.post(path, body)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert message in reply.json()["error"]


async def test_examples_that_grow_with_their_context_are_413(edge):
    body = {"signature_name": "regress", "context": {"a": "x" * 1000}, "examples": [{}] * 100}
    assert (await edge.post("half:regress", body)).status_code == 413


@pytest.mark.parametrize("where", WHERE)
async def test_classify_and_regress_answer_results(edge, where):
    body = {"signature_name": "classify", "context": {"n": 1}, "examples": [{"x": 1.0}, {"x": [2.5, 7.0]}]}
    reply = await edge.post(f"half{where}:classify", body)
    assert reply.text == '{"results":[[["low",2.5],["high",-1.5]],[["low",3.25],["high",-2.25]]]}'
    reply = await edge.post(f"half{where}:regress", {**body, "signature_name": "regress"})
    assert reply.text == '{"results":[2.5,3.25]}'
    first, second = edge.transport.calls
    assert (first.outputs, second.outputs, first.rows) == (("classes", "scores"), ("outputs",), (2,))
    assert tf.Example.FromString(first.inputs["inputs"][0]).features.feature["n"].int64_list.value == [1]


async def test_models_of_other_frameworks_keep_kserves_leniency(edge):
    for body in ({"instances": [1, None]}, {"instances": [1], "signature_name": "no such"}, {"inputs": [{"x": 1}]}):
        assert (await edge.post("plain:predict", body)).status_code == 200


async def test_signatures_of_other_frameworks_are_chosen_by_name_too(edge):
    body = {"signature_name": "two", "instances": [[1, "x"], [2, "y"]]}  # positional: KServe's leniency
    reply = await edge.post("named:predict", body)
    assert reply.json() == {"predictions": [{"sum": 2, "raw_bytes": "x"}, {"sum": 3, "raw_bytes": "y"}]}
    assert (await edge.post("named:predict", {"instances": [1]})).json() == {"predictions": [2.5]}


async def test_ids_of_batches_go_with_answers_of_savedmodels(edge):
    reply = await edge.post("batched:predict", {"instances": [1]})
    assert reply.text == '{"message":"","batchId":"7","predictions":[2.5]}'


async def test_v2_chooses_a_signature_by_parameter(edge):
    tensors = [
        {"name": "a", "shape": [1], "datatype": "INT32", "data": [1]},
        {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["x"]},
    ]
    body = {"inputs": tensors, "parameters": {"signature_name": "two"}}
    reply = await edge.client.post("/v2/models/half/infer", json=body)
    assert {output["name"]: output["data"] for output in reply.json()["outputs"]} == {"sum": [2], "raw_bytes": ["x"]}
    assert edge.transport.calls[0].parameters == {}
    reply = await edge.client.post("/v2/models/half/infer", json={**body, "parameters": {"signature_name": "no"}})
    assert (reply.status_code, '"no" not found' in reply.json()["error"]) == (400, True)


@pytest.mark.parametrize("where", WHERE)
async def test_metadata_has_every_signature(edge, where):
    document = (await edge.client.get(f"/v1/models/half{where}/metadata")).json()
    assert document["model_spec"] == {"name": "half", "signature_name": "", "version": "123"}
    found = document["metadata"]["signature_def"]["signature_def"]
    assert list(found) == ["serving_default", "two", "classify", "regress"]
    assert found["serving_default"]["inputs"]["x"]["name"] == "serving_default_x:0"
    assert found["classify"]["method_name"] == CLASSIFY


async def test_the_status_has_every_version(edge):
    versions = (await edge.client.get("/v1/models/half")).json()["model_version_status"]
    assert [(one["version"], one["state"]) for one in versions] == [("123", "AVAILABLE"), ("124", "LOADING")]
    assert versions[0]["status"] == {"error_code": "OK", "error_message": ""}
    one = await edge.client.get("/v1/models/half/versions/124")
    assert (one.status_code, one.json()["model_version_status"][0]["state"]) == (503, "LOADING")
