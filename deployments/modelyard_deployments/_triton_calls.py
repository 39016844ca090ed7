# SPDX-License-Identifier: Apache-2.0
"""Calls to one Triton over gRPC: tensors to messages and back, its errors to ours.

By the stubs of ``tritonclient`` and not by its client: parameters, statuses and streams are needed as they are on the
wire, and a call takes 10 µs less.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from modelyard.errors import DeadlineExceeded, InvalidRequest, InvalidTensor, ModelNotReady, Overloaded, Unsupported
from modelyard.tensor import DATATYPES, Array, Parameters, ParameterValue, Tensors, datatype_of, from_raw, to_raw
from modelyard_deployments._triton_reasons import clean_reason

_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # It is back within seconds when it was started again; gRPC alone would wait up to two minutes.
    # Not min_reconnect_backoff_ms: it bounds how long one attempt may take, and a busy server takes its time.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_INT64: Final = range(-(2**63), 2**63)
_LEAVING_S: Final = 1.0
_QUEUE_FULL: Final = "Exceeds maximum queue size"


class TritonError(Exception):
    """Triton or the model in it failed."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a Triton is.

    Attributes:
        target: As gRPC writes it.
        away: What a client is told while it cannot be reached.
        metadata: Headers of each call, lower case.
        credentials: For TLS; None for a plain connection.
        timeout_s: Seconds that one call may take; None for no limit.
    """

    target: str
    away: str
    metadata: tuple[tuple[str, str], ...] = ()
    credentials: grpc.ChannelCredentials | None = None
    timeout_s: float | None = None


class Connection:
    """One channel, made in the event loop that first uses it.

    Args:
        endpoint: Where to.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel: grpc.aio.Channel | None = None
        self._calls: Any = None
        self._leaving: set[asyncio.Task[None]] = set()

    def _stub(self) -> Any:
        if self._channel is None:
            target, credentials = self._endpoint.target, self._endpoint.credentials
            if credentials is None:
                self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
            else:
                self._channel = grpc.aio.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)
            self._calls = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self._calls

    async def infer(self, request: Any) -> Tensors:
        """One answer; its arrays are views on the message, texts excepted.

        Raises:
            ModelyardError: The request does not fit, or Triton cannot answer now.
            TritonError: It failed.
        """
        endpoint = self._endpoint
        try:
            response = await self._stub().ModelInfer(request, metadata=endpoint.metadata, timeout=endpoint.timeout_s)
        except grpc.aio.AioRpcError as exc:
            raise self._to_error(exc, request.model_name) from exc
        return _decode(response)

    async def stream(self, request: Any) -> AsyncGenerator[Tensors]:
        """Each answer as it comes; closing the generator cancels the request in Triton, if it goes on for a second.

        Errors come as messages without a status. Asked for one by the header ``triton_grpc_error``, Triton 2.51 dies
        of the first that it sends.

        Raises:
            ModelyardError: As :meth:`infer`, also after some answers.
            TritonError: As :meth:`infer`, also after some answers.
        """

        async def requests() -> AsyncGenerator[Any]:
            yield request

        call = self._stub().ModelStreamInfer(requests(), metadata=self._endpoint.metadata)
        try:
            async for message in call:
                if message.error_message:
                    raise TritonError(clean_reason(message.error_message))
                yield _decode(message.infer_response)
        except grpc.aio.AioRpcError as exc:
            raise self._to_error(exc, request.model_name) from exc
        finally:
            if not call.done():
                leaving = asyncio.get_running_loop().create_task(_leave(call))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)

    def _to_error(self, exc: grpc.aio.AioRpcError, model: str) -> Exception:
        code, reason = exc.code(), clean_reason(exc.details() or exc.code().name)
        match code:
            case grpc.StatusCode.INVALID_ARGUMENT:
                return InvalidRequest(reason)
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return Overloaded(f'model "{model}": {reason}')
            case grpc.StatusCode.UNAVAILABLE if _QUEUE_FULL in reason:
                return Overloaded(f'model "{model}": its queue in Triton is full')
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.NOT_FOUND:
                return ModelNotReady(model, reason if self._is_connected() else self._endpoint.away)
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlineExceeded(self._endpoint.timeout_s or 0.0)
            case grpc.StatusCode.UNIMPLEMENTED:
                return Unsupported(reason)
        return TritonError(reason)

    def _is_connected(self) -> bool:
        return self._channel is not None and self._channel.get_state() is grpc.ChannelConnectivity.READY

    def close(self) -> None:
        """Lets the channel go, from any thread; there must be no call any more, but for streams that were left."""
        for leaving in list(self._leaving):
            leaving.get_loop().call_soon_threadsafe(leaving.cancel)
        self._channel = self._calls = None


async def _leave(call: Any) -> None:
    """Cancels a stream that does not end by itself soon.

    Triton before 24.12 can die of a cancellation that meets the end of the request.
    Source: https://github.com/triton-inference-server/server/pull/7840
    """
    try:
        async with asyncio.timeout(_LEAVING_S):
            async for _ in call:
                pass
    except TimeoutError:
        call.cancel()
    except grpc.aio.AioRpcError:
        pass  # it has ended with an error, which is nobody's any more


def open_channel(endpoint: Endpoint) -> grpc.Channel:
    """A channel for the questions that are asked while loading, where no event loop may be waited for."""
    if endpoint.credentials is None:
        return grpc.insecure_channel(endpoint.target, options=_CHANNEL_OPTIONS)
    return grpc.secure_channel(endpoint.target, endpoint.credentials, options=_CHANNEL_OPTIONS)


def encode(model: str, inputs: Tensors, outputs: Sequence[str], parameters: Parameters) -> Any:
    """The request; one copy of each tensor."""
    request = pb.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        request.raw_input_contents.append(bytes(to_raw(array)))
    for name in outputs:
        request.outputs.add(name=name)
    for name, value in parameters.items():
        setattr(request.parameters[name], _field(value), value)
    return request


def _field(value: ParameterValue) -> str:
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, int):
        return "int64_param" if value in _INT64 else "uint64_param"
    return "double_param" if isinstance(value, float) else "string_param"


def _decode(response: Any) -> Mapping[str, Array]:
    if len(response.outputs) != len(response.raw_output_contents):
        raise TritonError("it answered without raw_output_contents for each output")
    outputs: dict[str, Array] = {}
    for entry, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if entry.datatype not in DATATYPES:
            raise TritonError(f'output "{entry.name}" has the datatype {entry.datatype}')
        try:
            outputs[entry.name] = from_raw(raw, DATATYPES[entry.datatype], tuple(entry.shape), f'output "{entry.name}"')
        except InvalidTensor as exc:  # which would be the client's
            raise TritonError(str(exc)) from exc
    return outputs
