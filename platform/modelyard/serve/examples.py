# SPDX-License-Identifier: Apache-2.0
"""Classification and regression of ``tf.Example``, for REST and gRPC; and their routes over HTTP.

"One request": between both edges and the data plane.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelyard.dataplane import DataPlane
from modelyard.errors import InvalidRequest, SignatureNotFound
from modelyard.inference import InferenceResponse
from modelyard.protocol.http import Encoded
from modelyard.protocol.tfserving import examples as codec
from modelyard.protocol.v1 import check_signature_name, load_predict
from modelyard.routing import RevisionRoute, Sender
from modelyard.serve.http import HttpRequest, RouteEntry
from modelyard.serve.v1 import with_versions
from modelyard.signature import Signature


class Examples:
    """Asks signatures of SavedModels about examples.

    Args:
        plane: What answers.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def find(self, model: str, version: str, name: str, method: str, sender: Sender) -> tuple[RevisionRoute, Signature]:
        """The signature that is to be asked.

        Args:
            model: Name of the model.
            version: A revision's number or a label; empty for wherever the traffic goes.
            name: The signature's; empty for the model's own.
            method: The method it has to have.
            sender: Whose request it is.

        Raises:
            ModelNotFound: Unknown model or version.
            ModelNotReady: It cannot answer now.
            InvalidRequest: It has no such signature, or that is of another method.
            Unsupported: It has none that takes examples.
        """
        try:
            revision, signature = self._plane.choose(model, version, sender, name)
        except SignatureNotFound as exc:
            # Here TensorFlow Serving has the other status, and says so before it looks at anything else.
            raise InvalidRequest(str(exc)) from exc
        codec.check_method(signature, method, revision.model)
        return revision, signature

    async def ask(
        self, revision: RevisionRoute, signature: Signature, examples: Sequence[bytes], timeout_s: float | None
    ) -> InferenceResponse:
        """The tensors that the signature answers.

        Args:
            revision: From :meth:`find`.
            signature: From :meth:`find`.
            examples: Serialized.
            timeout_s: The client's own deadline, in seconds.

        Raises:
            ModelyardError: As for :meth:`~modelyard.dataplane.DataPlane.infer`.
        """
        return await self._plane.infer(revision, signature, codec.to_request(examples, signature), timeout_s)


class ExampleHandlers:
    """``:classify`` and ``:regress``.

    Args:
        plane: What answers.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._examples = Examples(plane)

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        model = "/v1/models/{model}"
        return [
            *with_versions("POST", f"{model}*:classify", self.classify),
            *with_versions("POST", f"{model}*:regress", self.regress),
        ]

    async def classify(self, request: HttpRequest) -> Encoded:
        """``POST /v1/models/{model}[/versions/{version}|/labels/{label}]:classify``."""
        response, rows = await self._ask(request, codec.CLASSIFY)
        return codec.encode_classes(*codec.to_classes(response, rows))

    async def regress(self, request: HttpRequest) -> Encoded:
        """``POST /v1/models/{model}[/versions/{version}|/labels/{label}]:regress``."""
        response, rows = await self._ask(request, codec.REGRESS)
        return codec.encode_values(codec.to_values(response, rows))

    async def _ask(self, request: HttpRequest, method: str) -> tuple[InferenceResponse, int]:
        """The signature's answer, and about how many examples."""
        document = load_predict(await request.body())
        name = check_signature_name(document)
        model, version = request.path("model"), request.path("version")
        revision, signature = self._examples.find(model, version, name, method, request)
        examples = codec.decode_examples(document, request.max_body_bytes)
        return await self._examples.ask(revision, signature, examples, request.timeout_s()), len(examples)
