# SPDX-License-Identifier: Apache-2.0
"""The HTTP edge over a data plane whose transport is a runner in this process: each kind of fault, and the paths."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from modelyard.serve.edge import SHORT_WAY

MAX_BODY_BYTES = 4096
"""Of the edge under test."""
V2 = {"inputs": [{"name": "input-0", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


def _v2(**changes: object) -> bytes:
    return json.dumps({"inputs": [{**V2["inputs"][0], **changes}]}).encode()


def _check_error(reply: httpx.Response, status: int, text: str) -> None:
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
    assert set(reply.json()) == {"error"}
    assert text in reply.json()["error"]
    assert ("retry-after" in reply.headers) == (status in (429, 503))


INFER, PREDICT = "/v2/models/iris/infer", "/v1/models/iris:predict"

FAULTS = [
    (INFER, b"", 400, "it is empty"),
    (INFER, b"{", 400, "not JSON"),
    (INFER, b"[]", 400, "expected an object"),
    (INFER, b"{}", 400, "inputs"),
    (INFER, b'{"inputs": []}', 400, '"input-0" is missing'),
    (INFER, b"[" * 3000, 400, "not JSON"),
    (INFER, b'{"inputs": "\xff"}', 400, "not JSON"),
    (INFER, _v2(datatype="FP63"), 400, "FP63"),
    (INFER, _v2(datatype="BYTES", data=["a"] * 4), 400, "expected FP64 [-1,4], got BYTES [1,4]"),
    (INFER, _v2(shape=[2, 4]), 400, "8"),
    (INFER, _v2(shape=[1, 3], data=[1, 2, 3]), 400, "expected FP64 [-1,4], got FP64 [1,3]"),
    (INFER, _v2(data=[1, 2, "x", 4]), 400, "input-0"),
    (INFER, json.dumps({**V2, "outputs": [{"name": "nope"}]}).encode(), 400, "nope"),
    (INFER, json.dumps({**V2, "parameters": {"timeout": -1}}).encode(), 400, "timeout"),
    (INFER, json.dumps({"inputs": V2["inputs"] * 2}).encode(), 400, "input-0"),
    (INFER, _v2(data=[14, 0, 0, 0]), 400, "14 is not a value"),
    (INFER, _v2(data=[13, 0, 0, 0]), 500, "ArithmeticError: cannot add up 13"),
    (INFER, b" " * (MAX_BODY_BYTES + 1), 413, f"expected at most {MAX_BODY_BYTES} bytes"),
    (PREDICT, b"{", 400, "not JSON"),
    (PREDICT, b"{}", 400, "instances"),
    (PREDICT, b'{"instances": [[1, 2, 3]]}', 400, "expected FP64 [-1,4]"),
    (PREDICT, b'{"instances": [["a", 2, 3, 4]]}', 400, "instances"),
    (PREDICT, b'{"instances": [[1, 2, 3, 4]], "inputs": []}', 400, "inputs"),
    (PREDICT, b'{"instances": [[13, 2, 3, 4]]}', 500, "ArithmeticError"),
    ("/v2/models/nope/infer", None, 404, 'model "nope" is not found'),
    ("/v1/models/nope:predict", None, 404, 'model "nope" is not found'),
    ("/v2/models/iris/versions/9/infer", None, 404, 'model "iris" has no version "9"'),
    ("/v1/models/iris/versions/9:predict", None, 404, 'has no version "9"'),
    ("/v1/models/iris/labels/canary:predict", None, 404, 'has no version "canary"'),
    ("/v2/models/late/infer", None, 503, "it starts"),
    ("/v1/models/bad:predict", None, 503, "no such file"),
    ("/v2/models/iris/inferno", None, 404, "no such path"),
    ("/v3", None, 404, "no such path"),
]


@pytest.mark.parametrize(("path", "body", "status", "text"), FAULTS)
async def test_a_fault_is_told_and_the_next_request_answered(make_edge, path, body, status, text):
    edge = make_edge()
    _check_error(await edge.post(path, body), status, text)
    assert (await edge.post(INFER)).json()["outputs"][0]["data"] == [10]


@pytest.mark.parametrize(
    ("headers", "status", "text"),
    [
        ({"content-type": "text/csv"}, 415, "text/csv"),
        ({"content-encoding": "br"}, 415, "br"),
        ({"x-request-timeout-ms": "soon"}, 400, '"soon"'),
        ({"x-request-timeout-ms": "0"}, 400, "x-request-timeout-ms"),
        ({"x-request-timeout-ms": "nan"}, 400, "x-request-timeout-ms"),
        ({"x-request-timeout-ms": "inf"}, 400, "x-request-timeout-ms"),
        ({"inference-header-content-length": "-1"}, 400, "Inference-Header-Content-Length"),
        ({"inference-header-content-length": "9" * 5000}, 400, "Inference-Header-Content-Length"),
        ({"inference-header-content-length": "99999"}, 400, "99999"),
        ({"content-length": "9" * 5000}, 413, "request body"),
        ({"content-length": "99999"}, 413, "got 99999"),
    ],
)
async def test_a_wrong_header_is_told(make_edge, headers, status, text):
    edge = make_edge()
    _check_error(await edge.post(INFER, None, headers), status, text)
    assert (await edge.post(INFER)).status_code == 200


@pytest.mark.parametrize(
    "kind",
    [None, "application/json", "Application/JSON; charset=utf-8", "application/x-www-form-urlencoded",
     "application/octet-stream", "application/vnd.api+json"],
)  # fmt: skip
async def test_json_is_read_whatever_a_client_calls_it(make_edge, kind):
    headers = {} if kind is None else {"content-type": kind}
    assert (await make_edge().post(PREDICT, None, headers)).json() == {"predictions": [10]}


async def test_a_body_without_length_is_limited_too(make_edge):
    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b" " * 1000
        yield json.dumps(V2).encode()

    edge = make_edge()
    assert (await edge.client.post(INFER, content=chunks(3))).status_code == 200
    _check_error(await edge.client.post(INFER, content=chunks(9)), 413, "got more")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", INFER, "POST"),
        ("PUT", PREDICT, "POST"),
        ("POST", "/v2", "GET, HEAD"),
        ("DELETE", "/v2/models/iris", "GET, HEAD"),
        ("POST", "/v2/health/live", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_405_and_names_the_right_one(make_edge, method, path, allow):
    reply = await make_edge().client.request(method, path)
    _check_error(reply, 405, f"{method} {path}: expected {allow}")
    assert reply.headers["allow"] == allow


async def test_a_full_queue_is_429_with_retry_after(make_edge, gated, until):
    edge = make_edge(gated(), max_batch_size=1, max_queued=1)
    running = asyncio.create_task(edge.post(INFER))
    await until(lambda: edge.model.begun)
    waiting = asyncio.create_task(edge.post(INFER))
    await asyncio.sleep(0.005)
    refused = await edge.post(INFER)
    _check_error(refused, 429, "at most 1 waiting")
    assert refused.headers["retry-after"] == "1"
    edge.model.let(9)
    assert [(await task).status_code for task in (running, waiting)] == [200, 200]


@pytest.mark.parametrize("by", ["header", "parameter"])
async def test_a_passed_deadline_is_504(make_edge, gated, by):
    edge = make_edge(gated())
    headers = {"x-request-timeout-ms": "20"} if by == "header" else {}
    body = json.dumps({**V2, "parameters": {"timeout": 20_000}} if by == "parameter" else V2).encode()
    _check_error(await edge.post(INFER, body, headers), 504, "no answer within 0.02 s")
    edge.model.let(99)
    assert (await edge.post(INFER)).status_code == 200


async def test_one_poisoned_request_of_many_fails_alone(make_edge):
    edge = make_edge()
    bodies = [json.dumps({"instances": [[value, 0, 0, 0]]}).encode() for value in (1, 13, 2, 14, 3)]
    replies = await asyncio.gather(*[edge.post(PREDICT, body) for body in bodies])
    assert [reply.status_code for reply in replies] == [200, 500, 200, 400, 200]
    assert [reply.json()["predictions"] for reply in replies[::2]] == [[1], [2], [3]]


async def test_what_breaks_inside_is_not_told(make_edge, caplog):
    reply = await make_edge().client.get("/platform/v1/broken")
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/platform/v1/models/x", 404, "model-not-found"),
        ("GET", "/platform/v2", 404, "route-not-found"),
        ("PUT", "/platform/v1/models/x", 405, "method-not-allowed"),
    ],
)
async def test_admin_errors_carry_their_code(make_edge, method, path, status, code):
    reply = await make_edge().client.request(method, path)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


# -- paths


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/v2/models/iris/infer", "2"),
        ("/v2/models/iris/infer/", "2"),
        ("/v2/models/%69ris/infer", "2"),
        ("/v2/models/iris/versions/1/infer", "1"),
        ("/v2/models/iris/versions/stable/infer", "2"),
        ("/v2/models/a%2Eb-c_d/infer", "1"),
    ],
)
async def test_v2_infer_finds_its_revision(make_edge, path, version):
    reply = (await make_edge().post(path)).json()
    assert (reply["model_version"], reply["outputs"][0]["data"]) == (version, [10])


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/iris:predict",
        "/v1/models/iris:predict/",
        "/v1/models/iris%3Apredict",
        "/v1/models/iris/versions/1:predict",
        "/v1/models/iris/labels/stable:predict",
        "/v1/models/a.b-c_d:predict",
    ],
)
async def test_v1_predict_finds_its_revision(make_edge, path):
    assert (await make_edge().post(path)).json() == {"predictions": [10]}


@pytest.mark.parametrize(
    "path",
    ["/", "/v1/models", "/v1/models/", "/v1/models/iris", "/v1/models/iris/versions/1", "/v1/models/iris/labels/stable",
     "/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models/iris", "/v2/models/iris/versions/1",
     "/v2/models/iris/ready", "/v2/models/iris/versions/2/ready/"],
)  # fmt: skip
async def test_head_is_get_without_its_body(make_edge, path):
    client = make_edge().client
    get, head = await client.get(path), await client.head(path)
    assert (get.status_code, head.status_code, head.content) == (200, 200, b"")
    assert dict(head.headers) == dict(get.headers)
    assert get.json() is not None


async def test_the_lists_and_the_metadata_tell_the_truth(make_edge):
    client = make_edge().client
    assert (await client.get("/v1/models")).json()["models"] == ["iris", "a.b-c_d", "late", "bad"]
    metadata = (await client.get("/v2/models/iris")).json()
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("iris", ["1", "2"], "fake")
    assert metadata["inputs"] == [{"name": "input-0", "datatype": "FP64", "shape": [-1, 4]}]


@pytest.mark.parametrize("path", ["/v1/models/late/metadata", "/v2/models/late", "/v2/models/late/ready"])
async def test_a_model_that_is_not_ready_says_why(make_edge, path):
    edge = make_edge()
    _check_error(await edge.client.get(path), 503, "it starts")
    assert (await edge.client.head(path)).status_code == 503


async def test_readiness_follows_the_replica(make_edge):
    edge = make_edge()
    edge.is_ready = False
    assert (await edge.client.get("/v2/health/ready")).status_code == 503
    assert (await edge.client.get("/v2/health/live")).status_code == 200


async def test_binary_tensors_in_and_out(make_edge):
    rows = np.arange(8, dtype=np.float64).reshape(2, 4)
    document = {
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [2, 4], "parameters": {"binary_data_size": 64}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(document).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    reply = await make_edge().post(INFER, head + rows.tobytes(), headers)
    length = int(reply.headers["inference-header-content-length"])
    assert np.frombuffer(reply.content[length:], dtype=np.float64).tolist() == rows.sum(axis=1).tolist()


async def test_no_rows_are_answered_without_the_model(make_edge):
    edge = make_edge()
    reply = (await edge.post(INFER, _v2(shape=[0, 4], data=[]))).json()
    assert (reply["outputs"][0]["shape"], reply["outputs"][0]["data"]) == ([0], [])
    assert edge.model.calls == []


async def test_the_id_is_the_clients_or_a_new_one(make_edge):
    edge = make_edge()
    assert (await edge.post(INFER, json.dumps({**V2, "id": "x"}).encode())).json()["id"] == "x"
    assert len({(await edge.post(INFER)).json()["id"] for _ in range(2)}) == 2


# -- clients that go away, where nobody in front watches for it


async def _run_short_way(edge, gone: asyncio.Event) -> list[dict[str, object]]:
    """One request on the short way, whose client goes away when the event is set; what was sent back."""
    messages = [{"type": "http.request", "body": json.dumps(V2).encode(), "more_body": False}]
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": INFER, "headers": [], "query_string": b"", SHORT_WAY: b"id"}
    await edge.app(scope, receive, send)
    return sent


async def test_a_client_that_goes_away_ends_the_work_behind_its_request(make_edge, gated, until):
    edge, gone = make_edge(gated(), max_batch_size=1), asyncio.Event()
    running = asyncio.create_task(edge.post(INFER))
    await until(lambda: edge.model.begun)
    leaving = asyncio.create_task(_run_short_way(edge, gone))
    await asyncio.sleep(0.06)  # watching begins after 50 ms
    gone.set()
    assert await asyncio.wait_for(leaving, 5) == []
    edge.model.let(9)
    assert (await running).status_code == 200
    assert (await edge.post(INFER)).status_code == 200
    assert len(edge.model.calls) == 2


async def test_a_client_that_stays_is_answered_and_no_longer_watched(make_edge, gated, until):
    edge, never = make_edge(gated()), asyncio.Event()
    staying = asyncio.create_task(_run_short_way(edge, never))
    await asyncio.sleep(0.06)
    edge.model.let(9)
    start, body = await asyncio.wait_for(staying, 5)
    assert start["status"] == 200
    assert json.loads(body["body"])["outputs"][0]["data"] == [10]
    await until(lambda: len(asyncio.all_tasks()) <= 2)  # the runner's and this one


async def test_a_body_that_does_not_come_whole_ends_at_the_deadline(make_edge):
    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    edge = make_edge()
    reply = await edge.client.post(INFER, content=stalled(), headers={"x-request-timeout-ms": "20"})
    assert (reply.status_code, list(reply.json())) == (504, ["error"])
    assert "has not come whole" in reply.json()["error"]
    assert (await edge.post(INFER)).status_code == 200


async def test_a_body_whose_client_went_away_is_not_predicted(make_edge):
    edge = make_edge()
    messages = [
        {"type": "http.request", "body": json.dumps(V2).encode(), "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[dict[str, object]] = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": INFER, "headers": [], "query_string": b""}
    await edge.app(scope, receive, send)
    assert sent[0]["status"] == 400
    assert edge.model.calls == []
