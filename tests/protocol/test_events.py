# SPDX-License-Identifier: Apache-2.0
"""CloudEvents, made and read by their own SDK on the other side."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings import http as sdk
from cloudevents.core.v03.event import CloudEvent as CloudEvent03
from cloudevents.core.v1.event import CloudEvent

from modelyard.errors import InvalidRequest, UnsupportedMediaType
from modelyard.protocol.events import ReplyAttributes, decode_event, encode_event, is_event
from modelyard.protocol.http import Encoded, encode_json

BODY = {"instances": [[1, 2]]}
ATTRIBUTES = {"type": "order.placed", "source": "/shop", "id": "7", "subject": "Łódź 100%", "traceid": "abc"}
REPLY = encode_json({"predictions": [3]})
OWN = ReplyAttributes("answer", "us")
MERGED = ReplyAttributes("answer", "us", merge=True)
STRUCTURED = {b"content-type": b"application/cloudevents+json"}

KINDS = {
    "binary": lambda event: sdk.to_binary_event(event),
    "structured": lambda event: sdk.to_structured_event(event),
}
VERSIONS = {"1.0": CloudEvent, "0.3": CloudEvent03}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_version = pytest.mark.parametrize("version", VERSIONS)


def send(kind: str, version: str = "1.0", **attributes: Any) -> tuple[dict[bytes, bytes], bytes]:
    """Headers and body of an event as the SDK sends it."""
    given = {**ATTRIBUTES, "datacontenttype": "application/json", "specversion": version, **attributes}
    message = KINDS[kind](VERSIONS[version](given, BODY))
    return {name.encode(): value.encode() for name, value in message.headers.items()}, message.body


def read(reply: Encoded) -> Any:
    """A reply as the SDK reads it."""
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    assert headers["content-length"] == str(len(reply.body))
    return sdk.from_http_event(sdk.HTTPMessage(headers, reply.body))


def structured(**changes: Any) -> bytes:
    document = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": BODY, **changes}
    return json.dumps({name: value for name, value in document.items() if value is not ...}).encode()


@each_version
@each_kind
def test_an_event_carries_the_body_and_its_attributes(kind: str, version: str) -> None:
    headers, body = send(kind, version, time=datetime(2026, 1, 2, tzinfo=UTC))
    assert is_event(headers)
    event = decode_event(headers, body)
    assert json.loads(event.data) == BODY
    assert event.is_structured is (kind == "structured")
    assert {**ATTRIBUTES, "specversion": version}.items() <= event.attributes.items()
    assert event.attributes["time"] == datetime(2026, 1, 2, tzinfo=UTC)


@each_version
@each_kind
def test_the_reply_is_an_event_of_the_same_kind(kind: str, version: str) -> None:
    event = decode_event(*send(kind, version))
    first, second = (read(encode_event(REPLY, event, OWN)) for _ in range(2))
    assert first.get_data() == {"predictions": [3]}
    assert (first.get_type(), first.get_source(), first.get_specversion()) == ("answer", "us", version)
    assert len({"7", first.get_id(), second.get_id()}) == 3
    assert first.get_time() > datetime(2026, 1, 1, tzinfo=UTC)
    assert first.get_extension("traceid") is None


@each_kind
def test_merging_takes_over_what_the_reply_does_not_set(kind: str) -> None:
    headers, body = send(kind, time=datetime(2020, 1, 2, tzinfo=UTC), datacontenttype="application/vnd.x+json")
    reply = read(encode_event(REPLY, decode_event(headers, body), MERGED))
    assert (reply.get_subject(), reply.get_extension("traceid")) == ("Łódź 100%", "abc")
    assert (reply.get_type(), reply.get_source(), reply.get_datacontenttype()) == ("answer", "us", "application/json")
    assert reply.get_id() != "7"
    assert reply.get_time().year > 2020


def test_a_binary_reply_keeps_the_protocols_body_and_headers() -> None:
    plain = Encoded(200, b"{}blob", ((b"content-type", b"application/octet-stream"), (b"content-length", b"6")))
    reply = encode_event(plain, decode_event(*send("binary")), OWN)
    assert (reply.body, reply.headers[:2]) == (plain.body, plain.headers)


def test_binary_tensors_have_no_place_in_a_structured_reply() -> None:
    plain = Encoded(200, b"{}blob", ((b"content-type", b"application/octet-stream"),))
    with pytest.raises(InvalidRequest, match="ask for JSON, or send the event in binary mode"):
        encode_event(plain, decode_event(*send("structured")), OWN)


@pytest.mark.parametrize(
    "body",
    [
        structured(data=..., data_base64="eyJpbnN0YW5jZXMiOiBbWzEsIDJdXX0="),
        structured(specversion="0.3", datacontentencoding="base64", data="eyJpbnN0YW5jZXMiOiBbWzEsIDJdXX0="),
        structured(subject=None, time="2026-11-24T10:00:00.5+01:00", small=-(2**31) + 1, flag=True),
    ],
)
def test_other_forms_of_structured_events(body: bytes) -> None:
    headers = {b"content-type": b"Application/CloudEvents+JSON; charset=utf-8"}
    assert is_event(headers)
    assert json.loads(decode_event(headers, body).data) == BODY


def test_numbers_in_structured_data_stay_what_they_are() -> None:
    body = structured(data=...)[:-1] + b', "data": {"inputs": [NaN, -Infinity, 1e400, 18446744073709551616, 0.1]}}'
    assert decode_event(STRUCTURED, body).data == b'{"inputs": [NaN, -Infinity, Infinity, 18446744073709551616, 0.1]}'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "the CloudEvent: expected an object, got a list"),
        (structured(data=...), "the CloudEvent: expected data, got none"),
        (structured(data=None), "the CloudEvent: expected data, got none"),
        (structured(data=..., data_base64="%"), "expected base64"),
        (structured(data=..., data_base64="é"), "expected base64"),
        (structured(data=..., data_base64=7), "expected a string, got 7"),
        (structured(data=..., data_base64="e30=", time=5), "expected a string, got 5"),
        (structured(specversion="2.0"), "Attribute 'specversion' must be '1.0'"),
        (structured(specversion=...), "expected the attribute specversion, got none"),
        (structured(id=...), "expected the attribute id, got none"),
        (structured(id=""), "Attribute 'id' must not be None or empty"),
        (structured(source=...), "Missing required attribute: 'source'"),
        (structured(type=7), "Attribute 'type' must be a"),
        (structured(time="yesterday"), 'expected a time as RFC 3339 writes it, got the string "yesterday"'),
        (structured(time="2026-11-24T10:00:00"), "must be timezone aware"),
        (structured(**{"my-ext": "x"}), "Extension attribute 'my-ext' should only contain lowercase"),
        (structured(ext={"a": 1}), 'CloudEvent attribute "ext": expected a string, boolean or 32-bit integer'),
        (structured(ext=2**31), "32-bit integer"),
        (structured(ext=0.5), "32-bit integer"),
        (structured()[:-1] + b', "deep": ' + b"[" * 900 + b"]" * 900 + b"}", "got a list"),
    ],
)
def test_an_event_that_is_none_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message.replace("[", r"\[")):
        decode_event(STRUCTURED, body)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ce-id", None, r"expected the attribute id \(header ce-id\), got none"),
        ("ce-source", None, "Missing required attribute: 'source'"),
        ("ce-type", "", "Attribute 'type' must not be None or empty"),
        ("ce-specversion", "2.0", "Attribute 'specversion' must be '1.0'"),
        ("ce-time", "yesterday", "CloudEvent: "),
        ("ce-time", "2026-11-24T10:00:00", "must be timezone aware"),
        ("ce-my-ext", "x", "Extension attribute 'my-ext' should only contain lowercase"),
        ("ce-data", "x", "'data' is reserved"),
    ],
)
def test_headers_that_are_no_event_are_refused(name: str, value: str | None, message: str) -> None:
    headers, body = send("binary")
    headers.pop(name.encode(), None)
    if value is not None:
        headers[name.encode()] = value.encode()
    with pytest.raises(InvalidRequest, match=message):
        decode_event(headers, body)


@pytest.mark.parametrize("kind", ["application/cloudevents-batch+json", "application/cloudevents+avro"])
def test_batches_and_other_formats_are_not_read(kind: str) -> None:
    headers = {b"content-type": kind.encode()}
    assert is_event(headers)
    with pytest.raises(UnsupportedMediaType, match="expected one event as application/cloudevents"):
        decode_event(headers, b"[]")


@pytest.mark.parametrize("headers", [{}, {b"content-type": b"application/json"}, {b"ce-id": b"1"}])
def test_other_requests_are_no_events(headers: dict[bytes, bytes]) -> None:
    assert not is_event(headers)


def test_the_sdk_is_imported_by_the_first_event_only() -> None:
    code = (
        "import sys, modelyard.serve.events as e; e.is_event({b'ce-specversion': b'1.0'});"
        " sys.exit('cloudevents' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
