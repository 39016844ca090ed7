# SPDX-License-Identifier: Apache-2.0
"""What ``grpc_options.grpc_servicer_functions`` of a Serve file names: the services on the gRPC port.

Serve calls these functions in each process that listens. Behind HAProxy that is the ingress replica itself: there the
services run on the server directly, at half the cost of Serve's way through its request wrappers. In Serve's Python
proxy they are registered as usual, and Serve routes each call to the ingress deployment's method of the same name,
which :func:`route_through` has given it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2_grpc
from ray.serve.grpc_util import RayServegRPCContext
from tritonclient.grpc import service_pb2_grpc

from modelyard.protos import publish
from modelyard.protos import tensorflow_serving_pb2 as serving_pb2
from modelyard.serve.rpc import HEALTH, INFERENCE, MODELS, PREDICTION, read_leniently

_local: dict[str, Any] = {}


def serve_locally(services: Mapping[str, Any]) -> None:
    """Says that this process is an ingress replica; its constructor calls this before Serve opens the port.

    Args:
        services: What answers, by the service's name.
    """
    _local.update(services)


def add_inference_service(servicer: Any, server: Any) -> None:
    """Adds ``inference.GRPCInferenceService``."""
    chosen = _choose(INFERENCE, servicer, server)
    target = server if chosen is servicer else LenientServer(server)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(chosen, target)


def add_prediction_service(servicer: Any, server: Any) -> None:
    """Adds ``tensorflow.serving.PredictionService``."""
    _add_described(PREDICTION, servicer, server)


def add_model_service(servicer: Any, server: Any) -> None:
    """Adds ``tensorflow.serving.ModelService``."""
    _add_described(MODELS, servicer, server)


def add_health_service(servicer: Any, server: Any) -> None:
    """Adds the standard health service."""
    health_pb2_grpc.add_HealthServicer_to_server(_choose(HEALTH, servicer, server), server)


def _add_described(name: str, servicer: Any, server: Any) -> None:
    """Adds a service whose methods all take and give one message, from its definition."""
    publish()  # gRPC reflection looks for definitions among those of the process
    chosen = _choose(name, servicer, server)
    methods = serving_pb2.DESCRIPTOR.services_by_name[name.rpartition(".")[2]].methods
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            getattr(chosen, method.name),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=_serialize,
        )
        for method in methods
    }
    server.add_generic_rpc_handlers((read_leniently(name, handlers),))


def _serialize(message: Message) -> bytes:
    """Of whatever message: one may stand for another of the same bytes."""
    return message.SerializeToString()


class LenientServer:
    """A server as the generated functions use it; its services answer themselves what they cannot read."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Nothing: the same methods come once more, by name."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        """Adds the service."""
        self._server.add_generic_rpc_handlers((read_leniently(service, methods),))


def _choose(name: str, servicer: Any, server: Any) -> Any:
    if name not in _local or not hasattr(server, "add_passthrough_service"):
        return servicer
    server.add_passthrough_service(name)
    return _local[name]


def route_through(deployment: type, attribute: str, service: type) -> None:
    """Gives a deployment the methods of a service, for Serve's Python proxy to find.

    Args:
        deployment: The class that gets them.
        attribute: Where its instances hold the service.
        service: The service.
    """
    for name, method in inspect.getmembers(service, inspect.isfunction):
        if name[0].isupper():
            make = _stream_method if inspect.isasyncgenfunction(method) else _unary_method
            setattr(deployment, name, make(attribute, name))


def _unary_method(attribute: str, name: str) -> Any:
    async def call(self: Any, request: Any, grpc_context: RayServegRPCContext) -> Any:
        return await getattr(getattr(self, attribute), name)(request, grpc_context)

    call.__name__ = call.__qualname__ = name
    return call


def _stream_method(attribute: str, name: str) -> Any:
    async def stream(self: Any, request: Any, grpc_context: RayServegRPCContext) -> AsyncIterator[Any]:
        async for response in getattr(getattr(self, attribute), name)(request, grpc_context):
            yield response

    stream.__name__ = stream.__qualname__ = name
    return stream
