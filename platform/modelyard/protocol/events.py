# SPDX-License-Identifier: Apache-2.0
"""CloudEvents: a request's body taken out of an event, a reply's body put into one.

"One request": around a protocol's own decoder and encoder. In *binary* mode the attributes are headers and the body is
the protocol's; in *structured* mode the body is a JSON object with the attributes and ``data``. The SDK is imported
when the first event comes.

Source: CloudEvents 1.0.2, "HTTP Protocol Binding" and "JSON Event Format"; KServe ``utils/utils.py``,
``create_response_cloudevent``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from modelyard.errors import InvalidRequest, UnsupportedMediaType
from modelyard.protocol.fields import check_object, check_text, expected
from modelyard.protocol.http import Encoded, Header, dump_json, load_json

if TYPE_CHECKING:
    from cloudevents.core.base import BaseCloudEvent, EventFactory

STRUCTURED: Final = b"application/cloudevents+json"
_FAMILY: Final = b"application/cloudevents"
_DATA: Final = ("data", "data_base64", "datacontentencoding")
_OWN: Final = ("id", "time", "datacontenttype", *_DATA)
"""What a reply never takes over from its request."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it came.

    Attributes:
        attributes: Its context, extensions included; checked.
        data: What it carries, as a body of the protocol.
        is_structured: It came in structured mode, and is answered so.
    """

    attributes: Mapping[str, Any]
    data: bytes
    is_structured: bool


@dataclass(frozen=True, slots=True)
class ReplyAttributes:
    """What a reply says of itself.

    Attributes:
        type: Its ``type``.
        source: Its ``source``.
        merge: The request's other attributes are taken over.
    """

    type: str
    source: str
    merge: bool = field(default=False)


def is_event(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request is an event, of either mode."""
    return b"ce-specversion" in headers or headers.get(b"content-type", b"")[: len(_FAMILY)].lower() == _FAMILY


def decode_event(headers: Mapping[bytes, bytes], body: bytes) -> Event:
    """The event in a request.

    Args:
        headers: Names in lower case.
        body: The whole body, decompressed.

    Raises:
        InvalidRequest: An attribute is missing or not what it has to be, or there is no data.
        UnsupportedMediaType: It is a batch, or not in JSON.
    """
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind == STRUCTURED:
        return _decode_structured(body)
    if kind.startswith(_FAMILY):
        got = kind.decode("latin-1")
        raise UnsupportedMediaType(f'content type: expected one event as {STRUCTURED.decode()}, got "{got}"')
    return Event(_decode_headers(headers), body, is_structured=False)


def _decode_headers(headers: Mapping[bytes, bytes]) -> Mapping[str, Any]:
    """Source: "HTTP Protocol Binding", 3.1 "Binary Content Mode"."""
    from cloudevents.core.bindings.http import HTTPMessage, from_binary_event
    from cloudevents.core.exceptions import BaseCloudEventException

    if b"ce-id" not in headers:  # the SDK would make one up
        raise InvalidRequest("CloudEvent: expected the attribute id (header ce-id), got none")
    texts = {
        name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items() if name.startswith(b"ce-")
    }
    try:
        attributes: Mapping[str, Any] = from_binary_event(HTTPMessage(texts, b"")).get_attributes()
    except (BaseCloudEventException, ValueError, OverflowError) as exc:  # the latter two of a time
        raise _invalid(exc) from None
    return attributes


def _decode_structured(body: bytes) -> Event:
    """Source: "JSON Event Format", 3 "Envelope"."""
    document = check_object(load_json(body), "the CloudEvent")
    data = _take_data(document)
    attributes = {name: value for name, value in document.items() if name not in _DATA and value is not None}
    for name, value in attributes.items():
        if not isinstance(value, str | bool) and not (isinstance(value, int) and abs(value) < 2**31):
            raise expected(f'CloudEvent attribute "{name}"', "a string, boolean or 32-bit integer", value)
    for name in ("id", "specversion"):  # the SDK would make one up
        if name not in attributes:
            raise InvalidRequest(f"CloudEvent: expected the attribute {name}, got none")
    if "time" in attributes:
        attributes["time"] = _to_time(attributes["time"])
    return Event(_new_event(attributes).get_attributes(), data, is_structured=True)


def _take_data(document: dict[str, Any]) -> bytes:
    """Source: "JSON Event Format", 3.1 "Handling of data"; 1.0 has ``data_base64``, 0.3 had an encoding's name."""
    encoded = document.get("data_base64")
    if document.get("datacontentencoding") == "base64":
        encoded = document.get("data")
    if encoded is not None:
        try:
            return base64.b64decode(check_text(encoded, "the CloudEvent's data"), validate=True)
        except ValueError:  # also of characters beyond ASCII
            raise InvalidRequest("the CloudEvent's data: expected base64, got something else") from None
    if document.get("data") is None:
        raise InvalidRequest("the CloudEvent: expected data, got none")
    try:
        return dump_json(document["data"])
    except TypeError:  # an integer of more than 64 bits, or deep nesting, which the decoder can refuse better
        return _to_long_text(document["data"])


def _to_long_text(data: Any) -> bytes:
    try:
        return json.dumps(data).encode()
    except RecursionError:
        raise InvalidRequest("the CloudEvent's data is nested too deeply") from None


def _to_time(value: Any) -> datetime:
    try:
        return datetime.fromisoformat(check_text(value, "CloudEvent attribute time"))
    except ValueError:
        raise expected("CloudEvent attribute time", "a time as RFC 3339 writes it", value) from None


def _new_event(attributes: dict[str, Any]) -> BaseCloudEvent:
    """An event without data, of the specification's version that its attributes name.

    Raises:
        InvalidRequest: The SDK refuses the attributes.
    """
    from cloudevents.core.bindings.common import get_event_factory_for_version
    from cloudevents.core.exceptions import BaseCloudEventException

    make: EventFactory = get_event_factory_for_version(attributes.get("specversion", ""))
    try:
        return make(attributes, None)
    except BaseCloudEventException as exc:
        raise _invalid(exc) from None


def _invalid(exc: Exception) -> InvalidRequest:
    errors = getattr(exc, "errors", None)
    reasons = [str(several[0]) for several in errors.values()] if errors else [str(exc)]
    return InvalidRequest(f"CloudEvent: {'; '.join(reasons)}")


def encode_event(reply: Encoded, event: Event, own: ReplyAttributes) -> Encoded:
    """A reply as an event of the request's mode and version, with an id and a time of its own.

    Args:
        reply: What the protocol answers.
        event: The request's.
        own: What the reply says of itself.

    Raises:
        InvalidRequest: The reply is binary and cannot be inside a JSON object.
    """
    from cloudevents.core.bindings.http import to_binary_event
    from cloudevents.core.formats.json import JSONFormat

    kept = {name: value for name, value in event.attributes.items() if own.merge and name not in _OWN}
    named = {"specversion": event.attributes["specversion"], "type": own.type, "source": own.source}
    if not event.is_structured:
        texts = to_binary_event(_new_event(kept | named)).headers
        added = tuple((name.encode(), value.encode("latin-1")) for name, value in texts.items())
        return Encoded(reply.status, reply.body, (*reply.headers, *added))
    if (b"content-type", b"application/json") not in reply.headers:
        raise InvalidRequest(
            "binary tensors have no place in a structured CloudEvent: ask for JSON, or send the event in binary mode"
        )
    envelope = JSONFormat().write(_new_event(kept | named | {"datacontenttype": "application/json"}))
    body = b"".join((envelope.removesuffix(b"}"), b', "data": ', reply.body, b"}"))
    headers: tuple[Header, ...] = ((b"content-type", STRUCTURED), (b"content-length", b"%d" % len(body)))
    return Encoded(reply.status, body, headers)
