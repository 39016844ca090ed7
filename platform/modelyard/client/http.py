# SPDX-License-Identifier: Apache-2.0
"""The platform over HTTP: the admin API for managing, the Open Inference Protocol with binary tensors for asking."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, Unpack
from urllib.parse import quote

import httpx
import orjson

from modelyard.admin import By, Event, ModelStatus, Plan, Pool, Revision
from modelyard.client.failures import ApiError, PlatformUnreachable, check_reply, is_own
from modelyard.errors import DeadlineExceeded, InvalidConfig, InvalidRequest, ModelyardError
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.tensor import Array, datatype_of, from_raw, get_datatype, to_bytes_array, to_raw

_PLATFORM: Final = "/platform/v1"
_MODELS: Final = f"{_PLATFORM}/models"
_DRY_RUN: Final = {"dry_run": "true"}
_POOLS: Final = f"{_PLATFORM}/pools"
_JSON_LENGTH: Final = "inference-header-content-length"
_ACTOR: Final = b"x-modelyard-actor"
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""Source: RFC 9110 5.6.2."""
_GRACE_S: Final = 1.0
_READING_S: Final = 600.0
"""For verbs that read the whole artifact: as long as the platform gives itself for them."""
_PAUSES_S: Final = (0.1, 0.5)
_UNSENT: Final = (httpx.ConnectError,)
"""What says that a request has not arrived."""
_BROKEN: Final = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""The same, and what says that nobody knows."""
_PROXY: Final = frozenset({502, 503})
"""What a proxy says whose server has gone."""
_WATCHING_S: Final = 60.0
"""For events that are waited for: the platform answers sooner, with none where there are none."""
_T = TypeVar("_T")


class HttpTransport:
    """An :class:`~modelyard.admin.AdminTransport` over HTTP; for use from one event loop.

    Where no connection can be made the request is sent again, for a process that was killed is soon replaced. Where one
    breaks, or a proxy in front of the platform says that nobody answers (502 or 503, without the platform's own words
    or with the code ``unreachable``), only what changes nothing is sent again: what reads, and :meth:`infer`. A time
    that is over, and each status of the platform's own, are answers.

    Args:
        url: Address of the platform, with the prefix it is served under, if any.
        token: Sent as bearer token; None sends none.
        timeout_s: How long one call may take, unless the call has its own deadline. One that has an artifact read
            (:meth:`register`, :meth:`plan`, :meth:`load`) may take 600 s where that is more.
        transport: Replaces the network, in tests.
        pauses_s: Before each time that a request is sent again, in seconds; empty sends each once.

    Attributes:
        url: Address of the platform.

    Raises:
        InvalidConfig: The URL is not an HTTP address.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
        pauses_s: Sequence[float] = _PAUSES_S,
    ) -> None:
        address = _check_url(url)
        self.url = str(address).rstrip("/")
        self._timeout_s = timeout_s
        self._pauses_s = tuple(pauses_s)
        self._client = httpx.AsyncClient(
            base_url=address,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=timeout_s,
            transport=transport,
            trust_env=not _is_loopback(address.host),  # a proxy from the environment cannot reach this machine
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def register(self, spec: Mapping[str, Any], **by: Unpack[By]) -> ModelStatus:
        """``POST /platform/v1/models``; the actor is a header, and the generation in the query, here and below."""
        return await self._change("POST", _MODELS, spec, by, timeout_s=self._reading_s)

    async def plan(self, spec: Mapping[str, Any], *, expected_generation: int | None = None) -> Plan:
        """``POST /platform/v1/models?dry_run=true``."""
        params = _DRY_RUN | _expecting(expected_generation)
        content = orjson.dumps(dict(spec))
        return _to_plan(
            await self._call("POST", _MODELS, self._reading_s, changes_nothing=True, content=content, params=params)
        )

    async def spec(self, name: str) -> dict[str, Any]:
        """``GET /platform/v1/models/{name}/spec``."""
        document = await self._call("GET", f"{_MODELS}/{_segment(name)}/spec")
        if not isinstance(document, dict) or "name" not in document:
            raise ApiError(200, "expected a model's specification")
        return document

    async def unregister(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """``DELETE /platform/v1/models/{name}``."""
        return await self._delete(_path(name), by)

    async def load(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """``POST /platform/v1/models/{name}/load``."""
        return await self._change("POST", _path(name, "load"), {}, by, timeout_s=self._reading_s)

    async def unload(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """``POST /platform/v1/models/{name}/unload``."""
        return await self._change("POST", _path(name, "unload"), {}, by)

    async def set_traffic(self, name: str, change: Mapping[str, Any], **by: Unpack[By]) -> ModelStatus:
        """``PUT /platform/v1/models/{name}/traffic``."""
        return await self._change("PUT", _path(name, "traffic"), change, by)

    async def set_label(self, name: str, label: str, revision: str | None, **by: Unpack[By]) -> ModelStatus:
        """``PUT`` or ``DELETE /platform/v1/models/{name}/labels/{label}``."""
        path = _path(name, f"labels/{_segment(label)}")
        if revision is None:
            return await self._delete(path, by)
        return await self._change("PUT", path, _revision(revision), by)

    async def rollout(self, name: str, plan: Mapping[str, Any], **by: Unpack[By]) -> ModelStatus:
        """``POST /platform/v1/models/{name}/rollout``."""
        return await self._change("POST", _path(name, "rollout"), plan, by)

    async def promote(self, name: str, revision: str | None, **by: Unpack[By]) -> ModelStatus:
        """``POST /platform/v1/models/{name}/promote``."""
        return await self._change("POST", _path(name, "promote"), _revision(revision), by)

    async def rollback(self, name: str, revision: str | None, **by: Unpack[By]) -> ModelStatus:
        """``POST /platform/v1/models/{name}/rollback``."""
        return await self._change("POST", _path(name, "rollback"), _revision(revision), by)

    async def abort(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """``POST /platform/v1/models/{name}/rollout/abort``."""
        return await self._change("POST", _path(name, "rollout/abort"), {}, by)

    async def pause(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """``POST /platform/v1/models/{name}/rollout/pause``."""
        return await self._change("POST", _path(name, "rollout/pause"), {}, by)

    async def resume(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """``POST /platform/v1/models/{name}/rollout/resume``."""
        return await self._change("POST", _path(name, "rollout/resume"), {}, by)

    async def _change(
        self, method: str, path: str, change: Mapping[str, Any], by: By, *, timeout_s: float | None = None
    ) -> ModelStatus:
        content = orjson.dumps({**change, **_because(by)})
        return await self._answer(method, path, by, timeout_s, content=content, params=_conditions(by))

    async def _delete(self, path: str, by: By) -> ModelStatus:
        return await self._answer("DELETE", path, by, params=_because(by) | _conditions(by))

    async def _answer(
        self, method: str, path: str, by: By, timeout_s: float | None = None, **parts: Any
    ) -> ModelStatus:
        is_dry_run = by.get("dry_run", False)
        reply = await self._call(method, path, timeout_s, actor=by["actor"], changes_nothing=is_dry_run, **parts)
        return _to_status(reply)

    @property
    def _reading_s(self) -> float:
        return max(self._timeout_s, _READING_S)

    async def pools(self) -> tuple[Pool, ...]:
        """``GET /platform/v1/pools``."""
        return _to_list(await self._call("GET", _POOLS), "pools", Pool.from_dict)

    async def revisions(self, name: str) -> tuple[Revision, ...]:
        """``GET /platform/v1/models/{name}/revisions``."""
        document = await self._call("GET", f"{_MODELS}/{_segment(name)}/revisions")
        return _to_list(document, "revisions", Revision.from_dict)

    async def events(self, name: str | None, *, after: int | None, limit: int) -> tuple[Event, ...]:
        """``GET /platform/v1[/models/{name}]/events``."""
        path = f"{_MODELS}/{_segment(name)}/events" if name is not None else f"{_PLATFORM}/events"
        params = {"limit": limit} | ({"after": after} if after is not None else {})
        timeout_s = None if after is None else max(self._timeout_s, _WATCHING_S)
        document = await self._call("GET", path, timeout_s, params=params)
        return _to_list(document, "events", Event.from_dict)

    async def list(self) -> tuple[ModelStatus, ...]:
        """``GET /platform/v1/models``."""
        return _to_list(await self._call("GET", _MODELS), "models", _to_status)

    async def status(self, name: str) -> ModelStatus:
        """``GET /platform/v1/models/{name}``."""
        return _to_status(await self._call("GET", f"{_MODELS}/{_segment(name)}"))

    async def infer(
        self,
        name: str,
        version: str,
        request: InferenceRequest,
        *,
        timeout_s: float | None,
        headers: Mapping[str, str] | None = None,
    ) -> InferenceResponse:
        """``POST /v2/models/{name}[/versions/{version}]/infer``, tensors in binary both ways.

        Args:
            name: As in ``AdminTransport``, like the next three.
            version: The same.
            request: The same.
            timeout_s: The same.
            headers: Sent along; those that say how the request is written stay as they are.

        Raises:
            InvalidRequest: One of the headers cannot be sent.
        """
        path = f"/v2/models/{_segment(name)}" + (f"/versions/{_segment(version)}" if version else "") + "/infer"
        text, blobs = _encode_infer(request)
        sent = _to_headers(headers or {})
        sent |= {_JSON_LENGTH: str(len(text)), "content-type": "application/octet-stream"}
        if timeout_s is not None:
            sent["x-request-timeout-ms"] = str(max(1, math.ceil(timeout_s * 1000)))
        body = b"".join((text, *blobs))
        reply = await self._send("POST", path, timeout_s, changes_nothing=True, content=body, headers=sent)
        if reply.status_code >= 400:
            check_reply(reply.status_code, _to_document(reply))
        return _decode_infer(reply)

    async def _call(
        self,
        method: str,
        path: str,
        timeout_s: float | None = None,
        *,
        actor: str = "",
        changes_nothing: bool = False,
        **parts: Any,
    ) -> Any:
        headers = {b"content-type": b"application/json"}
        if actor:
            headers[_ACTOR] = actor.encode("latin-1", "replace")  # as servers read headers
        may_repeat = changes_nothing or method == "GET"
        reply = await self._send(method, path, timeout_s, changes_nothing=may_repeat, headers=headers, **parts)
        return check_reply(reply.status_code, _to_document(reply))

    async def _send(
        self, method: str, path: str, timeout_s: float | None, *, changes_nothing: bool, **parts: Any
    ) -> httpx.Response:
        deadline_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            # The platform keeps the deadline; waiting a little longer lets its own answer arrive.
            return await self._repeat(method, path, deadline_s + _GRACE_S, changes_nothing, parts)
        except httpx.ConnectTimeout as exc:
            raise PlatformUnreachable(self.url, f"no connection within {self._to_connect_s(deadline_s):g} s") from exc
        except httpx.TimeoutException as exc:
            raise DeadlineExceeded(deadline_s) from exc
        except httpx.HTTPError as exc:
            raise PlatformUnreachable(self.url, str(exc) or type(exc).__name__) from exc

    async def _repeat(
        self,
        method: str,
        path: str,
        limit_s: float,
        changes_nothing: bool,
        parts: Mapping[str, Any],
    ) -> httpx.Response:
        """The first reply of the platform; all attempts and the pauses between them have the time of one."""
        passing = _BROKEN if changes_nothing else _UNSENT
        give_up_at = time.monotonic() + limit_s
        for pause_s in self._pauses_s:
            try:
                reply = await self._request(method, path, give_up_at, parts)
                if not (changes_nothing and _is_proxys(reply)) or time.monotonic() + pause_s >= give_up_at:
                    return reply
            except passing:
                if time.monotonic() + pause_s >= give_up_at:
                    raise
            await asyncio.sleep(pause_s)
        return await self._request(method, path, give_up_at, parts)

    async def _request(self, method: str, path: str, give_up_at: float, parts: Mapping[str, Any]) -> httpx.Response:
        left_s = max(0.0, give_up_at - time.monotonic())
        timeout = httpx.Timeout(left_s, connect=self._to_connect_s(left_s))
        return await self._client.request(method, path, timeout=timeout, **parts)

    def _to_connect_s(self, limit_s: float) -> float:
        """Reading an artifact takes its time, finding the platform does not."""
        return min(limit_s, self._timeout_s)


def _check_url(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise InvalidConfig((f"url: expected http:// or https:// and a host, but {exc}",)) from exc
    if address.scheme not in ("http", "https") or not address.host:
        raise InvalidConfig((f'url: expected http:// or https:// and a host, got "{url}"',))
    return address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _to_headers(given: Mapping[str, str]) -> dict[str, str]:
    """As they are sent, in lower case.

    Raises:
        InvalidRequest: One cannot be sent.
    """
    for name, value in given.items():
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidRequest(f"headers: expected a header's name, got {name!r:.80}")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise InvalidRequest(f"header {name}: expected a text of printable ASCII, got {value!r:.80}")
    return {name.lower(): value for name, value in given.items()}


def _segment(text: str) -> str:
    return quote(text, safe="")


def _to_document(reply: httpx.Response) -> Any:
    try:
        return orjson.loads(reply.content)
    except orjson.JSONDecodeError:
        if reply.is_error:
            return reply.text
        raise ApiError(reply.status_code, "expected JSON") from None


def _is_proxys(reply: httpx.Response) -> bool:
    """Somebody between here and the platform says that it is away, maybe its HAProxy; its own words are an answer."""
    if reply.status_code not in _PROXY:
        return False
    document = _to_document(reply)
    return not is_own(document) or document.get("code") == PlatformUnreachable.code


def _to_status(document: Any) -> ModelStatus:
    try:
        return ModelStatus.from_dict(document)
    except (KeyError, TypeError, ValueError) as exc:
        raise ApiError(200, f"expected a model's status: {type(exc).__name__} {exc}") from exc


def _to_plan(document: Any) -> Plan:
    try:
        return Plan.from_dict(document)
    except (KeyError, TypeError, ValueError) as exc:
        raise ApiError(200, f"expected a plan: {type(exc).__name__} {exc}") from exc


def _path(name: str, way: str = "") -> str:
    return f"{_MODELS}/{_segment(name)}" + (f"/{way}" if way else "")


def _because(by: By) -> dict[str, str]:
    return {"message": by["message"]} if by["message"] else {}


def _conditions(by: By) -> dict[str, str]:
    return _expecting(by.get("expected_generation")) | (_DRY_RUN if by.get("dry_run") else {})


def _expecting(generation: int | None) -> dict[str, str]:
    return {} if generation is None else {"expected_generation": str(generation)}


def _to_list(document: Any, key: str, convert: Callable[[Any], _T]) -> tuple[_T, ...]:
    if not isinstance(document, Mapping) or not isinstance(document.get(key), list):
        raise ApiError(200, f"expected a list of {key}")
    try:
        return tuple(map(convert, document[key]))
    except (KeyError, TypeError, ValueError) as exc:
        raise ApiError(200, f"expected a list of {key}: {type(exc).__name__} {exc}") from exc


def _revision(revision: str | None) -> dict[str, str]:
    return {} if revision is None else {"revision": revision}


def _encode_infer(request: InferenceRequest) -> tuple[bytes, list[bytes | memoryview]]:
    """The JSON part and the tensors' raw parts.

    Source: Triton "Binary Tensor Data Extension".
    """
    inputs: list[dict[str, Any]] = []
    blobs: list[bytes | memoryview] = []
    for name, array in request.inputs.items():
        blob = to_raw(to_bytes_array(array) if array.dtype.kind == "O" else array)
        size = {"binary_data_size": len(blob)}
        own = dict(request.input_parameters.get(name, {})) | size
        inputs.append({"name": name, "datatype": datatype_of(array), "shape": list(array.shape), "parameters": own})
        blobs.append(blob)
    document: dict[str, Any] = {
        "inputs": inputs,
        "parameters": {**request.parameters, "binary_data_output": True},
    }
    if request.id:
        document["id"] = request.id
    if request.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": {**output.parameters, "binary_data": True}}
            for output in request.outputs
        ]
    try:
        return orjson.dumps(document), blobs
    except TypeError as exc:  # a parameter or a name that JSON cannot carry
        raise InvalidRequest(f"the request cannot be sent: {exc}") from exc


def _decode_infer(reply: httpx.Response) -> InferenceResponse:
    body = reply.content
    length = int(reply.headers.get(_JSON_LENGTH, len(body)))
    try:
        document = orjson.loads(body[:length])
        return InferenceResponse(
            model_name=document["model_name"],
            model_version=str(document.get("model_version", "")),
            id=str(document.get("id", "")),
            outputs=_decode_outputs(document["outputs"], memoryview(body)[length:]),
            parameters=document.get("parameters", {}),
        )
    except (KeyError, TypeError, ValueError, ModelyardError) as exc:
        raise ApiError(reply.status_code, f"expected an inference response: {type(exc).__name__} {exc}") from exc


def _decode_outputs(entries: list[Mapping[str, Any]], blobs: memoryview) -> dict[str, Array]:
    """Read-only views on the body; BYTES are copied."""
    outputs: dict[str, Array] = {}
    for entry in entries:
        where = f'output "{entry["name"]}"'
        datatype = get_datatype(entry["datatype"], where)
        size = int(entry["parameters"]["binary_data_size"])
        outputs[entry["name"]] = from_raw(blobs[:size], datatype, tuple(entry["shape"]), where)
        blobs = blobs[size:]
    return outputs
