# SPDX-License-Identifier: Apache-2.0
"""The v1 protocol's routes: KServe's and TensorFlow Serving's REST.

"One request": between the HTTP edge and the data plane.
"""

from __future__ import annotations

from dataclasses import replace

from modelyard.batching import BATCH_ID, reports_batch_id
from modelyard.dataplane import DataPlane
from modelyard.errors import Unsupported
from modelyard.inference import InferenceRequest, InferenceResponse, RequestedOutput
from modelyard.protocol import v1
from modelyard.protocol.http import Encoded
from modelyard.protocol.tensors import may_hold_bools
from modelyard.protocol.tfserving import predict
from modelyard.protocol.tfserving.metadata import encode_metadata
from modelyard.protocol.tfserving.status import to_version_status
from modelyard.routing import RevisionRoute
from modelyard.serve.http import Handler, HttpRequest, RouteEntry
from modelyard.signature import Signature


class V1Handlers:
    """``/v1/models…``.

    Args:
        plane: What answers.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        model = "/v1/models/{model}"
        return [
            ("GET", "/v1/models", self.list),
            *with_versions("POST", f"{model}*:predict", self.predict),
            *with_versions("POST", f"{model}*:explain", self.explain),
            *with_versions("GET", f"{model}*", self.status),
            *with_versions("GET", f"{model}*/metadata", self.metadata),
        ]

    async def predict(self, request: HttpRequest) -> Encoded:
        """``POST /v1/models/{model}[/versions/{version}|/labels/{label}]:predict``."""
        revision, signature = self._plane.choose(request.path("model"), request.path("version"), request)
        body = await request.body()
        if signature.saved is not None or (revision.members and not revision.publishes_members):
            return await self._predict_by_name(request, revision, body)
        decoded, form = v1.decode_predict(body, signature)
        if reports_batch_id(signature):
            return _encode(*await self._infer(request, revision, signature, decoded), form, signature)
        response = await self._plane.infer(revision, signature, decoded, request.timeout_s())
        return v1.encode_predict(response, form, signature)

    async def _predict_by_name(self, request: HttpRequest, route: RevisionRoute, body: bytes) -> Encoded:
        """For models with several signatures, or one of a SavedModel: the request says which, and that how it is read.

        Raises:
            SignatureNotFound: The model has none of that name.
        """
        document = v1.load_predict(body)
        revision, signature = route.get_signature(v1.check_signature_name(document))
        if signature.saved is None:
            decoded, form = v1.decode_document(document, may_hold_bools(body), signature)
            return _encode(*await self._infer(request, revision, signature, decoded), form, signature)
        decoded, form = predict.decode_document(document, may_hold_bools(body), signature)
        decoded, is_flat = predict.add_dimension(decoded, signature)
        response, batch_id = await self._infer(request, revision, signature, decoded)
        return predict.encode_predict(predict.drop_dimension(response) if is_flat else response, form, batch_id)

    async def _infer(
        self, request: HttpRequest, revision: RevisionRoute, signature: Signature, decoded: InferenceRequest
    ) -> tuple[InferenceResponse, str | None]:
        """The answer, and the id of its batch; None where nobody wants that."""
        if not reports_batch_id(signature):
            return await self._plane.infer(revision, signature, decoded, request.timeout_s()), None
        decoded = _ask_batch_id(decoded, signature)
        return _take_batch_id(await self._plane.infer(revision, signature, decoded, request.timeout_s()))

    async def explain(self, request: HttpRequest) -> Encoded:
        """``POST /v1/models/{model}[/versions/{version}|/labels/{label}]:explain``; 501 where the model cannot."""
        revision, signature = self._plane.choose(request.path("model"), request.path("version"), request)
        if not signature.explanations:
            raise Unsupported(f'model "{revision.model}" ({revision.framework}) cannot explain its answers')
        decoded, form = v1.decode_explain(await request.body(), signature)
        response = await self._plane.infer(revision, signature, decoded, request.timeout_s())
        return v1.encode_explain(response, form)

    async def list(self, request: HttpRequest) -> Encoded:
        """``GET /v1/models``."""
        return v1.encode_model_list({name: model.created_s for name, model in self._plane.table.models.items()})

    async def status(self, request: HttpRequest) -> Encoded:
        """``GET /v1/models/{model}[/versions/{version}|/labels/{label}]``; 503 where it cannot answer."""
        name, version = request.path("model"), request.path("version")
        revision = self._plane.table.get_revision(name, version)
        model = self._plane.table.get_model(name)
        listed = [revision] if version else model.revisions.values()
        versions = [to_version_status(one.version, one.state, one.reason) for one in listed]
        reason = revision.reason or revision.state
        return v1.encode_model_status(name, revision.is_ready, reason, versions, model.created_s)

    async def metadata(self, request: HttpRequest) -> Encoded:
        """``GET /v1/models/{model}[/versions/{version}|/labels/{label}]/metadata``."""
        revision, _ = self._plane.get_ready(request.path("model"), request.path("version"))
        return encode_metadata(revision.model, revision.version, revision.signatures)


def _encode(response: InferenceResponse, batch_id: str | None, form: v1.Form, signature: Signature) -> Encoded:
    if batch_id is None:
        return v1.encode_predict(response, form, signature)
    return v1.encode_batched(response, batch_id, form, signature)


def _ask_batch_id(request: InferenceRequest, signature: Signature) -> InferenceRequest:
    asked = request.outputs or tuple(RequestedOutput(spec.name) for spec in signature.outputs)
    others = (output for output in asked if output.name != BATCH_ID)
    return replace(request, outputs=(*others, RequestedOutput(BATCH_ID)))


def _take_batch_id(response: InferenceResponse) -> tuple[InferenceResponse, str]:
    """The answer without the id, and the id; empty where there was no row to predict."""
    outputs = dict(response.outputs)
    ids = outputs.pop(BATCH_ID)
    return replace(response, outputs=outputs), ids[0].decode() if ids.size else ""


def with_versions(method: str, path: str, handler: Handler) -> list[RouteEntry]:
    """The route with nothing, a version or a label in place of ``*``."""
    return [(method, path.replace("*", part), handler) for part in ("", "/versions/{version}", "/labels/{version}")]
