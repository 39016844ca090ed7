# SPDX-License-Identifier: Apache-2.0
"""Malice over raw sockets, HTTP and gRPC: refused at once with a reason, and nothing of it stays behind."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from answers import Answers
from platform_process import PlatformProcess
from tritonclient.grpc import service_pb2 as pb

LIMIT_S = 2.0
"""In which every reply is there, on a loaded machine; most take a few milliseconds."""
INFER, PREDICT = "/v2/models/iris-sklearn/infer", "/v1/models/iris-sklearn:predict"
GENERATE, GENERATE_STREAM = "/v2/models/words/generate", "/v2/models/words/generate_stream"
BODIES = (INFER, PREDICT, GENERATE, GENERATE_STREAM, "/platform/v1/models", "/v2/repository/index")


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "input-0", "shape": [1, 4], "datatype": "FP64", "data": [1, 2, 3, 4], **fields}


def document(**fields: Any) -> bytes:
    return json.dumps({"inputs": [tensor(**fields)]}).encode()


GOOD = document()


def http_text(path: str, body: bytes, method: str = "POST", **headers: str) -> bytes:
    """A request as it is on the wire; underscores in headers' names are hyphens, an empty value leaves one out."""
    given = {"host": "x", "connection": "close", "content_type": "application/json", "content_length": str(len(body))}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in (given | headers).items() if value]
    return "\r\n".join((f"{method} {path} HTTP/1.1", *lines, "", "")).encode("latin-1") + body


def with_blob(blob: bytes, size: Any, **fields: Any) -> bytes:
    """A v2 request with a tensor in binary form, which says ``size`` of its own length."""
    text = document(**fields, data=None, parameters={"binary_data_size": size}).replace(b'"data": null, ', b"")
    return http_text(INFER, text + blob, Inference_Header_Content_Length=str(len(text)))


def json_length(value: str) -> bytes:
    return http_text(INFER, GOOD, Inference_Header_Content_Length=value)


def data(text: bytes) -> bytes:
    return http_text(INFER, GOOD.replace(b"1, 2, 3, 4", text))


def chunked(body: bytes, **headers: str) -> bytes:
    return http_text(INFER, body, content_length="", transfer_encoding="chunked", **headers)


@dataclass(frozen=True)
class Reply:
    status: int
    kind: str
    body: bytes


def exchange(platform: PlatformProcess, request: bytes, timeout_s: float = LIMIT_S) -> Reply:
    """What comes back for these bytes; the server may answer, and close, before it has read all of them."""
    with socket.create_connection(("127.0.0.1", platform.ports["http"]), timeout_s) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        return Reply(reply.status, reply.getheader("content-type") or "", reply.read())


MILLION = 999_999
ELEMENT = b"abcd"
REFUSED: dict[str, tuple[bytes, int]] = {
    # the JSON's length
    "JSON beyond the body": (json_length("100000"), 400),
    "JSON of negative length": (json_length("-5"), 400),
    "JSON of huge length": (json_length("9" * 5000), 400),
    "JSON of a length over int64": (json_length(str(2**64)), 400),
    "JSON length is a word": (json_length("abc"), 400),
    "JSON length is a fraction": (json_length("1.5"), 400),
    "JSON length has a sign": (json_length("+5"), 400),
    "JSON length has an underscore": (json_length("1_0"), 400),
    "JSON length is a superscript": (json_length("\xb2"), 400),
    # binary tensors
    "blob cut off": (with_blob(bytes(31), 32), 400),
    "blob too long": (with_blob(bytes(33), 32), 400),
    "blob of negative length": (with_blob(bytes(32), -1), 400),
    "blob claims 2 GiB": (with_blob(bytes(32), 2**31), 400),
    "blob claims more than int64": (with_blob(bytes(32), 2**70), 400),
    "blob length is text": (with_blob(bytes(32), "32"), 400),
    "blob length is true": (with_blob(b"\0", True), 400),
    "element claims 2 GiB": (with_blob(struct.pack("<I", 2**31) + ELEMENT, 8, datatype="BYTES", shape=[1]), 400),
    "element claims 4 GiB": (with_blob(struct.pack("<I", 2**32 - 1) + ELEMENT, 8, datatype="BYTES", shape=[1]), 400),
    "blob of an overflowing shape": (with_blob(bytes(32), 32, shape=[2**62, 4]), 400),
    "blob of an overflowing empty shape": (with_blob(b"", 0, shape=[2**62, 2, 0]), 400),
    # shapes
    "shape product over int64": (http_text(INFER, document(shape=[2**32, 2**32])), 400),
    "shape over int64": (http_text(INFER, document(shape=[2**63, 0])), 400),
    "shape of thousands of digits": (http_text(INFER, document(shape=[10**4000, float("nan")])), 400),
    "shape negative": (http_text(INFER, document(shape=[-1, 4])), 400),
    "shape of two negatives": (http_text(INFER, document(shape=[-1, -4])), 400),
    "shape of 100000 dimensions": (http_text(INFER, document(shape=[1] * 100_000)), 400),
    # JSON
    **{f"arrays to {path}": (http_text(path, b"[" * MILLION), 400) for path in BODIES},
    **{f"objects to {path}": (http_text(path, b'{"a":' * (MILLION // 6) + b"1"), 400) for path in BODIES},
    **{f"NaN in arrays to {path}": (http_text(path, b"[" * 499_999 + b"NaN" + b"]" * 499_997), 400) for path in BODIES},
    "arrays in data": (data(b"[" * 499_000 + b"]" * 499_000), 400),
    "arrays in data, of legal depth": (data(b"[" * 900 + b"NaN" + b"]" * 900), 400),
    "arrays in instances": (http_text(PREDICT, b'{"instances":' + b"[" * 900 + b"1" + b"]" * 900 + b"}"), 400),
    "arrays in parameters": (
        http_text(INFER, GOOD[:-1] + b',"parameters":{"a":' + b"[" * 900 + b"]" * 900 + b"}}"),
        400,
    ),
    "arrays in a text": (http_text(GENERATE, b'{"text_input":' + b"[" * 900 + b"]" * 900 + b"}"), 400),
    "arrays in an event": (
        http_text(
            PREDICT,
            b'{"specversion":"1.0","id":"1","type":"t","source":"s","data":' + b"[" * 900 + b"]" * 900 + b"}",
            content_type="application/cloudevents+json",
        ),
        400,
    ),
    "a number of 6000 digits": (data(b"9" * 6000 + b", 2, 3, 4"), 400),
    "a number of 6000 digits beside NaN": (data(b"9" * 6000 + b", NaN, 3, 4"), 400),
    "a number of 400 digits beside NaN": (data(b"9" * 400 + b", NaN, 3, 4"), 400),
    "a row with a number of 4000 digits": (http_text(PREDICT, b'{"instances":[[NaN,' + b"9" * 4000 + b",2,3]]}"), 400),
    "invalid UTF-8": (http_text(INFER, GOOD.replace(b"input-0", b"\xc3\x28")), 400),
    "UTF-16": (http_text(INFER, GOOD.decode().encode("utf-16")), 400),
    "a lone surrogate": (http_text(INFER, GOOD.replace(b"input-0", b"\\ud800")), 400),
    "a lone surrogate beside NaN": (http_text(GENERATE, b'{"text_input":"\\ud800","a":NaN}'), 400),
    "inputs twice, the last empty": (http_text(INFER, GOOD[:-1] + b',"inputs":[]}'), 400),
    "a tensor twice": (http_text(INFER, json.dumps({"inputs": [tensor(), tensor()]}).encode()), 400),
    # bodies
    "gzip bomb": (http_text(INFER, gzip.compress(bytes(10_000_000)) * 90, content_encoding="gzip"), 413),
    "deflate bomb": (http_text(INFER, zlib.compress(bytes(50_000_000)), content_encoding="deflate"), 413),
    "gzip in gzip": (http_text(INFER, gzip.compress(gzip.compress(GOOD)), content_encoding="gzip, gzip"), 415),
    "body claims 2 GiB": (http_text(INFER, GOOD, content_length=str(2**31)), 413),
    "body never comes whole": (  # one that HAProxy does not wait for
        http_text(INFER, GOOD[:40], content_length="900000", x_request_timeout_ms="300"),
        504,
    ),
    "chunk claims 2 GiB": (chunked(b"7fffffff\r\n{}", x_request_timeout_ms="300"), 504),
    **{f"empty to {path}": (http_text(path, b""), 400) for path in BODIES[:-1]},
    **{f"null to {path}": (http_text(path, b"null"), 400) for path in BODIES},
    **{f"XML to {path}": (http_text(path, b"<a/>", content_type="text/xml"), 415) for path in BODIES},
    # generate
    "text is infinite": (http_text(GENERATE, b'{"text_input":1e999}'), 400),
    "texts of another count": (http_text(GENERATE, b'{"text_input":["a","b"]}'), 400),
    "text twice, two answers": (http_text(GENERATE, b'{"text_input":"a","text_input":"b c"}'), 400),
    "id is a list": (http_text(GENERATE, b'{"text_input":"a","id":[]}'), 400),
    "integer over INT32": (http_text(GENERATE_STREAM, b'{"text_input":"a","delay_ms":99999999999}'), 400),
    # headers, methods and paths
    "deadline of infinity": (http_text(INFER, GOOD, x_request_timeout_ms="1e400"), 400),
    "deadline of thousands of digits": (http_text(INFER, GOOD, x_request_timeout_ms="9" * 5000), 400),
    "a parameter over int64": (http_text(INFER, GOOD[:-1] + b',"parameters":{"timeout":1e30}}'), 400),
    **{f"method {name}": (http_text(INFER, GOOD, name), 405) for name in ("PUT", "PATCH", "TRACE", "OPTIONS")},
    "a name of 60000 letters": (http_text(f"/v2/models/{'a' * 60_000}", b"", "GET"), 404),
    "a version of 5000 digits": (http_text(f"/v2/models/iris-sklearn/versions/{'9' * 5000}/infer", GOOD), 404),
    **{
        f"path {path}": (http_text(path, GOOD), 404)
        for path in (
            "/v2/models/..%2f..%2fetc%2fpasswd/infer",
            "/v2/models/../../etc/passwd",
            "/v2/models/iris-sklearn;a=b/infer",
            "/v2/models/iris-sklearn/versions/%2e%2e/infer",
            "/v2/models/iris-sklearn/versions/-1/infer",
            "/v2/models/%00/infer",
            "/v2/models/%ff%fe/infer",
            "/v2/models/%ED%A0%80/infer",
            "/v2/models/%/infer",
            "/v2/models//infer",
            "//v2//models",
            "/v2/./models",
            "/docs/..%2f..%2fpyproject.toml",
            "/platform/v1/models/..%2f..%2f/load",
            "/v2/repository/models/..%2f../load",
            "/v1/models/iris-sklearn:predict:predict",
        )
    },
    "a model registered outside": (
        http_text("/platform/v1/models", b'{"name":"../../x","framework":"sklearn","uri":"models/housing"}'),
        400,
    ),
}

UNREADABLE: dict[str, bytes] = {
    "content length is a word": http_text(INFER, GOOD, content_length="abc"),
    "content length negative": http_text(INFER, GOOD, content_length="-1"),
    "content length over int64": http_text(INFER, GOOD, content_length=str(2**64)),
    "two content lengths": http_text(INFER, GOOD, Content_Length="3"),
    "chunk without a length": chunked(b"zz\r\nhello\r\n"),
    "chunk of negative length": chunked(b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk over int64": chunked(b"f" * 18 + b"\r\nhello\r\n"),
    "unknown transfer encoding": http_text(INFER, GOOD, transfer_encoding="what"),
    "unknown method": http_text(INFER, GOOD, "FOO"),
    "method of signs": http_text(INFER, GOOD, "G@T"),
    "a path of a million letters": http_text(f"/v2/models/{'a' * 1_000_000}", b"", "GET"),
    "a header of a million letters": http_text(INFER, GOOD, x_a="a" * 1_000_000),
    "a thousand headers": http_text(INFER, GOOD, **{f"x_{i}": "1" for i in range(1000)}),
    "a zero in a header": http_text(INFER, GOOD, x_a="a\0b"),
    "a space in the path": http_text("/v2/models/ /infer", GOOD),
    "another host's address": http_text("http://elsewhere/v2", GOOD),
    "two hosts": b"GET /v2 HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "HTTP/0.9": b"GET /v2\r\n\r\n",
    "TLS": bytes.fromhex("16030100") + bytes(200),
    "no HTTP at all": b"\x00\xff" * 200 + b"\r\n\r\n",
}
"""What the servers in front refuse before our application sees it; their words are not JSON."""


def is_right(http: httpx.Client, answers: dict[str, Answers]) -> bool:
    known = answers["iris-sklearn"]
    reply = http.post(PREDICT, json={"instances": known.rows})
    return bool(reply.json()["predictions"] == known.default.tolist())


@pytest.mark.parametrize(("request_", "status"), REFUSED.values(), ids=REFUSED)
def test_malice_is_refused_with_a_reason(platform: PlatformProcess, request_: bytes, status: int) -> None:
    begun = time.monotonic()
    reply = exchange(platform, request_)
    assert time.monotonic() - begun < LIMIT_S
    assert (reply.status, reply.kind) == (status, "application/json"), reply.body[:200]
    message = json.loads(reply.body)["error"]
    assert 0 < len(message) < 5000
    assert str(platform.folder) not in message


@pytest.mark.parametrize("request_", UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_http_is_refused(platform: PlatformProcess, request_: bytes) -> None:
    assert 400 <= exchange(platform, request_).status < 500


def test_the_last_of_duplicate_keys_counts(platform: PlatformProcess) -> None:
    twice = GOOD.replace(b'{"inputs"', b'{"inputs":[],"inputs"')
    assert exchange(platform, http_text(INFER, twice)).status == 200


def test_stalled_bodies_do_not_stop_the_others(
    platform: PlatformProcess, http: httpx.Client, answers: dict[str, Answers]
) -> None:
    stalled = [socket.create_connection(("127.0.0.1", platform.ports["http"])) for _ in range(200)]
    try:
        for connection in stalled:
            connection.sendall(http_text(INFER, GOOD[:40], content_length="900000"))
        begun = time.monotonic()
        assert is_right(http, answers)
        assert time.monotonic() - begun < LIMIT_S
    finally:
        for connection in stalled:
            connection.close()


# -- gRPC

Code = grpc.StatusCode
SERVICE = "/inference.GRPCInferenceService/"


def message(
    shape: tuple[int, ...] = (1, 4),
    *raw: bytes,
    model: str = "iris-sklearn",
    name: str = "input-0",
    datatype: str = "FP64",
    typed: tuple[float, ...] = (),
    **parameters: int,
) -> bytes:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=raw)
    request.inputs.add(name=name, datatype=datatype, shape=shape).contents.fp64_contents.extend(typed)
    if not typed:
        request.inputs[0].ClearField("contents")
    for key, value in parameters.items():
        request.parameters[key].int64_param = value
    return bytes(request.SerializeToString())


ROW = message((1, 4), bytes(32))
TEXT = {"model": "words", "name": "text_input", "datatype": "BYTES"}
NO_MESSAGE: dict[str, bytes] = {
    "bytes": b"\xff" * 50,
    "zeros": bytes(50),
    "cut off": ROW[:-3],
    "claims 2 GiB": b"\x0a\xff\xff\xff\xff\x07abc",
    "groups": b"\x0b" * 10_000,
    "invalid UTF-8": b"\x0a\x02\xff\xfe",
}
MALICE: dict[str, tuple[bytes, grpc.StatusCode]] = {
    "nothing": (b"", Code.NOT_FOUND),
    "overflowing shape": (message((2**62, 4), bytes(32)), Code.INVALID_ARGUMENT),
    "overflowing empty shape": (message((2**62, 2, 0), b""), Code.INVALID_ARGUMENT),
    "negative shape": (message((-1, 4), bytes(32)), Code.INVALID_ARGUMENT),
    "two negatives": (message((-1, -4), bytes(32)), Code.INVALID_ARGUMENT),
    "100000 dimensions": (message((1,) * 100_000, bytes(8)), Code.INVALID_ARGUMENT),
    "element claims 2 GiB": (message((1,), struct.pack("<I", 2**31) + b"a", **TEXT), Code.INVALID_ARGUMENT),
    "element cut off": (message((1,), b"\x05\x00", **TEXT), Code.INVALID_ARGUMENT),
    "blob cut off": (message((1, 4), bytes(31)), Code.INVALID_ARGUMENT),
    "neither raw nor typed": (message(), Code.INVALID_ARGUMENT),
    "raw and typed": (message((1, 4), bytes(32), typed=(1.0,)), Code.INVALID_ARGUMENT),
    "a thousand blobs": (message((1, 4), *[bytes(32)] * 1000), Code.INVALID_ARGUMENT),
    "typed in another field": (message(typed=(1.0, 2.0, 3.0, 4.0), datatype="INT64"), Code.INVALID_ARGUMENT),
    "20000 inputs": (message() + message(model="") * 20_000, Code.INVALID_ARGUMENT),
    "negative deadline": (message((1, 4), bytes(32), timeout=-(2**63)), Code.INVALID_ARGUMENT),
    "8 MB": (message((1, 4), bytes(8_000_000)), Code.RESOURCE_EXHAUSTED),
    "a long name": (message(model="a" * 900_000), Code.NOT_FOUND),
}
CALLS = {name: (data, Code.INVALID_ARGUMENT) for name, data in NO_MESSAGE.items()} | MALICE


@pytest.fixture(scope="module")
def channel(platform: PlatformProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(platform.grpc, [("grpc.max_metadata_size", 65536)]) as channel:
        yield channel


def call(channel: grpc.Channel, data: bytes, method: str = "ModelInfer") -> bytes:
    found: bytes = channel.unary_unary(SERVICE + method)(data, timeout=LIMIT_S)
    return found


def stream(channel: grpc.Channel, *messages: bytes) -> list[str]:
    """The error in each answer; empty where it is a right one."""
    answers = channel.stream_stream(SERVICE + "ModelStreamInfer")(iter(messages), timeout=LIMIT_S)
    return [pb.ModelStreamInferResponse.FromString(answer).error_message for answer in answers]


@pytest.mark.parametrize(("data", "code"), CALLS.values(), ids=CALLS)
def test_a_hostile_message_is_refused_with_a_reason(channel: grpc.Channel, data: bytes, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, data)
    assert caught.value.code() is code
    assert 0 < len(caught.value.details()) < 5000
    assert call(channel, ROW)


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "ModelMetadata", "ModelReady"])
def test_no_method_takes_what_is_no_message(channel: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, NO_MESSAGE["bytes"], method)
    assert caught.value.code() is Code.INVALID_ARGUMENT


def test_what_is_no_http2_is_refused(platform: PlatformProcess, channel: grpc.Channel) -> None:
    for data in (bytes(1000), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 1000, http_text(INFER, GOOD)):
        with socket.create_connection(("127.0.0.1", platform.ports["grpc"]), LIMIT_S) as connection:
            connection.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass
    assert call(channel, ROW)


@pytest.mark.parametrize("data", [data for data, _ in MALICE.values()], ids=MALICE)
def test_a_stream_goes_on_after_malice(channel: grpc.Channel, data: bytes) -> None:
    errors = stream(channel, ROW, data, ROW)
    assert sum(map(bool, errors)) == 1
    assert len(errors) == 3


@pytest.mark.parametrize("data", NO_MESSAGE.values(), ids=NO_MESSAGE)
def test_a_stream_ends_with_what_is_no_message(channel: grpc.Channel, data: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stream(channel, data, ROW)
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert stream(channel, ROW) == [""]


# -- afterwards

ROUNDS = 24
GROWTH_BYTES = 40_000_000
"""Forty bodies of the limit's size, for what an allocator keeps; each round alone sends some 15 MB, and its bombs would
be a gigabyte. Measured over 24 rounds: 0.5 MB in a replica, 16 MB in the ingress after all other tests here."""


def memory(platform: PlatformProcess) -> dict[int, int]:
    """Resident bytes of the processes that read what clients send."""
    pids = platform.replicas("platform", "Ingress").union(*platform.all_replicas().values())
    lines = {pid: Path(f"/proc/{pid}/status").read_text() for pid in pids}
    return {pid: int(text.partition("VmRSS:")[2].split()[0]) * 1024 for pid, text in lines.items()}


def attack(platform: PlatformProcess, channel: grpc.Channel) -> None:
    """One round of everything that is refused at once."""
    for request, status in REFUSED.values():
        if status != 504:
            assert exchange(platform, request).status == status
    for request in UNREADABLE.values():
        exchange(platform, request)
    for data, _ in CALLS.values():
        with pytest.raises(grpc.RpcError):
            call(channel, data)


def test_the_server_is_right_afterwards_and_keeps_nothing(
    platform: PlatformProcess, http: httpx.Client, channel: grpc.Channel, answers: dict[str, Answers]
) -> None:
    attack(platform, channel)
    before = memory(platform)
    assert len(before) > len(platform.models)
    for _ in range(ROUNDS):
        attack(platform, channel)
        assert is_right(http, answers)
    after = memory(platform)
    assert platform.replicas("platform", "Ingress") <= after.keys() & before.keys()
    stayed = before.keys() & after.keys()  # a model may be scaled meanwhile
    assert {pid: after[pid] - before[pid] for pid in stayed if after[pid] - before[pid] > GROWTH_BYTES} == {}
