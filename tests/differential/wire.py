# SPDX-License-Identifier: Apache-2.0
"""Sends a request and makes its answer comparable: a flat mapping from the place of a value to the value."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import grpc
import httpx
import numpy as np
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

Flat = Mapping[str, Any]
ABSENT = "absent"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIMEOUT_S = 20.0


class Endpoint(Protocol):
    """A server that is asked."""

    @property
    def url(self) -> str: ...

    @property
    def grpc(self) -> str: ...


Ask = Callable[[Endpoint], Flat]


def http(method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Ask:
    """One HTTP request; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()

    def ask(server: Endpoint) -> Flat:
        given = {"accept-encoding": "identity", **(headers or {})}
        with httpx.Client(base_url=server.url, timeout=_TIMEOUT_S) as client:
            request = client.build_request(method, path, content=content, headers=given)
            request.headers.pop("user-agent", None)
            return to_flat(client.send(request))

    return ask


def infer(model: str, inputs: Any, path: str = "", headers: Mapping[str, str] | None = None, **others: Any) -> Ask:
    """One v2 request with the id "1", since without an id the platform makes one."""
    document = {"id": "1", "inputs": inputs, **others}
    return http("POST", f"/v2/models/{model}{path}/infer", document, headers)


def binary(model: str, document: Any, blobs: bytes, headers: Mapping[str, str] | None = None) -> Ask:
    """One v2 request with binary data after the JSON."""
    text = json.dumps({"id": "1", **document}).encode()
    length = {"Inference-Header-Content-Length": str(len(text))}
    return http("POST", f"/v2/models/{model}/infer", text + blobs, length | dict(headers or {}))


def to_flat(response: httpx.Response) -> Flat:
    """Status, content type and body; of an error the status alone, and that it has a text."""
    found: dict[str, Any] = {"status": response.status_code}
    kind = response.headers.get("content-type", ABSENT)
    if response.headers.get("content-encoding"):
        found["content-encoding"] = response.headers["content-encoding"]
    length = response.headers.get("inference-header-content-length")
    body = response.content
    if "event-stream" in kind:
        found |= flatten(list(_events(body)), "event")
    elif length is not None:
        found |= flatten(_exact(json.loads(body[: int(length)])), "body")
        found["binary"] = body[int(length) :].hex()
    elif body:
        found |= flatten(_exact(_loads(body)), "body")
    if response.is_success:
        found["content-type"] = kind
    return found


def _loads(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return repr(body[:80])


def _events(body: bytes) -> Iterator[Any]:
    for event in body.split(b"\n\n"):
        if event:
            yield json.loads(event.removeprefix(b"data: "))


def _exact(document: Any) -> Any:
    """FP32 data rounded to FP32: the shortest text of a number is not the same for 32 and for 64 bits."""
    for output in document.get("outputs", ()) if isinstance(document, dict) else ():
        if output.get("datatype") == "FP32" and "data" in output:
            output["data"] = [float(np.float32(value)) for value in output["data"]]
    return document


def flatten(value: Any, where: str) -> dict[str, Any]:
    """Every value by its place; a list of plain values is one value."""
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= flatten(item, f"{where}.{key}")
        return found or {where: {}}
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return {key: item for index, one in enumerate(value) for key, item in flatten(one, f"{where}[{index}]").items()}
    if isinstance(value, list):
        return {where: [_plain(item) for item in value]}
    return {where: _named(where.rpartition(".")[2], _plain(value))}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _named(key: str, value: Any) -> Any:
    """Texts of errors, times and made ids are never the same twice."""
    if key in ("error", "error_message", "details", "reason") and value:
        return "a text"
    if key == "ns":
        return "a time" if int(value) else 0
    if key == "last_inference":
        return "a time" if int(value) else 0
    if key == "parameters_seen":  # Triton gives the model the outputs' names in any order
        seen = json.loads(value)
        return json.dumps(seen | {"outputs": sorted(seen["outputs"])}, sort_keys=True)
    if key == "id" and isinstance(value, str) and _UUID.fullmatch(value):
        return "a UUID"
    return value


def rpc(method: str, message: Any = None, metadata: Mapping[str, str] | None = None) -> Ask:
    """One call of one answer."""

    def ask(server: Endpoint) -> Flat:
        with grpc.insecure_channel(server.grpc) as channel:
            call = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), method)
            return _to_flat_call(lambda: [call(message, timeout=_TIMEOUT_S, metadata=tuple((metadata or {}).items()))])

    return ask


def stream(*messages: Any, metadata: Mapping[str, str] | None = None) -> Ask:
    """One ``ModelStreamInfer`` with these requests, all of them sent at once."""

    def ask(server: Endpoint) -> Flat:
        with grpc.insecure_channel(server.grpc) as channel:
            call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer
            answers = call(iter(messages), timeout=_TIMEOUT_S, metadata=tuple((metadata or {}).items()))
            return _to_flat_call(lambda: answers)

    return ask


def _to_flat_call(ask: Callable[[], Any]) -> Flat:
    found: dict[str, Any] = {"code": "OK"}
    try:
        for index, message in enumerate(ask()):
            found |= flatten(_to_document(message), f"answer[{index}]")
    except grpc.RpcError as exc:
        found |= {"code": exc.code().name, "details": "a text" if exc.details() else ABSENT}
    return found


def _to_document(message: Any) -> Any:
    document = MessageToDict(message, preserving_proto_field_name=True)
    inner = message.infer_response if isinstance(message, service_pb2.ModelStreamInferResponse) else message
    if getattr(inner, "raw_output_contents", None):
        target = document.get("infer_response", document)
        target["raw_output_contents"] = [raw.hex() for raw in inner.raw_output_contents]
    return document


def steps(*asks: Ask) -> Ask:
    """Several requests one after the other, their answers together."""

    def ask(server: Endpoint) -> Flat:
        found: dict[str, Any] = {}
        for index, one in enumerate(asks):
            found |= {f"{index + 1}: {place}": value for place, value in one(server).items()}
        return found

    return ask


def differences(ours: Flat, theirs: Flat) -> dict[str, tuple[Any, Any]]:
    """Where they differ, and both values; where only one of them is an error, that alone."""
    for place in ("status", "code"):
        if place in ours and _is_error(ours[place]) != _is_error(theirs[place]):
            return {place: (ours[place], theirs[place])}
    places = [*theirs, *(place for place in ours if place not in theirs)]
    pairs = {place: (ours.get(place, ABSENT), theirs.get(place, ABSENT)) for place in places}
    return {place: (own, other) for place, (own, other) in pairs.items() if not _is_same(own, other)}


def _is_same(own: Any, other: Any) -> bool:
    return repr(own) == repr(other)  # 1, 1.0 and true are equal, and are not the same answer


def _is_error(outcome: Any) -> bool:
    return outcome >= 400 if isinstance(outcome, int) else outcome != "OK"


def counted(model: str, *asks: Ask) -> Ask:
    """What a model's statistics say of these requests: their counts afterwards less those before."""

    def ask(server: Endpoint) -> Flat:
        before = _counts(server, model)
        for one in asks:
            one(server)
        grown = {place: count - before.get(place, 0) for place, count in _counts(server, model).items()}
        return {place: count for place, count in grown.items() if count or not place.startswith("batch of")}

    return ask


def _counts(server: Endpoint, model: str) -> dict[str, int]:
    (document,) = httpx.get(f"{server.url}/v2/models/{model}/stats", timeout=_TIMEOUT_S).json()["model_stats"]
    sizes = {f"batch of {batch['batch_size']}": batch["compute_infer"]["count"] for batch in document["batch_stats"]}
    stats = {key: total["count"] for key, total in document["inference_stats"].items()}
    return {key: document[key] for key in ("inference_count", "execution_count")} | stats | sizes
