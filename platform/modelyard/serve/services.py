# SPDX-License-Identifier: Apache-2.0
"""What ``grpc_options.grpc_servicer_functions`` of a Serve file names: the services on the gRPC port.

Serve calls these functions in each process that listens. Behind HAProxy that is the ingress replica itself: there the
handlers run on the server directly, at half the cost of Serve's way through its request wrappers. In Serve's Python
proxy they are registered as usual, and Serve routes each call to the ingress deployment's method of the same name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from modelyard.serve.rpc import GrpcMethods

_INFERENCE = "inference.GRPCInferenceService"
_HEALTH = "grpc.health.v1.Health"

_local: list[GrpcMethods] = []


def serve_locally(methods: GrpcMethods) -> None:
    """Says that this process is an ingress replica; its constructor calls this before Serve opens the port."""
    _local[:] = [methods]


def add_inference_service(servicer: Any, server: Any) -> None:
    """Adds ``inference.GRPCInferenceService``."""
    if _local and hasattr(server, "add_passthrough_service"):
        server.add_passthrough_service(_INFERENCE)
        servicer = _InferenceService(_local[0])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)


def add_health_service(servicer: Any, server: Any) -> None:
    """Adds the standard health service."""
    if _local and hasattr(server, "add_passthrough_service"):
        server.add_passthrough_service(_HEALTH)
        servicer = _HealthService(_local[0])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


class _InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped stubs
    """The service over one data plane; RPCs not named here answer UNIMPLEMENTED."""

    def __init__(self, methods: GrpcMethods) -> None:
        self._methods = methods

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        return await self._methods.infer(request, context)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:  # noqa: N802
        return self._methods.server_live()

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:  # noqa: N802
        return self._methods.server_ready()

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:  # noqa: N802
        return self._methods.model_ready(request, context)

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Any
    ) -> pb.ServerMetadataResponse:
        return self._methods.server_metadata()

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        return self._methods.model_metadata(request, context)


class _HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped stubs
    """The standard health service over one data plane."""

    def __init__(self, methods: GrpcMethods) -> None:
        self._methods = methods

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._methods.check(request, context)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:  # noqa: N802
        async for response in self._methods.watch(request):
            yield response
