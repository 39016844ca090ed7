# SPDX-License-Identifier: Apache-2.0
"""The gRPC edge: the methods of ``inference.GRPCInferenceService`` and the standard health service.

"One request": as ``http``, for gRPC. Serve finds these methods by name on the ingress deployment.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Protocol

import grpc
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

from modelyard.dataplane import DataPlane
from modelyard.errors import InternalError, ModelNotReady, TooLarge
from modelyard.protocol import grpc as codec
from modelyard.protocol.errors import as_modelyard_error, to_message
from modelyard.serve.v2 import EXTENSIONS
from modelyard.version import __version__

logger = logging.getLogger(__name__)

# Serve's Python proxy pickles messages, and Triton's believe to be of a module that only their build knew.
sys.modules.setdefault(pb.ServerLiveRequest.__module__, pb)

_STATUS: Final = {status.value[0]: status for status in grpc.StatusCode}
_SERVICES: Final = frozenset({"", "inference.GRPCInferenceService", "grpc.health.v1.Health"})
_WATCH_INTERVAL_S: Final = 0.5
_GRPC_MAX_BYTES: Final = 2**31 - 1


class Context(Protocol):
    """What the methods need of a call's context; grpc's own and Serve's both have it."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets the call's status."""

    def set_details(self, details: str) -> None:
        """Sets the call's status message."""


def fail(context: Context, exc: Exception, method: str) -> None:
    """Sets the call's status from whatever its handler raised; faults of our own are logged here, once."""
    error = as_modelyard_error(exc)
    if isinstance(error, InternalError):
        logger.error("request to %s failed", method, exc_info=exc)
    context.set_code(_STATUS[error.grpc_status.value])
    context.set_details(to_message(error))


class GrpcMethods:
    """The methods, over one data plane.

    Args:
        plane: What answers.
        is_ready: Whether this ingress replica can answer at all.
        max_body_bytes: Beyond that the tensors of a request are refused.
    """

    def __init__(self, plane: DataPlane, is_ready: Callable[[], bool], max_body_bytes: int = _GRPC_MAX_BYTES) -> None:
        self._plane = plane
        self._is_ready = is_ready
        self._max_body_bytes = max_body_bytes

    async def infer(self, message: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """ModelInfer."""
        try:
            revision, signature = self._plane.get_ready(message.model_name, message.model_version)
            if message.ByteSize() > self._max_body_bytes:
                raise TooLarge("request message", self._max_body_bytes, message.ByteSize())
            decoded = codec.decode_infer(message)
            response = await self._plane.infer(revision, signature, decoded)
            return codec.encode_infer(response, decoded, codec.is_raw(message))
        except Exception as exc:  # noqa: BLE001  # the edge: everything becomes a status
            fail(context, exc, "ModelInfer")
            return pb.ModelInferResponse()

    def server_live(self) -> pb.ServerLiveResponse:
        """ServerLive."""
        return pb.ServerLiveResponse(live=True)

    def server_ready(self) -> pb.ServerReadyResponse:
        """ServerReady."""
        return pb.ServerReadyResponse(ready=self._is_ready())

    def model_ready(self, message: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """ModelReady: a known model that is not ready is an answer, an unknown one an error."""
        try:
            self._plane.get_ready(message.name, message.version)
        except ModelNotReady:
            return pb.ModelReadyResponse(ready=False)
        except Exception as exc:  # noqa: BLE001  # the edge
            fail(context, exc, "ModelReady")
            return pb.ModelReadyResponse()
        return pb.ModelReadyResponse(ready=True)

    def server_metadata(self) -> pb.ServerMetadataResponse:
        """ServerMetadata."""
        return codec.encode_server_metadata(__version__, EXTENSIONS)

    def model_metadata(self, message: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """ModelMetadata."""
        try:
            revision, signature = self._plane.get_ready(message.name, message.version)
            versions = self._plane.table.get_model(revision.model).ready_versions
            return codec.encode_model_metadata(revision.model, versions, revision.framework, signature)
        except Exception as exc:  # noqa: BLE001  # the edge
            fail(context, exc, "ModelMetadata")
            return pb.ModelMetadataResponse()

    def health(self, service: str) -> int | None:
        """The standard health service's status of a service: ours, or a model by its name; None where unknown.

        Source: gRPC Health Checking Protocol.
        """
        if service in _SERVICES:
            is_serving = self._is_ready()
        else:
            model = self._plane.table.find_model(service)
            if model is None:
                return None
            is_serving = model.revisions[model.active].is_ready
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        return int(serving if is_serving else not_serving)

    def check(self, message: Any, context: Context) -> Any:
        """Health.Check."""
        status = self.health(message.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details(f'service "{message.service}" is not known')
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=status)

    async def watch(self, message: Any) -> AsyncIterator[Any]:
        """Health.Watch: the status now, and again whenever it changes."""
        last: int | None = None
        while True:
            status = self.health(message.service)
            if status is None:
                status = int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(_WATCH_INTERVAL_S)
