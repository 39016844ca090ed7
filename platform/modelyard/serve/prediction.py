# SPDX-License-Identifier: Apache-2.0
"""``tensorflow.serving.PredictionService``: TensorFlow Serving's clients ask models of every framework.

"One request": as ``rpc``. The names of the methods are those of the service's definition.

Source: TensorFlow Serving ``apis/prediction_service.proto``; ``model_servers/prediction_service_impl.cc``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from modelyard.dataplane import DataPlane
from modelyard.inference import InferenceResponse
from modelyard.protocol.tfserving import examples, messages, metadata
from modelyard.protocol.tfserving.examples import CLASSIFY, REGRESS
from modelyard.protocol.tfserving.predict import add_dimension, drop_dimension
from modelyard.protos import tensorflow_packed_pb2 as packed
from modelyard.protos import tensorflow_serving_pb2 as pb
from modelyard.routing import RevisionRoute
from modelyard.serve.examples import Examples
from modelyard.serve.rpc import MAX_BYTES, CallSender, Context, timeout_s, unary_edge
from modelyard.signature import Signature


class PredictionService:
    """The service over one data plane.

    Args:
        plane: What answers.
        max_body_bytes: Beyond that the tensors or examples of a request are refused.
    """

    def __init__(self, plane: DataPlane, max_body_bytes: int = MAX_BYTES) -> None:
        self._plane = plane
        self._examples = Examples(plane)
        self._max_body_bytes = max_body_bytes

    @unary_edge(packed.PredictResponse)
    async def Predict(self, request: pb.PredictRequest, context: Context) -> packed.PredictResponse:  # noqa: N802
        """One inference, of any signature of any model."""
        spec = messages.decode_spec(request.model_spec)
        revision, signature = self._plane.choose(spec.model, spec.version, CallSender(context), spec.signature)
        decoded = messages.decode_predict(request, self._max_body_bytes)
        decoded, is_flat = add_dimension(decoded, signature) if signature.saved is not None else (decoded, False)
        response = await self._plane.infer(revision, signature, decoded, timeout_s(context))
        response = drop_dimension(response) if is_flat else response
        return messages.encode_predict(response, revision.signature_name)

    @unary_edge(pb.ClassificationResponse)
    async def Classify(  # noqa: N802
        self, request: pb.ClassificationRequest, context: Context
    ) -> pb.ClassificationResponse:
        """The classes of examples."""
        message = pb.ClassificationResponse()
        response, rows = await self._ask(request, CLASSIFY, context, message.model_spec)
        messages.fill_classes(*examples.to_classes(response, rows), message.result)
        return message

    @unary_edge(pb.RegressionResponse)
    async def Regress(self, request: pb.RegressionRequest, context: Context) -> pb.RegressionResponse:  # noqa: N802
        """One number for each example."""
        message = pb.RegressionResponse()
        response, rows = await self._ask(request, REGRESS, context, message.model_spec)
        messages.fill_values(examples.to_values(response, rows), message.result)
        return message

    async def _ask(
        self,
        request: pb.ClassificationRequest | pb.RegressionRequest,
        method: str,
        context: Context,
        answering: pb.ModelSpec,
    ) -> tuple[InferenceResponse, int]:
        """The signature's answer, and about how many examples; ``answering`` says whose it is."""
        spec = messages.decode_spec(request.model_spec)
        revision, signature = self._examples.find(spec.model, spec.version, spec.signature, method, CallSender(context))
        found = messages.decode_input(request.input, self._max_body_bytes)
        response = await self._examples.ask(revision, signature, found, timeout_s(context))
        messages.fill_spec(answering, response, revision.signature_name)
        return response, len(found)

    @unary_edge(pb.MultiInferenceResponse)
    async def MultiInference(  # noqa: N802
        self, request: pb.MultiInferenceRequest, context: Context
    ) -> pb.MultiInferenceResponse:
        """Several signatures of one model about the same examples."""
        tasks = messages.decode_tasks(request)
        sender, first = CallSender(context), tasks[0][0]
        version = self._plane.choose(first.model, first.version, sender)[0].version  # one revision answers all of them
        asked = [
            self._examples.find(spec.model, spec.version or version, spec.signature, method, sender)
            for spec, method in tasks
        ]
        messages.check_different([revision.signature_name for revision, _ in asked])
        found = messages.decode_input(request.input, self._max_body_bytes)
        responses = await self._ask_all(asked, found, timeout_s(context))
        message = pb.MultiInferenceResponse()
        for (_, method), (revision, _), response in zip(tasks, asked, responses, strict=True):
            result = message.results.add()
            messages.fill_spec(result.model_spec, response, revision.signature_name)
            if method == CLASSIFY:
                messages.fill_classes(*examples.to_classes(response, len(found)), result.classification_result)
            else:
                messages.fill_values(examples.to_values(response, len(found)), result.regression_result)
        return message

    async def _ask_all(
        self, asked: Sequence[tuple[RevisionRoute, Signature]], found: Sequence[bytes], limit_s: float | None
    ) -> list[InferenceResponse]:
        """The answers of all, or the first failure."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._examples.ask(*one, found, limit_s)) for one in asked]
        except ExceptionGroup as exc:
            raise exc.exceptions[0] from None
        return [task.result() for task in tasks]

    @unary_edge(pb.GetModelMetadataResponse)
    async def GetModelMetadata(  # noqa: N802
        self, request: pb.GetModelMetadataRequest, context: Context
    ) -> pb.GetModelMetadataResponse:
        """All signatures of a model."""
        spec = messages.decode_spec(request.model_spec)
        metadata.check_fields(request.metadata_field)
        revision, _ = self._plane.get_ready(spec.model, spec.version)
        return metadata.encode_metadata_message(revision.model, revision.version, revision.signatures)
