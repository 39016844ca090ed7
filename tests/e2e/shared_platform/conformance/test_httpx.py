# SPDX-License-Identifier: Apache-2.0
"""The routes of v1 and v2 by httpx alone: what a client written from the specification sends and reads."""

from __future__ import annotations

import json
import struct
from typing import Any

import httpx
import numpy as np
import pytest
from answers import Answers
from platform_process import PlatformProcess

each_version = pytest.mark.parametrize("version", ["", "/versions/1"])
FEATURES = {"name": "features", "shape": [1, 4], "datatype": "FP64", "data": [1, 2, 3, 4]}
SCORES = [1.0, 4.0, 13.0]


def test_v1_lists_the_models_and_says_of_each_that_it_is_ready(http: httpx.Client, platform: PlatformProcess) -> None:
    assert set(http.get("/v1/models").json()["models"]) >= set(platform.models)
    for path in ("/v1/models/housing", "/v1/models/housing/versions/1", "/v1/models/housing/labels/stable"):
        found = http.get(path).json()
        assert (found["name"], found["ready"]) == ("housing", True)
        assert [entry["state"] for entry in found["model_version_status"]] == ["AVAILABLE"]


@each_version
def test_v1_explains(http: httpx.Client, version: str) -> None:
    reply = http.post(f"/v1/models/scores{version}:explain", json={"instances": [[1, 2, 3, 4]]})
    assert np.sum(reply.json()["explanations"], axis=2).tolist() == [SCORES]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/models/nobody:predict", {"instances": [[1, 2, 3, 4]]}, 404),
        ("/v1/models/scores:predict", {"rows": [[1, 2, 3, 4]]}, 400),
        ("/v1/models/iris-sklearn:explain", {"instances": [[1, 2, 3, 4]]}, 501),
        ("/v2/models/nobody/infer", {"inputs": [FEATURES]}, 404),
        ("/v2/models/scores/versions/7/infer", {"inputs": [FEATURES]}, 404),
        ("/v2/models/scores/infer", {"inputs": [FEATURES | {"shape": [2, 4]}]}, 400),
        ("/v2/models/scores/infer", {"inputs": [FEATURES], "outputs": [{"name": "none"}]}, 400),
    ],
)
def test_a_mistake_has_its_status_and_one_sentence(http: httpx.Client, path: str, body: Any, status: int) -> None:
    reply = http.post(path, json=body)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])


def test_v2_describes_the_server(http: httpx.Client) -> None:
    found = http.get("/v2").json()
    assert found["name"] == "modelyard"
    assert {"binary_tensor_data", "classification", "model_repository", "statistics"} <= set(found["extensions"])
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}


@each_version
def test_v2_describes_a_model(http: httpx.Client, version: str) -> None:
    found = http.get(f"/v2/models/scores{version}").json()
    assert found["inputs"] == [{"name": "features", "datatype": "FP64", "shape": [-1, 4]}]
    assert found["versions"] == ["1"]
    assert http.get(f"/v2/models/scores{version}/ready").status_code == 200


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2, 3, 4]]], ids=["flat", "nested"])
@each_version
def test_v2_answers_json_with_json(http: httpx.Client, version: str, data: Any) -> None:
    reply = http.post(f"/v2/models/scores{version}/infer", json={"id": "42", "inputs": [FEATURES | {"data": data}]})
    found = reply.json()
    assert (found["id"], found["model_name"], found["model_version"]) == ("42", "scores", "1")
    assert found["outputs"] == [{"name": "output-0", "datatype": "FP64", "shape": [1, 3], "data": SCORES}]


def test_v2_gives_the_outputs_asked_for_in_their_order(http: httpx.Client) -> None:
    outputs = [{"name": "contributions"}, {"name": "output-0"}]
    found = http.post("/v2/models/scores/infer", json={"inputs": [FEATURES], "outputs": outputs}).json()
    assert [output["name"] for output in found["outputs"]] == ["contributions", "output-0"]


def test_v2_takes_and_gives_binary_tensors(http: httpx.Client) -> None:
    tensor = {key: value for key, value in FEATURES.items() if key != "data"} | {"parameters": {"binary_data_size": 32}}
    outputs = [{"name": "output-0", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    reply = http.post(
        "/v2/models/scores/infer",
        content=head + struct.pack("<4d", 1, 2, 3, 4),
        headers={"Inference-Header-Content-Length": str(len(head)), "content-type": "application/octet-stream"},
    )
    length = int(reply.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(reply.content[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": 24}
    assert struct.unpack("<3d", reply.content[length:]) == tuple(SCORES)


def test_v2_takes_a_raw_body_as_the_only_input(http: httpx.Client) -> None:
    headers = {"Inference-Header-Content-Length": "0", "content-type": "application/octet-stream"}
    reply = http.post("/v2/models/scores/infer", content=struct.pack("<4d", 1, 2, 3, 4), headers=headers)
    length = int(reply.headers["Inference-Header-Content-Length"])
    assert struct.unpack("<3d", reply.content[length:]) == tuple(SCORES)


@each_version
def test_v2_generates_one_answer_or_a_stream_of_events(http: httpx.Client, version: str) -> None:
    one = http.post(f"/v2/models/words{version}/generate", json={"text_input": "a"})
    assert one.json()["text_output"] == "a"
    with http.stream("POST", f"/v2/models/words{version}/generate_stream", json={"text_input": "a b"}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in reply.iter_lines() if line]
    assert [event["text_output"] for event in events] == ["a", "b"]


@pytest.mark.parametrize("path", ["/v2/trace/setting", "/v2/logging", "/v2/systemsharedmemory/status"])
def test_what_v2_does_not_support_is_501_with_the_reason(http: httpx.Client, path: str) -> None:
    reply = http.get(path)
    assert (reply.status_code, list(reply.json())) == (501, ["error"])


@pytest.mark.parametrize("path", ["/v2/models/housing/", "/v1/models/housing/"])
def test_a_trailing_slash_changes_nothing(http: httpx.Client, path: str) -> None:
    assert http.get(path).json() == http.get(path.rstrip("/")).json()


def test_answers_of_both_protocols_are_the_same(http: httpx.Client, answers: dict[str, Answers]) -> None:
    rows = answers["iris-xgboost"].inputs["input-0"]
    v1 = http.post("/v1/models/iris-xgboost:predict", json={"instances": rows.tolist()}).json()["predictions"]
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP32", "data": rows.tolist()}
    v2 = http.post("/v2/models/iris-xgboost/infer", json={"inputs": [tensor]}).json()["outputs"][0]
    np.testing.assert_array_equal(np.reshape(v2["data"], v2["shape"]), v1)
