# SPDX-License-Identifier: Apache-2.0
"""KServe's, TensorFlow Serving's and OpenAI's routes on /v1, over a model in this process."""

from __future__ import annotations

import json

import openai
import pytest

ROWS = json.dumps({"instances": [[1, 2, 3, 4], [5, 6, 7, 8]]}).encode()
EXPLAIN = "/v1/models/iris:explain"
EXPLAINED = {"explanations": [[1, 2, 3, 4, 0], [5, 6, 7, 8, 0]]}

WHERE = ["", "/versions/1", "/versions/2", "/versions/stable", "/labels/stable"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("slash", ["", "/"])
async def test_explanations_are_the_models(make_edge, fake, where, slash):
    edge = make_edge(fake(explains=True))
    assert (await edge.post(f"/v1/models/iris{where}:explain{slash}", ROWS)).json() == EXPLAINED
    assert [call.outputs for call in edge.model.calls] == [("contributions",)]


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        {"inputs": {"a": [1, 5], "b": [2, 6], "c": [3, 7], "d": [4, 8]}},
        {"instances": [{"a": 1, "b": 2, "c": 3, "d": 4}, {"a": 5, "b": 6, "c": 7, "d": 8}]},
        {"instances": [[1, 2, 3, 4], [5, 6, 7, 8]], "outputs": ["contributions"], "signature_name": "serving_default"},
    ],
)
async def test_explain_takes_what_predict_takes(make_edge, fake, body):
    assert (await make_edge(fake(explains=True)).post(EXPLAIN, json.dumps(body).encode())).json() == EXPLAINED


async def test_contributions_are_an_output_of_predict_and_v2_too(make_edge, fake):
    edge = make_edge(fake(explains=True))
    v1 = {"instances": [[1, 2, 3, 4]], "outputs": ["output-0", "contributions"]}
    reply = await edge.post("/v1/models/iris:predict", json.dumps(v1).encode())
    assert reply.json() == {"predictions": [{"output-0": 10, "contributions": [1, 2, 3, 4, 0]}]}
    tensor = {"name": "x", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4]}
    v2 = {"inputs": [tensor], "outputs": [{"name": "contributions"}]}
    (output,) = (await edge.post("/v2/models/iris/infer", json.dumps(v2).encode())).json()["outputs"]
    assert (output["shape"], output["data"]) == ([1, 5], [1, 2, 3, 4, 0])


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        (EXPLAIN, b"{", 400, "not JSON"),
        (EXPLAIN, b'{"instances": [[1, 2]]}', 400, "expected FP64 [-1,4]"),
        (EXPLAIN, b'{"instances": [[1, 2, 3, 4]], "outputs": ["output-0"]}', 400, '"output-0" is no explanation'),
        (EXPLAIN, b'{"instances": [[14, 2, 3, 4]]}', 400, "14 is not a value"),
        (EXPLAIN, b'{"instances": [[13, 2, 3, 4]]}', 500, "ArithmeticError"),
        ("/v1/models/nope:explain", ROWS, 404, "nope"),
        ("/v1/models/late:explain", ROWS, 503, "it starts"),
        ("/v1/models/iris/labels/canary:explain", ROWS, 404, "canary"),
    ],
)
async def test_a_fault_of_explain_is_told(make_edge, fake, path, body, status, text):
    edge = make_edge(fake(explains=True, fail_on_value=13.0, refuse_value=14.0))
    reply = await edge.post(path, body)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert text in reply.json()["error"]


async def test_a_model_without_explanations_is_501(make_edge):
    reply = await make_edge().post(EXPLAIN, ROWS)
    assert (reply.status_code, reply.json()) == (501, {"error": 'model "iris" (fake) cannot explain its answers'})


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("slash", ["", "/"])
async def test_metadata_is_under_every_version_and_label(make_edge, where, slash):
    reply = await make_edge().client.get(f"/v1/models/iris{where}/metadata{slash}")
    version = "1" if where == "/versions/1" else "2"
    assert reply.json()["model_spec"] == {"name": "iris", "signature_name": "", "version": version}
    definition = reply.json()["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert [dim["size"] for dim in definition["inputs"]["input-0"]["tensor_shape"]["dim"]] == ["-1", "4"]
    assert definition["outputs"]["output-0"]["dtype"] == "DT_DOUBLE"


@pytest.mark.parametrize(("where", "versions"), [("", ["1", "2"]), ("/versions/1", ["1"]), ("/labels/stable", ["2"])])
async def test_the_status_lists_the_versions_asked_for(make_edge, where, versions):
    document = (await make_edge().client.get(f"/v1/models/iris{where}")).json()
    assert (document["name"], document["ready"], document["created"]) == ("iris", True, 1_700_000_000)
    assert [version["version"] for version in document["model_version_status"]] == versions
    assert {version["state"] for version in document["model_version_status"]} == {"AVAILABLE"}


@pytest.mark.parametrize(
    ("model", "state", "code", "reason"), [("late", "LOADING", "OK", "it starts"), ("bad", "END", "UNKNOWN", "no such")]
)
async def test_a_model_that_is_not_ready_is_503_with_its_state(make_edge, model, state, code, reason):
    edge = make_edge()
    reply = await edge.client.get(f"/v1/models/{model}")
    document = reply.json()
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    assert (document["name"], document["ready"], document["id"]) == (model, False, model)
    assert f'model "{model}" is not ready: {reason}' in document["error"]
    (version,) = document["model_version_status"]
    assert (version["state"], version["status"]["error_code"]) == (state, code)
    head = await edge.client.head(f"/v1/models/{model}")
    assert (head.status_code, head.content) == (503, b"")


@pytest.mark.parametrize("path", ["/v1/models/nope", "/v1/models/iris/versions/9", "/v1/models/nope/metadata"])
async def test_the_status_of_what_is_not_there_is_404(make_edge, path):
    reply = await make_edge().client.get(path)
    assert (reply.status_code, list(reply.json())) == (404, ["error"])


# -- the paths that KServe, TensorFlow Serving and OpenAI share


@pytest.fixture
async def openai_client(make_edge):
    async with openai.AsyncOpenAI(
        base_url="http://edge/v1", api_key="none", http_client=make_edge().client, max_retries=0
    ) as client:
        yield client


async def test_openais_client_lists_and_retrieves_models(openai_client):
    listed = {model.id: model async for model in await openai_client.models.list()}
    assert set(listed) == {"iris", "a.b-c_d", "late", "bad"}
    found = await openai_client.models.retrieve("iris")
    assert (found.id, found.object, found.owned_by) == ("iris", "model", "modelyard")
    assert (found.created, listed["iris"].created, listed["iris"].object) == (1_700_000_000, 1_700_000_000, "model")


@pytest.mark.parametrize(
    ("model", "error", "body"),
    [
        ("nope", openai.NotFoundError, 'model "nope" is not found'),
        ("late", openai.InternalServerError, 'model "late" is not ready: it starts'),
    ],
)
async def test_openais_client_raises_its_own_errors(openai_client, model, error, body):
    with pytest.raises(error) as caught:
        await openai_client.models.retrieve(model)
    assert caught.value.body == body


async def test_kserves_client_finds_its_fields_where_openais_does(make_edge):
    client = make_edge().client
    listed = (await client.get("/v1/models")).json()
    assert listed["models"] == [model["id"] for model in listed["data"]]
    one = (await client.get("/v1/models/iris")).json()
    assert {"name", "ready", "id", "object", "created", "owned_by", "model_version_status"} == one.keys()
