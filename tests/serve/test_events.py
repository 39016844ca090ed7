# SPDX-License-Identifier: Apache-2.0
"""CloudEvents over HTTP: the routes of inference take them, and answer plain requests as ever."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from cloudevents.core.bindings import http as sdk
from cloudevents.core.v1.event import CloudEvent

ROWS = {"instances": [[1, 2, 3, 4]]}
TENSORS = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
MODES = {"binary": sdk.to_binary_event, "structured": sdk.to_structured_event}
ROUTES = [
    ("/v1/models/iris:predict", ROWS, lambda data: data == {"predictions": [10]}),
    ("/v1/models/iris/labels/stable:predict/", ROWS, lambda data: data == {"predictions": [10]}),
    ("/v1/models/iris:explain", ROWS, lambda data: data == {"explanations": [[1, 2, 3, 4, 0]]}),
    ("/v2/models/iris/infer", TENSORS, lambda data: data["outputs"][0]["data"] == [10]),
    ("/v2/models/iris/versions/1/infer", TENSORS, lambda data: data["model_version"] == "1"),
]


def send(mode: str, data: Any) -> tuple[bytes, dict[str, str]]:
    attributes = {"type": "t", "source": "s", "id": "7", "datacontenttype": "application/json", "subject": "mine"}
    message = MODES[mode](CloudEvent(attributes, data))
    return message.body, message.headers


@pytest.fixture
async def edge(make_edge, fake):
    return make_edge(fake(explains=True, refuse_value=14.0, fail_on_value=13.0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("path", "data", "is_right"), ROUTES, ids=[route[0] for route in ROUTES])
async def test_inference_takes_an_event_and_answers_with_one(edge, mode, path, data, is_right):
    reply = await edge.post(path, *send(mode, data))
    assert reply.status_code == 200
    kind = "application/cloudevents+json" if mode == "structured" else "application/json"
    assert reply.headers["content-type"] == kind
    event = sdk.from_http_event(sdk.HTTPMessage(dict(reply.headers), reply.content))
    assert (event.get_type(), event.get_source()) == ("io.kserve.inference.response", "io.kserve.inference.iris")
    assert (event.get_subject(), event.get_id() == "7") == (None, False)
    assert is_right(event.get_data())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("row", "status", "text"),
    [([14, 0, 0, 0], 400, "14 is not"), ([13, 0, 0, 0], 500, "cannot add"), ([1], 400, "[1,1]")],
)
async def test_errors_of_events_are_plain(edge, mode, row, status, text):
    reply = await edge.post("/v1/models/iris:predict", *send(mode, {"instances": [row]}))
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert text in reply.json()["error"]
    assert not [name for name in reply.headers if name.startswith("ce-")]


@pytest.mark.parametrize(
    ("headers", "body", "status", "text"),
    [
        ({"ce-specversion": "1.0"}, ROWS, 400, "attribute id"),
        ({"ce-specversion": "9", "ce-id": "1", "ce-type": "t", "ce-source": "s"}, ROWS, 400, "'specversion'"),
        ({"content-type": "application/cloudevents+json"}, ROWS, 400, "expected data"),
        ({"content-type": "application/cloudevents-batch+json"}, [ROWS], 415, "one event"),
        ({"content-type": "application/cloudevents+xml"}, ROWS, 415, "cloudevents+xml"),
    ],
)
async def test_what_is_no_event_is_told(edge, headers, body, status, text):
    reply = await edge.post("/v1/models/iris:predict", json.dumps(body).encode(), headers)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert text in reply.json()["error"]


async def test_binary_tensors_travel_in_binary_mode(edge):
    document = {
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 4], "parameters": {"binary_data_size": 32}}],
        "outputs": [{"name": "output-0", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(document).encode()
    _, headers = send("binary", {})
    headers |= {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    reply = await edge.post("/v2/models/iris/infer", head + bytes(32), headers)
    assert reply.content[int(reply.headers["inference-header-content-length"]) :] == bytes(8)
    assert reply.headers["ce-type"] == "io.kserve.inference.response"
    asked = {**TENSORS, "parameters": {"binary_data_output": True}}
    refused = await edge.post("/v2/models/iris/infer", *send("structured", asked))
    assert refused.status_code == 400


async def test_a_compressed_event_is_read_and_its_reply_compressed(edge):
    body, headers = send("structured", {"instances": [[1, 2, 3, 4]] * 250})
    headers |= {"content-encoding": "gzip"}
    reply = await edge.post("/v1/models/iris:predict", gzip.compress(body), headers)
    assert reply.headers["content-encoding"] == "gzip"
    assert reply.json()["data"]["predictions"] == [10] * 250


async def test_other_routes_know_nothing_of_events(edge):
    reply = await edge.client.get("/v1/models/iris", headers={"ce-specversion": "9"})
    assert reply.status_code == 200
