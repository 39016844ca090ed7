# SPDX-License-Identifier: Apache-2.0
"""The gRPC edge: ``inference.GRPCInferenceService`` and the standard health service.

"One request": as ``http``, for gRPC. The names of the methods are those of the services' definitions.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from modelyard.dataplane import DataPlane, new_id
from modelyard.errors import InternalError, InvalidRequest, ModelNotReady, TooLarge, Unsupported
from modelyard.protocol import grpc as codec
from modelyard.protocol.errors import as_modelyard_error, to_message
from modelyard.serve.extensions import LOGGING, SHARED_MEMORY, TRACE, count_models, describe_config
from modelyard.serve.inferstream import InferStream
from modelyard.serve.repository import Repository
from modelyard.serve.v2 import EXTENSIONS
from modelyard.version import __version__

logger = logging.getLogger(__name__)

# Serve's Python proxy pickles messages, and Triton's believe to be of a module that only their build knew.
sys.modules.setdefault(pb.ServerLiveRequest.__module__, pb)

_STATUS: Final = {status.value[0]: status for status in grpc.StatusCode}
INFERENCE: Final = "inference.GRPCInferenceService"
PREDICTION: Final = "tensorflow.serving.PredictionService"
MODELS: Final = "tensorflow.serving.ModelService"
HEALTH: Final = "grpc.health.v1.Health"
_SERVICES: Final = frozenset({"", INFERENCE, PREDICTION, MODELS, HEALTH})
_WATCH_INTERVAL_S: Final = 0.5
MAX_BYTES: Final = 2**31 - 1
_REQUEST_ID: Final = "x-request-id"
_MAX_ID_CHARS: Final = 1024

Metadata = Sequence[tuple[str, str | bytes]]
T = TypeVar("T")


class Context(Protocol):
    """What the methods need of a call's context; grpc's own and Serve's both have it."""

    def invocation_metadata(self) -> Metadata:
        """What the client sent beside the message."""

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """What the client gets beside the status."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets the call's status."""

    def set_details(self, details: str) -> None:
        """Sets the call's status message."""


def fail(context: Context, exc: Exception, method: str, ident: str) -> None:
    """Sets the call's status from whatever its handler raised; faults of our own are logged here, once."""
    error = as_modelyard_error(exc)
    if isinstance(error, InternalError):
        logger.error("request %s to %s failed", ident, method, exc_info=exc)
    context.set_code(_STATUS[error.grpc_status.value])
    context.set_details(to_message(error))


def take_request_id(context: Context) -> str:
    """The caller's ``x-request-id`` or a new one; it goes back with the status."""
    ident = ""
    for key, value in context.invocation_metadata():
        if key == _REQUEST_ID and isinstance(value, str):
            ident = value[:_MAX_ID_CHARS]
    ident = ident or new_id()
    context.set_trailing_metadata([(_REQUEST_ID, ident)])  # a list: Serve's own context adds to one
    return ident


class CallSender:
    """Where a call comes from, as the choice of a revision wants to know it; see ``routing.Sender``.

    Args:
        context: The call's.
    """

    __slots__ = ("_context",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def header(self, name: str) -> str:
        """The metadata of that name."""
        wanted = name.lower()
        found = (value for key, value in self._context.invocation_metadata() if key == wanted)
        value = next(found, "")
        return value if isinstance(value, str) else value.decode("latin-1")

    def cookie(self, name: str) -> str:
        """The metadata of that name: gRPC has no cookies."""
        return self.header(name)


def timeout_s(context: Any) -> float | None:
    """What is left of the client's deadline, in seconds. Serve's own context does not know."""
    remaining = getattr(context, "time_remaining", None)
    return None if remaining is None else remaining()


def read_leniently(service: str, methods: Mapping[str, Any]) -> grpc.GenericRpcHandler[Any, Any]:
    """A service whose methods get an ``InvalidRequest`` in place of bytes that are no message, and answer with it.

    grpc itself answers those with UNKNOWN and the name of a Python class, as if it were our fault.

    Args:
        service: Its name.
        methods: grpc's handler of each method.
    """
    lenient = {
        name: method._replace(request_deserializer=_lenient(name, method.request_deserializer))
        for name, method in methods.items()
    }
    return grpc.method_handlers_generic_handler(service, lenient)


def _lenient(name: str, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return InvalidRequest(f"{name}: the request is no message of its type")

    return read


Unary = Callable[[Any, Any, Context], Awaitable[T]]


def unary_edge(empty: Callable[[], T]) -> Callable[[Unary[T]], Unary[T]]:
    """Around a unary method: the request's id, and a status for whatever is raised.

    Args:
        empty: Makes the message that goes with an error; nobody reads it.
    """

    def wrap(method: Unary[T]) -> Unary[T]:
        @functools.wraps(method)
        async def call(self: Any, request: Any, context: Context) -> T:
            ident = take_request_id(context)
            try:
                if isinstance(request, InvalidRequest):
                    raise request
                return await method(self, request, context)
            except Exception as exc:  # noqa: BLE001  # the edge: everything becomes a status
                fail(context, exc, method.__name__, ident)
                return empty()

        return call

    return wrap


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped stubs
    """The Open Inference Protocol with Triton's extensions, over one data plane.

    Args:
        plane: What answers.
        repository: What loads and unloads.
        is_ready: Whether this ingress replica can answer at all.
        max_body_bytes: Beyond that the tensors of a request are refused.
    """

    def __init__(
        self,
        plane: DataPlane,
        repository: Repository,
        is_ready: Callable[[], bool],
        max_body_bytes: int = MAX_BYTES,
    ) -> None:
        self._plane = plane
        self._repository = repository
        self._is_ready = is_ready
        self._max_body_bytes = max_body_bytes

    @unary_edge(pb.ModelInferResponse)
    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:  # noqa: N802
        """One inference."""
        revision, signature = self._plane.choose(request.model_name, request.model_version, CallSender(context))
        self._check_size(request)
        decoded = codec.decode_infer(request)
        response = await self._plane.infer(revision, signature, decoded, timeout_s(context))
        return codec.encode_infer(response, decoded, codec.is_raw(request))

    def _check_size(self, request: pb.ModelInferRequest) -> None:
        if request.ByteSize() > self._max_body_bytes:
            raise TooLarge("request message", self._max_body_bytes, request.ByteSize())

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Any number of requests in, any number of answers to each out."""
        ident = take_request_id(context)
        ends_with_error = ("triton_grpc_error", "true") in context.invocation_metadata()
        stream = InferStream(self._plane, self._check_size, ident, ends_with_error, CallSender(context))
        try:
            async for response in stream.answer(requests, timeout_s(context)):
                yield response
        except Exception as exc:  # noqa: BLE001  # the edge: everything becomes a status
            fail(context, exc, "ModelStreamInfer", ident)

    @unary_edge(pb.ServerLiveResponse)
    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:  # noqa: N802
        """The process runs."""
        return pb.ServerLiveResponse(live=True)

    @unary_edge(pb.ServerReadyResponse)
    async def ServerReady(  # noqa: N802
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        """Requests can be answered now."""
        return pb.ServerReadyResponse(ready=self._is_ready())

    @unary_edge(pb.ModelReadyResponse)
    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:  # noqa: N802
        """A known model that is not ready is an answer, an unknown one an error."""
        try:
            self._plane.get_ready(request.name, request.version)
        except ModelNotReady:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    @unary_edge(pb.ServerMetadataResponse)
    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """Name, version, extensions."""
        return codec.encode_server_metadata(__version__, EXTENSIONS)

    @unary_edge(pb.ModelMetadataResponse)
    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """Inputs and outputs of one model."""
        revision, signature = self._plane.get_ready(request.name, request.version)
        versions = tuple(self._plane.table.get_model(revision.model).revisions)
        return codec.encode_model_metadata(revision.model, versions, revision.framework, signature)

    @unary_edge(pb.ModelConfigResponse)
    async def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        """How one model is set up."""
        return codec.encode_config(describe_config(self._plane, request.name, request.version))

    @unary_edge(pb.ModelStatisticsResponse)
    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """What one model has answered, or all of them."""
        return codec.encode_statistics(await count_models(self._plane, request.name, request.version))

    @unary_edge(pb.RepositoryIndexResponse)
    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """All models and versions."""
        return codec.encode_index(self._repository.index(request.ready))

    @unary_edge(pb.RepositoryModelLoadResponse)
    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Starts a model, or reads its artifact again."""
        parameters = codec.decode_repository_parameters(request.parameters)
        await self._repository.load(request.model_name, parameters, timeout_s(context), actor="grpc")
        return pb.RepositoryModelLoadResponse()

    @unary_edge(pb.RepositoryModelUnloadResponse)
    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Stops a model."""
        parameters = codec.decode_repository_parameters(request.parameters)
        await self._repository.unload(request.model_name, parameters, timeout_s(context), actor="grpc")
        return pb.RepositoryModelUnloadResponse()


def _refuse(name: str, reason: str) -> Unary[Any]:
    async def refuse(self: InferenceService, request: Any, context: Context) -> Any:
        raise Unsupported(reason)

    refuse.__name__ = name
    # Which message goes with the error is the method's own business: gRPC does not send it.
    response: Callable[[], Any] = getattr(pb, f"{name}Response")
    return unary_edge(response)(refuse)


_REFUSED: Final = {
    **{
        f"{kind}SharedMemory{verb}": SHARED_MEMORY
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
    "TraceSetting": TRACE,
    "LogSettings": LOGGING,
}
for _name, _reason in _REFUSED.items():
    setattr(InferenceService, _name, _refuse(_name, _reason))


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped stubs
    """The standard health service: ours, and each model by its name.

    Args:
        plane: Whose models.
        is_ready: Whether this ingress replica can answer at all.

    Source: gRPC Health Checking Protocol.
    """

    def __init__(self, plane: DataPlane, is_ready: Callable[[], bool]) -> None:
        self._plane = plane
        self._is_ready = is_ready

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The status of one service now."""
        status = self._find_status(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details(f'service "{request.service}" is not known')
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now, and again whenever it changes."""
        last: int | None = None
        while True:
            status = self._find_status(request.service)
            if status is None:
                status = int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(_WATCH_INTERVAL_S)

    def _find_status(self, service: str) -> int | None:
        if service in _SERVICES:
            is_serving = self._is_ready()
        else:
            model = self._plane.table.find_model(service)
            if model is None:
                return None
            is_serving = model.revisions[model.active].is_ready
        serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        return int(serving if is_serving else not_serving)
