# SPDX-License-Identifier: Apache-2.0
"""Compressed requests and replies at the HTTP edge."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest

from modelyard.protocol.http import Encoded, Streamed, encode_json
from modelyard.serve.http import HttpRequest, make_app

MAX_BODY_BYTES = 8_000_000
COMPRESS_FROM = 1024
ROWS = {"instances": [[1, 2, 3, 4]] * 300}
PACKERS = {"gzip": gzip.compress, "deflate": zlib.compress}
UNPACKERS = {"gzip": gzip.decompress, "deflate": zlib.decompress}


async def _echo(request: HttpRequest) -> Encoded:
    return Encoded(200, body := await request.body(), ((b"content-length", b"%d" % len(body)),))


async def _large(request: HttpRequest) -> Encoded:
    return encode_json({"text": "x" * 2000})


async def _refuse(request: HttpRequest) -> Encoded:
    return encode_json({"error": "x" * 2000}, 400)


async def _stream(request: HttpRequest) -> Streamed:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * 2000
        yield b"y"

    return Streamed(200, chunks(), ((b"content-type", b"text/event-stream"),))


ROUTES = [
    ("POST", "/v1/echo", _echo),
    ("GET", "/v1/models", _large),
    ("GET", "/v2/models/wide", _large),
    ("POST", "/v2/repository/index", _large),
    ("POST", "/v2/models/wide/infer", _large),
    ("GET", "/v1/refuse", _refuse),
    ("GET", "/v1/stream", _stream),
]


class Client:
    """Asks the edge over ASGI; bodies come as they are sent, not decompressed."""

    def __init__(self, compress_from: int | None = COMPRESS_FROM) -> None:
        app = make_app(ROUTES, MAX_BODY_BYTES, None, compress_from)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge")

    async def ask(self, method: str, path: str, accept: str | None, **request) -> tuple[httpx.Response, bytes]:
        headers = request.pop("headers", {}) | ({"accept-encoding": accept} if accept is not None else {})
        built = self.http.build_request(method, path, headers=headers, **request)
        if accept is None:
            del built.headers["accept-encoding"]
        reply = await self.http.send(built, stream=True)
        return reply, b"".join([chunk async for chunk in reply.aiter_raw()])


@pytest.mark.parametrize("rows", [1, 300, 20_000], ids=["short", "inline", "in a thread"])
@pytest.mark.parametrize("encoding", PACKERS)
async def test_a_compressed_request_is_read_and_its_reply_compressed(encoding, rows):
    body = json.dumps({"instances": [[1, 2, 3, 4]] * rows}).encode()
    headers = {"content-encoding": encoding}
    reply, sent = await Client().ask("POST", "/v1/echo", encoding, content=PACKERS[encoding](body), headers=headers)
    assert reply.status_code == 200
    if len(body) < COMPRESS_FROM:
        assert ("content-encoding" in reply.headers, sent) == (False, body)
    else:
        assert (reply.headers["content-encoding"], reply.headers["vary"]) == (encoding, "accept-encoding")
        assert UNPACKERS[encoding](sent) == body
        assert len(sent) < len(body)
    assert reply.headers["content-length"] == str(len(sent))


async def test_httpx_undoes_it_by_itself():
    reply = await Client().http.get("/v1/models")
    assert reply.headers["content-encoding"] == "gzip"
    assert reply.json() == {"text": "x" * 2000}


@pytest.mark.parametrize("accept", [None, "", "identity", "br", "gzip;q=0", "*;q=0"])
async def test_a_client_that_takes_nothing_gets_the_plain_reply(accept):
    reply, sent = await Client().ask("GET", "/v1/models", accept)
    assert "content-encoding" not in reply.headers
    assert reply.headers["vary"] == "accept-encoding"
    assert json.loads(sent) == {"text": "x" * 2000}


async def test_a_short_reply_is_compressed_only_where_the_plain_one_is_refused():
    client = Client()
    plain, _ = await client.ask("POST", "/v1/echo", "gzip", content=b"{}")
    forced, sent = await client.ask("POST", "/v1/echo", "gzip, identity;q=0", content=b"{}")
    assert "content-encoding" not in plain.headers
    assert "vary" not in plain.headers
    assert (forced.headers["content-encoding"], gzip.decompress(sent)) == ("gzip", b"{}")


async def test_what_becomes_no_shorter_stays_plain():
    noise = random.Random(1).randbytes(5000)
    reply, sent = await Client().ask("POST", "/v1/echo", "gzip", content=noise)
    assert ("content-encoding" in reply.headers, sent) == (False, noise)


async def test_head_has_the_headers_of_get():
    client = Client()
    get, _ = await client.ask("GET", "/v1/models", "gzip")
    head, body = await client.ask("HEAD", "/v1/models", "gzip")
    assert dict(head.headers) == dict(get.headers)
    assert (head.headers["content-encoding"], body) == ("gzip", b"")


@pytest.mark.parametrize("path", ["/v1/refuse", "/v1/stream", "/v2/models/wide"])
async def test_errors_streams_and_metadata_stay_plain(path):
    reply, sent = await Client().ask("GET", path, "gzip")
    assert "content-encoding" not in reply.headers
    assert b"x" * 2000 in sent


@pytest.mark.parametrize(("path", "encoding"), [("/v2/repository/index", None), ("/v2/models/wide/infer", "gzip")])
async def test_of_v2_only_answers_to_inference_are_compressed(path, encoding):
    reply, _ = await Client().ask("POST", path, "gzip, deflate")
    assert reply.headers.get("content-encoding") == encoding


async def test_the_setting_turns_it_off_for_replies_and_not_for_requests():
    client = Client(None)
    reply, sent = await client.ask(
        "POST", "/v1/echo", "gzip", content=gzip.compress(b"x" * 5000), headers={"content-encoding": "gzip"}
    )
    assert "content-encoding" not in reply.headers
    assert sent == b"x" * 5000


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (b"{}", {"content-encoding": "br"}, 415, 'expected gzip or deflate, got "br"'),
        (b"{}", {"content-encoding": "gzip"}, 400, "compressed data is c"),
        (gzip.compress(b"{}")[:-1], {"content-encoding": "gzip"}, 400, "cut off"),
        (gzip.compress(b"{}") + b"more", {"content-encoding": "gzip"}, 400, "corrupt"),
        (zlib.compress(b"{}") + b"more", {"content-encoding": "deflate"}, 400, "4 bytes after the end"),
        (gzip.compress(bytes(MAX_BODY_BYTES + 1)), {"content-encoding": "gzip"}, 413, "decompressed"),
        (zlib.compress(bytes(10 * MAX_BODY_BYTES)), {"content-encoding": "deflate"}, 413, "decompressed"),
    ],
    ids=["unknown", "not gzip", "cut", "garbage", "garbage after zlib", "one byte too many", "bomb"],
)
async def test_a_body_that_cannot_be_read_is_told(body, headers, status, text):
    client = Client()
    reply = await client.http.post("/v1/echo", content=body, headers=headers)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert text in reply.json()["error"]
    assert reply.headers.get("accept-encoding") == ("gzip, deflate" if status == 415 else None)
    assert (await client.http.post("/v1/echo", content=b"{}")).content == b"{}"


async def test_large_bodies_do_not_hold_up_the_event_loop():
    client, body = Client(), gzip.compress(b"0123456789abcdef" * 450_000)
    headers = {"content-encoding": "gzip"}
    task = asyncio.create_task(client.ask("POST", "/v1/echo", "gzip", content=body, headers=headers))
    turns = 0
    while not task.done():  # a thread inflates and then compresses 7 MB meanwhile
        await asyncio.sleep(0.001)
        turns += 1
    assert (await task)[0].status_code == 200
    assert turns > 1  # it would be one turn on the event loop


async def test_binary_tensors_count_uncompressed_bytes(make_edge):
    document = {
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 4], "parameters": {"binary_data_size": 32}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(document).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-encoding": "gzip"}
    reply = await make_edge().post("/v2/models/iris/infer", gzip.compress(head + bytes(32)), headers)
    assert reply.status_code == 200
    assert reply.content[int(reply.headers["inference-header-content-length"]) :] == bytes(8)
