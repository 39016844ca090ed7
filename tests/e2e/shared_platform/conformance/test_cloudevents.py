# SPDX-License-Identifier: Apache-2.0
"""Events made and read by the CloudEvents SDK, in both of its HTTP modes."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from answers import Answers
from cloudevents.core.bindings import http as cloudevents
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from platform_process import PlatformProcess

ATTRIBUTES = {"type": "flower.seen", "source": "/garden", "datacontenttype": "application/json"}
PATHS = {"v1": "/v1/models/iris-sklearn:predict", "v2": "/v2/models/iris-sklearn/infer"}

each_protocol = pytest.mark.parametrize("protocol", PATHS)


@pytest.fixture
def event(protocol: str, answers: dict[str, Answers]) -> CloudEvent:
    rows = answers["iris-sklearn"].inputs["input-0"]
    tensor = {"name": "x", "datatype": "FP64", "shape": rows.shape, "data": rows.ravel().tolist()}
    data = {"v1": {"instances": rows.tolist()}, "v2": {"inputs": [tensor]}}[protocol]
    return CloudEvent(dict(ATTRIBUTES), data)


def post(http: httpx.Client, path: str, message: Any) -> Any:
    """The reply as the SDK's message; headers with the capitals that its own reader wants."""
    reply = http.post(path, content=message.body, headers=message.headers)
    assert reply.status_code == 200, reply.text
    return cloudevents.HTTPMessage(dict(reply.headers), reply.content)


def check(event: Any, protocol: str, answers: dict[str, Answers]) -> None:
    assert event.get_type() == "io.kserve.inference.response"
    assert event.get_source() == "io.kserve.inference.iris-sklearn"
    found = event.get_data()
    labels = found["predictions"] if protocol == "v1" else found["outputs"][0]["data"]
    assert labels == answers["iris-sklearn"].default.tolist()


@each_protocol
def test_a_binary_event_is_answered_with_one(
    http: httpx.Client, protocol: str, event: CloudEvent, answers: dict[str, Answers]
) -> None:
    message = post(http, PATHS[protocol], cloudevents.to_binary_event(event))
    check(cloudevents.from_binary_event(message), protocol, answers)
    check(cloudevents.from_http_event(message), protocol, answers)


@each_protocol
def test_a_structured_event_is_answered_with_one(
    http: httpx.Client, protocol: str, event: CloudEvent, answers: dict[str, Answers]
) -> None:
    message = post(http, PATHS[protocol], cloudevents.to_structured_event(event))
    check(cloudevents.from_structured_event(message), protocol, answers)
    check(cloudevents.from_http_event(message), protocol, answers)


@each_protocol
def test_events_in_a_named_format_are_the_same(
    http: httpx.Client, protocol: str, event: CloudEvent, answers: dict[str, Answers]
) -> None:
    binary = post(http, PATHS[protocol], cloudevents.to_binary(event, JSONFormat()))
    structured = post(http, PATHS[protocol], cloudevents.to_structured(event, JSONFormat()))
    check(cloudevents.from_binary(binary, JSONFormat()), protocol, answers)
    check(cloudevents.from_structured(structured, JSONFormat()), protocol, answers)
    check(cloudevents.from_http(structured, JSONFormat()), protocol, answers)


def test_an_events_mistake_is_an_ordinary_error(http: httpx.Client, platform: PlatformProcess) -> None:
    message = cloudevents.to_binary_event(CloudEvent(dict(ATTRIBUTES), {"instances": [[np.pi]]}))
    reply = http.post(PATHS["v1"], content=message.body, headers=message.headers)
    assert (reply.status_code, list(reply.json())) == (400, ["error"])
