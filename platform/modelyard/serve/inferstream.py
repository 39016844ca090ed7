# SPDX-License-Identifier: Apache-2.0
"""One ``ModelStreamInfer``: several requests in flight, each answered by one message or many, errors among them.

Answers of models that give exactly one come in the order of the requests, those of decoupled models as they are made.

Source: ``grpc_service.proto`` and what Triton 2.51 does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

from tritonclient.grpc import service_pb2 as pb

from modelyard.dataplane import DataPlane
from modelyard.errors import InternalError, InvalidRequest, ModelyardError
from modelyard.inference import InferenceRequest
from modelyard.protocol import grpc as codec
from modelyard.protocol.errors import as_modelyard_error
from modelyard.routing import RevisionRoute, Sender
from modelyard.signature import Signature

logger = logging.getLogger(__name__)

_REQUESTS_AT_ONCE: Final = 256
_ANSWERS_AHEAD: Final = 64
_WANTS_FINAL: Final = "triton_enable_empty_final_response"


class InferStream:
    """The state of one stream.

    Args:
        plane: What answers.
        check_size: Raises where a request is too large.
        ident: The call's id, for the log.
        ends_with_error: The first error ends the stream with its status, instead of being a message in it.
        sender: Whose stream it is.
    """

    def __init__(
        self,
        plane: DataPlane,
        check_size: Callable[[pb.ModelInferRequest], None],
        ident: str,
        ends_with_error: bool,
        sender: Sender,
    ) -> None:
        self._plane = plane
        self._check_size = check_size
        self._ident = ident
        self._ends_with_error = ends_with_error
        self._sender = sender
        self._room = asyncio.Semaphore(_REQUESTS_AT_ONCE)
        self._outbox: asyncio.Queue[pb.ModelStreamInferResponse | Exception | None] = asyncio.Queue(_ANSWERS_AHEAD)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timeout_s: float | None = None

    async def answer(
        self, requests: AsyncIterator[pb.ModelInferRequest | InvalidRequest], timeout_s: float | None
    ) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        """All answers to all requests; ends when the client has sent its last and has the answer to it.

        Args:
            requests: As they come.
            timeout_s: What is left of the call's deadline, in seconds.

        Raises:
            ModelyardError: The first error, where the client wants it so; or what came is no message.
        """
        self._timeout_s = timeout_s
        reader = asyncio.create_task(self._read(requests))
        try:
            while (item := await self._outbox.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            for task in (reader, *self._tasks):
                task.cancel()
            await asyncio.gather(reader, *self._tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[pb.ModelInferRequest | InvalidRequest]) -> None:
        """Begins to answer each request as it comes; not more at once than there is room for."""
        before: asyncio.Event | None = None
        try:
            async for message in requests:
                if isinstance(message, InvalidRequest):  # see rpc.read_leniently
                    raise message
                await self._room.acquire()
                if self._is_decoupled(message):
                    task = asyncio.create_task(self._answer(message, None, asyncio.Event()))
                else:
                    done = asyncio.Event()
                    task = asyncio.create_task(self._answer(message, before, done))
                    before = done
                self._tasks.add(task)
                task.add_done_callback(self._forget)
            await asyncio.gather(*self._tasks)
        except Exception as exc:  # noqa: BLE001  # what the transport raises ends the stream
            await self._outbox.put(exc)
        await self._outbox.put(None)

    def _is_decoupled(self, message: pb.ModelInferRequest) -> bool:
        try:
            return self._plane.get_ready(message.model_name, message.model_version)[1].decoupled
        except ModelyardError:  # it is answered with that
            return False

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()

    async def _answer(self, message: pb.ModelInferRequest, before: asyncio.Event | None, done: asyncio.Event) -> None:
        """One request.

        Args:
            message: The request.
            before: Set when those whose turn comes first are answered; None where there is none.
            done: To be set when this one is.
        """
        try:
            revision, signature = self._plane.choose(message.model_name, message.model_version, self._sender)
            if signature.decoupled:
                await self._answer_many(message, revision, signature)
            else:
                await self._answer_once(message, revision, signature, before)
        except Exception as exc:  # the edge: everything becomes a message, or the stream's end
            error = as_modelyard_error(exc)
            if isinstance(error, InternalError):
                logger.error("request %s in stream %s failed", message.id, self._ident, exc_info=exc)
            if before is not None:
                await before.wait()
            await self._outbox.put(error if self._ends_with_error else _to_error(message, error))
        finally:
            done.set()

    def _decode(self, message: pb.ModelInferRequest) -> tuple[InferenceRequest, bool]:
        """The request, and whether it wants an empty answer at its end."""
        self._check_size(message)
        decoded = codec.decode_infer(message)
        wants_final = decoded.parameters.get(_WANTS_FINAL, False)
        if not isinstance(wants_final, bool):
            raise InvalidRequest(f'parameters "{_WANTS_FINAL}": expected a boolean, got {wants_final!r}')
        return decoded, wants_final

    async def _answer_once(
        self, message: pb.ModelInferRequest, revision: RevisionRoute, signature: Signature, before: asyncio.Event | None
    ) -> None:
        decoded, _ = self._decode(message)
        response = await self._plane.infer(revision, signature, decoded, self._timeout_s)
        encoded = codec.encode_infer(response, decoded, codec.is_raw(message))
        if before is not None:
            await before.wait()
        await self._outbox.put(codec.encode_stream(encoded, is_final=True))

    async def _answer_many(self, message: pb.ModelInferRequest, revision: RevisionRoute, signature: Signature) -> None:
        decoded, wants_final = self._decode(message)
        raw = codec.is_raw(message)
        async with contextlib.aclosing(self._plane.stream(revision, signature, decoded, self._timeout_s)) as responses:
            async for response in responses:
                encoded = codec.encode_infer(response, decoded, raw)
                await self._outbox.put(codec.encode_stream(encoded, is_final=False))
        if wants_final:
            empty = pb.ModelInferResponse(model_name=revision.model, model_version=revision.version, id=message.id)
            await self._outbox.put(codec.encode_stream(empty, is_final=True))


def _to_error(message: pb.ModelInferRequest, error: ModelyardError) -> pb.ModelStreamInferResponse:
    return codec.encode_stream_error(message.model_name, message.id, error)
