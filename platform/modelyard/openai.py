# SPDX-License-Identifier: Apache-2.0
"""What a model implements that speaks the OpenAI protocol itself: one call, answered by parts of an HTTP reply.

"One request": the ingress finds the model by its name in the body and hands the body over as it came; the model's
process decodes it, generates, and encodes. So a token is encoded once, where it was made, and an engine that has an
OpenAI server of its own keeps all of it.

The parts travel as the answers of a decoupled model (:data:`SIGNATURE`): with the same windows, deadlines,
cancellation and counts.
"""

from __future__ import annotations

import contextlib
import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson
from python_multipart.multipart import parse_options_header

from modelyard.model import Model
from modelyard.peers import PeerRequest, get_origin, get_peers
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Tensors

ROUTES: Final = (
    "chat/completions",
    "completions",
    "embeddings",
    "rerank",
    "score",
    "responses",
    "audio/transcriptions",
    "audio/translations",
    "tokenize",
    "detokenize",
)
"""Everything that a model may be asked, by the path below ``/v1``."""

MEMBER: Final = "openai"
"""The member of a model's replicas that answers these calls."""

_RESPONSES: Final = "responses"
_DISPOSITION: Final = b"content-disposition"
_NUMBER: Final = re.compile(rb'"sequence_number"\s*:\s*(\d+)')

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """One call.

    Attributes:
        route: One of :data:`ROUTES`.
        body: As the client sent it, decompressed; its ``model`` is a name that the model answers to.
        content_type: JSON, or ``multipart/form-data`` with its boundary for audio.
        id: The request's id, for the answer's ``id`` and for logs.
    """

    route: str
    body: bytes
    content_type: str = JSON
    id: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the reply.

    Attributes:
        data: Bytes of the body: the whole of a JSON reply, or one or more whole server-sent events.
        status: The reply's HTTP status; that of the first part counts.
        content_type: The reply's; that of the first part counts.
    """

    data: bytes
    status: int = 200
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class EngineStep:
    """What an engine tells of one step: it generates a token for each request that runs.

    Attributes:
        running: Requests in the batch.
        waiting: Requests that wait for a place in it.
        cache_usage: Part of the cache of keys and values that is taken, from 0 to 1.
        prompt_tokens: Tokens of prompts read in this step.
        generated_tokens: Tokens generated in it.
        first_token_s: For each request that got its first token: seconds since it came.
        between_tokens_s: For each other request: seconds since its last token.
        prefix_queries: Tokens of prompts that were looked for in the cache.
        prefix_hits: Those of them that were there.
    """

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_token_s: Sequence[float] = ()
    between_tokens_s: Sequence[float] = ()
    prefix_queries: int = 0
    prefix_hits: int = 0


class Meter:
    """Where an engine tells of its steps; this one forgets them."""

    def record(self, step: EngineStep) -> None:
        """Called after each step, always from the same thread."""


class OpenAIModel(Model):
    """A model that answers calls of the OpenAI protocol, beside those of :class:`~modelyard.model.Model`."""

    meter: Meter = Meter()
    """Where its engine tells of its steps; its replica sets it before ``start``."""

    openai_routes: tuple[str, ...] = ROUTES
    """Those of :data:`ROUTES` that it answers; all others are refused before they reach it."""

    @abstractmethod
    def answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        """Answers one call, on the replica's event loop; many run at once.

        When nobody waits any more the generator is closed, and generation has to end then.

        Args:
            request: The call; a client's mistake in its body is an answer with a status of 400, in OpenAI's shape.

        Returns:
            The parts of the reply. A stream's parts are events, each yielded as soon as it is known; what goes wrong
            after the first is an event, see :func:`encode_error_event`.

        Raises:
            ModelyardError: Anything else that the client has to know; the edge gives it OpenAI's shape.
        """


SIGNATURE: Final = Signature(
    inputs=tuple(TensorSpec(name, "BYTES", (1,)) for name in ("route", "body", "content_type", "id")),
    outputs=(
        TensorSpec("data", "BYTES", (1,)),
        TensorSpec("status", "INT32", (1,)),
        TensorSpec("content_type", "BYTES", (1,)),
    ),
    batch_axis=False,
    decoupled=True,
)
"""How calls and parts travel between the processes."""


def request_to_tensors(request: OpenAIRequest) -> Tensors:
    """The call as inputs of :data:`SIGNATURE`."""
    return {
        "route": _one(request.route.encode()),
        "body": _one(request.body),
        "content_type": _one(request.content_type.encode()),
        "id": _one(request.id.encode()),
    }


def request_from_tensors(inputs: Tensors) -> OpenAIRequest:
    """The call that :func:`request_to_tensors` packed."""
    route, body, content_type, ident = (inputs[name][0] for name in ("route", "body", "content_type", "id"))
    return OpenAIRequest(route.decode(), body, content_type.decode(), ident.decode())


def part_to_tensors(part: Part) -> Tensors:
    """The part as outputs of :data:`SIGNATURE`."""
    return {
        "data": _one(part.data),
        "status": np.array([part.status], np.int32),
        "content_type": _one(part.content_type.encode()),
    }


def part_from_tensors(outputs: Tensors) -> Part:
    """The part that :func:`part_to_tensors` packed."""
    return Part(outputs["data"][0], int(outputs["status"][0]), outputs["content_type"][0].decode())


async def ask(
    model: str, request: OpenAIRequest, *, version: str = "", timeout_s: float | None = None
) -> AsyncGenerator[Part]:
    """Another model's answer to a call, for the model that calls it; the parts as they come.

    Args:
        model: Its name on the platform.
        request: The call; ``model`` in its body is that name, too.
        version: A version's number or a label; empty for the one that answers now.
        timeout_s: How long it may take, in seconds. The request that the calling model runs for ends it as well.

    Raises:
        ModelNotReady: There is no such model or version, or it cannot answer now.
        ValueError: It does not answer such calls.
        ModelyardError: As :meth:`modelyard.peers.Peers.stream` says.
    """
    inputs = request_to_tensors(request)
    asked = PeerRequest(model, inputs, version=version, timeout_s=timeout_s, origin=get_origin(), is_openai=True)
    async with contextlib.aclosing(get_peers().stream(asked)) as answers:
        async for outputs in answers:
            yield part_from_tensors(outputs)


def encode_error_event(route: str, body: bytes, sent: bytes = b"") -> bytes:
    """The event that ends a stream with an error: ``data: {"error": …}``.

    Events of ``responses`` have a type and a number: there the error is one of the type ``error``, with its members as
    the reference has them, and once more below ``error``, for which OpenAI's client looks in every event.

    Args:
        route: What was asked.
        body: The error as a whole reply has it.
        sent: The event before it, for the number; empty where there is none.

    Source: OpenAI API reference, "Streaming events", "error".
    """
    error = _read_error(body) if route == _RESPONSES else None
    if error is None:
        return b"data: %b\n\n" % body
    numbers = _NUMBER.findall(sent)
    members = {name: error.get(name) for name in ("code", "message", "param")}
    number = int(numbers[-1]) + 1 if numbers else 0
    document = {"type": "error", **members, "sequence_number": number, "error": error}
    return b"event: error\ndata: %b\n\n" % orjson.dumps(document)


def _read_error(body: bytes) -> dict[str, object] | None:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else None


def read_disposition(head: bytes) -> dict[bytes, bytes]:
    """What the headers of a form's part say of it, ``name`` and ``filename``, read as Starlette does.

    Args:
        head: Of the part, its lines.
    """
    options: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == _DISPOSITION:
            options = parse_options_header(value)[1]
    return options


def _one(value: bytes) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    array = np.empty(1, object)
    array[0] = value
    return array


class OpenAIMember(Model):
    """The same model as a decoupled one of :data:`SIGNATURE`: what a replica runs under :data:`MEMBER`.

    Args:
        model: What answers.
    """

    concurrency = 4096

    def __init__(self, model: OpenAIModel) -> None:
        self._model = model

    @property
    def signature(self) -> Signature:
        """See :data:`SIGNATURE`."""
        return SIGNATURE

    async def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Mapping[str, object]) -> Tensors:
        """Never called: the signature is decoupled."""
        raise NotImplementedError

    async def stream(
        self, inputs: Tensors, outputs: tuple[str, ...], parameters: Mapping[str, object]
    ) -> AsyncGenerator[Tensors]:
        """The parts of the reply."""
        answer = self._model.answer(request_from_tensors(inputs))
        try:
            async for part in answer:
                yield part_to_tensors(part)
        finally:
            await answer.aclose()
