# SPDX-License-Identifier: Apache-2.0
"""A platform without a cluster: the admin API and v2 infer over a real catalog, no sockets.

For tests of the client and the CLI, and of programs that use them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import httpx
import numpy as np
import orjson

from modelyard.admin import ModelState, ModelStatus
from modelyard.catalog import Catalog, ModelRecord, Owner, Wanted
from modelyard.client import HttpTransport, Platform
from modelyard.config import load_model_spec
from modelyard.errors import InvalidConfig, ModelNotFound, ModelNotReady, ModelyardError, RouteNotFound
from modelyard.inference import InferenceResponse
from modelyard.protocol import v2
from modelyard.signature import TensorSpec


class FakePlatform:
    """Answers as a platform would whose models add up the rows of their only input.

    Args:
        catalog: Where registered models go.

    Attributes:
        coming: States a model passes through, one for each look at it, before it is ready.
        requests: What has arrived.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.coming: dict[str, list[tuple[ModelState, str]]] = defaultdict(list)
        self.requests: list[httpx.Request] = []

    def open_transport(self) -> HttpTransport:
        """A transport that ends here instead of in the network."""
        return HttpTransport("http://platform.test", transport=httpx.MockTransport(self.answer))

    def connect(self) -> Platform:
        """A client of this platform."""
        return Platform(self.open_transport)

    def answer(self, request: httpx.Request) -> httpx.Response:
        """One reply."""
        self.requests.append(request)
        parts = request.url.path.strip("/").split("/")
        try:
            if parts[:3] == ["platform", "v1", "models"] and len(parts) <= 5:
                return self._answer_admin(request, parts[3:])
            if parts[:2] == ["v2", "models"] and parts[-1] == "infer":
                return self._answer_infer(request, parts[2], parts[4] if len(parts) == 6 else "")
            raise RouteNotFound(f"no route {request.url.path}")
        except InvalidConfig as exc:
            return _to_reply(exc, {"problems": list(exc.problems)})
        except ModelyardError as exc:
            return _to_reply(exc, {} if parts[0] == "v2" else {"code": exc.code})

    def _answer_admin(self, request: httpx.Request, names: list[str]) -> httpx.Response:
        if request.method == "POST" and len(names) == 2:
            return self._change(names[0], names[1], orjson.loads(request.content))
        if request.method == "POST":
            return self._register(orjson.loads(request.content))
        if not names:
            return httpx.Response(200, json={"models": [self._status(r).to_dict() for r in self.catalog.list_models()]})
        if request.method == "DELETE":
            message = request.url.params.get("message", "")
            record = self.catalog.remove_model(names[0], message=message, owner=Owner.REGISTERED)
            self.coming[names[0]] = [(ModelState.REMOVING, "")]
            return httpx.Response(202, json=self._status(record).to_dict())
        return httpx.Response(200, json=self._look(names[0]).to_dict())

    def _register(self, document: dict[str, Any]) -> httpx.Response:
        message = document.pop("message", "")
        spec = load_model_spec(document)
        is_new = self.catalog.find_model(spec.name) is None
        record = self.catalog.put_model(
            spec.name,
            owner=Owner.REGISTERED,
            spec=spec.to_json(),
            content=spec.revision_content(),
            digest=spec.revision_digest(""),
            message=message,
        )
        return httpx.Response(201 if is_new else 200, json=self._status(record).to_dict())

    def _change(self, name: str, verb: str, document: dict[str, Any]) -> httpx.Response:
        """``load`` or ``unload``."""
        message = document.get("message", "")
        if verb == "unload":
            record = self.catalog.unload_model(name, message=message)
            self.coming[name] = [(ModelState.UNLOADING, "")]
        elif verb == "load":
            record = self._load(name, message)
            self.coming[name] = [state for state in self.coming[name] if state[0] is not ModelState.UNLOADING]
        else:
            raise RouteNotFound(f"no route {verb}")
        return httpx.Response(202, json=self._status(record).to_dict())

    def _load(self, name: str, message: str) -> ModelRecord:
        record = self.catalog.find_model(name)
        if record is None:
            raise ModelNotFound(name)
        revision = record.active
        return self.catalog.load_model(name, content=revision.content, digest=revision.digest, message=message)

    def _look(self, name: str) -> ModelStatus:
        """One look at a model, which moves it on to its next state."""
        record = self.catalog.find_model(name)
        if record is not None and record.wanted is Wanted.REMOVED and not self.coming[name]:
            self.catalog.purge_model(name)
            record = None
        if record is None:
            raise ModelNotFound(name)
        status = self._status(record)
        if self.coming[name]:
            self.coming[name].pop(0)
        return status

    def _status(self, record: ModelRecord) -> ModelStatus:
        state, reason = self._state(record)
        return ModelStatus(
            name=record.name,
            framework=record.spec["framework"],
            uri=record.spec["uri"],
            owner=record.owner,
            state=state,
            reason=reason,
            version=str(record.active.number),
            replicas_ready=int(state is ModelState.READY),
            replicas_wanted=1,
            url_path=f"/v2/models/{record.name}",
            created_at=record.created_at,
            updated_at=record.updated_at,
            inputs=(TensorSpec("input-0", "FP64", (-1, 4)),),
            message=record.active.message,
            generation=record.generation,
        )

    def _state(self, record: ModelRecord) -> tuple[ModelState, str]:
        if self.coming[record.name]:
            return self.coming[record.name][0]
        return (ModelState.UNLOADED, "unloaded") if record.wanted is Wanted.UNLOADED else (ModelState.READY, "")

    def _answer_infer(self, request: httpx.Request, name: str, version: str) -> httpx.Response:
        record = self.catalog.find_model(name)
        if record is None:
            raise ModelNotFound(name)
        if version and version not in {*map(str, record.traffic), *record.labels}:
            raise ModelNotFound(name, version)
        state, reason = self._state(record)
        if state is not ModelState.READY:
            raise ModelNotReady(name, f"{state}: {reason}")
        length = request.headers.get("inference-header-content-length")
        decoded = v2.decode_infer(request.content, int(length) if length else None)
        (array,) = list(decoded.inputs.values())[:1]
        result = array if array.dtype.kind == "O" else np.asarray(array.sum(axis=-1))
        names = [output.name for output in decoded.outputs] or ["output-0"]
        response = InferenceResponse(name, str(record.active.number), decoded.id or "1", dict.fromkeys(names, result))
        encoded = v2.encode_infer(response, decoded)
        headers = [(key.decode(), value.decode()) for key, value in encoded.headers]
        return httpx.Response(encoded.status, content=encoded.body, headers=headers)


def _to_reply(error: ModelyardError, extra: dict[str, Any]) -> httpx.Response:
    code = {"code": error.code} if isinstance(error, InvalidConfig) else {}
    return httpx.Response(error.http_status, json={"error": str(error), **code, **extra})
