# SPDX-License-Identifier: Apache-2.0
"""The platform over HTTP: the admin API for managing, the Open Inference Protocol with binary tensors for asking."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
import orjson

from modelyard.admin import Event, ModelStatus, Plan, Pool, Revision
from modelyard.client.failures import ApiError, PlatformUnreachable, check_reply
from modelyard.errors import DeadlineExceeded, InvalidConfig, InvalidRequest, ModelyardError
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.tensor import Array, datatype_of, from_raw, get_datatype, to_bytes_array, to_raw

_PLATFORM: Final = "/platform/v1"
_MODELS: Final = f"{_PLATFORM}/models"
_POOLS: Final = f"{_PLATFORM}/pools"
_JSON_LENGTH: Final = "inference-header-content-length"
_GRACE_S: Final = 1.0
_WATCHING_S: Final = 60.0
"""For events that are waited for: the platform answers sooner, with none where there are none."""
_T = TypeVar("_T")


class HttpTransport:
    """An :class:`~modelyard.admin.AdminTransport` over HTTP; for use from one event loop.

    Args:
        url: Address of the platform, with the prefix it is served under, if any.
        token: Sent as bearer token; None sends none.
        timeout_s: How long one call may take, unless the call has its own deadline.
        transport: Replaces the network, in tests.

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
    ) -> None:
        address = _check_url(url)
        self.url = str(address).rstrip("/")
        self._timeout_s = timeout_s
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

    async def register(
        self, spec: Mapping[str, Any], *, actor: str, message: str, expected_generation: int | None = None
    ) -> ModelStatus:
        """``POST /platform/v1/models``; the platform takes the actor from the credentials."""
        document = dict(spec) | ({"message": message} if message else {})
        params = _expecting(expected_generation)
        return _to_status(await self._call("POST", _MODELS, content=orjson.dumps(document), params=params))

    async def plan(self, spec: Mapping[str, Any], *, expected_generation: int | None = None) -> Plan:
        """``POST /platform/v1/models?dry_run=true``."""
        params = {"dry_run": "true", **_expecting(expected_generation)}
        return _to_plan(await self._call("POST", _MODELS, content=orjson.dumps(dict(spec)), params=params))

    async def spec(self, name: str) -> dict[str, Any]:
        """``GET /platform/v1/models/{name}/spec``."""
        document = await self._call("GET", f"{_MODELS}/{_segment(name)}/spec")
        if not isinstance(document, dict) or "name" not in document:
            raise ApiError(200, "expected a model's specification")
        return document

    async def unregister(self, name: str, *, actor: str, message: str) -> ModelStatus:
        """``DELETE /platform/v1/models/{name}``."""
        params = {"message": message} if message else None
        return _to_status(await self._call("DELETE", f"{_MODELS}/{_segment(name)}", params=params))

    async def load(self, name: str, *, actor: str, message: str) -> ModelStatus:
        """``POST /platform/v1/models/{name}/load``."""
        return await self._change("POST", name, "load", {}, message)

    async def unload(self, name: str, *, actor: str, message: str) -> ModelStatus:
        """``POST /platform/v1/models/{name}/unload``."""
        return await self._change("POST", name, "unload", {}, message)

    async def set_traffic(self, name: str, change: Mapping[str, Any], *, actor: str, message: str) -> ModelStatus:
        """``PUT /platform/v1/models/{name}/traffic``."""
        return await self._change("PUT", name, "traffic", change, message)

    async def set_label(self, name: str, label: str, revision: str | None, *, actor: str, message: str) -> ModelStatus:
        """``PUT`` or ``DELETE /platform/v1/models/{name}/labels/{label}``."""
        way = f"labels/{_segment(label)}"
        if revision is not None:
            return await self._change("PUT", name, way, {"revision": revision}, message)
        params = {"message": message} if message else None
        return _to_status(await self._call("DELETE", f"{_MODELS}/{_segment(name)}/{way}", params=params))

    async def rollout(self, name: str, plan: Mapping[str, Any], *, actor: str, message: str) -> ModelStatus:
        """``POST /platform/v1/models/{name}/rollout``."""
        return await self._change("POST", name, "rollout", plan, message)

    async def promote(self, name: str, revision: str | None, *, actor: str, message: str) -> ModelStatus:
        """``POST /platform/v1/models/{name}/promote``."""
        return await self._change("POST", name, "promote", _revision(revision), message)

    async def rollback(self, name: str, revision: str | None, *, actor: str, message: str) -> ModelStatus:
        """``POST /platform/v1/models/{name}/rollback``."""
        return await self._change("POST", name, "rollback", _revision(revision), message)

    async def pause(self, name: str, *, actor: str, message: str) -> ModelStatus:
        """``POST /platform/v1/models/{name}/rollout/pause``."""
        return await self._change("POST", name, "rollout/pause", {}, message)

    async def resume(self, name: str, *, actor: str, message: str) -> ModelStatus:
        """``POST /platform/v1/models/{name}/rollout/resume``."""
        return await self._change("POST", name, "rollout/resume", {}, message)

    async def _change(self, method: str, name: str, way: str, change: Mapping[str, Any], message: str) -> ModelStatus:
        body = orjson.dumps(dict(change) | ({"message": message} if message else {}))
        return _to_status(await self._call(method, f"{_MODELS}/{_segment(name)}/{way}", content=body))

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
        self, name: str, version: str, request: InferenceRequest, *, timeout_s: float | None
    ) -> InferenceResponse:
        """``POST /v2/models/{name}[/versions/{version}]/infer``, tensors in binary both ways."""
        path = f"/v2/models/{_segment(name)}" + (f"/versions/{_segment(version)}" if version else "") + "/infer"
        text, blobs = _encode_infer(request)
        headers = {_JSON_LENGTH: str(len(text)), "content-type": "application/octet-stream"}
        if timeout_s is not None:
            headers["x-request-timeout-ms"] = str(max(1, math.ceil(timeout_s * 1000)))
        reply = await self._send("POST", path, timeout_s, content=b"".join((text, *blobs)), headers=headers)
        if reply.status_code >= 400:
            check_reply(reply.status_code, _to_document(reply))
        return _decode_infer(reply)

    async def _call(self, method: str, path: str, timeout_s: float | None = None, **parts: Any) -> Any:
        reply = await self._send(method, path, timeout_s, headers={"content-type": "application/json"}, **parts)
        return check_reply(reply.status_code, _to_document(reply))

    async def _send(self, method: str, path: str, timeout_s: float | None, **parts: Any) -> httpx.Response:
        # The platform keeps the deadline; waiting a little longer lets its own answer arrive.
        limit_s = self._timeout_s if timeout_s is None else timeout_s + _GRACE_S
        try:
            return await self._client.request(method, path, timeout=limit_s, **parts)
        except httpx.ConnectTimeout as exc:
            raise PlatformUnreachable(self.url, f"no connection within {limit_s:g} s") from exc
        except httpx.TimeoutException as exc:
            raise DeadlineExceeded(self._timeout_s if timeout_s is None else timeout_s) from exc
        except httpx.HTTPError as exc:
            raise PlatformUnreachable(self.url, str(exc) or type(exc).__name__) from exc


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


def _segment(text: str) -> str:
    return quote(text, safe="")


def _to_document(reply: httpx.Response) -> Any:
    try:
        return orjson.loads(reply.content)
    except orjson.JSONDecodeError:
        if reply.is_error:
            return reply.text
        raise ApiError(reply.status_code, "expected JSON") from None


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
