# SPDX-License-Identifier: Apache-2.0
"""The OpenAI protocol for all models that speak it: the name in the body picks the model, the model answers.

"One request": between the HTTP edge and the data plane. Bodies and events pass as they are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from functools import partial
from typing import Final

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from modelyard.dataplane import DataPlane
from modelyard.errors import InternalError, InvalidRequest, ModelFailed, ModelNotFound, UnsupportedMediaType
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.openai import (
    EVENTS,
    JSON,
    MEMBER,
    ROUTES,
    SIGNATURE,
    OpenAIRequest,
    Part,
    encode_error_event,
    part_from_tensors,
    request_to_tensors,
)
from modelyard.protocol.errors import as_modelyard_error
from modelyard.protocol.generate import EVENT_HEADERS
from modelyard.protocol.http import Encoded, Streamed, encode_json
from modelyard.protocol.openai import (
    BARE,
    KEEP_ALIVE,
    PREFIXES,
    check_model,
    decode_addressee,
    dump_error,
    rename,
    rename_in_form,
    to_affinity,
    to_model,
)
from modelyard.protocol.v1 import encode_model_list
from modelyard.routing import RevisionRoute, RouteTable, Sender
from modelyard.serve.edge import SHORT_WAY
from modelyard.serve.http import HttpRequest, RouteEntry

logger = logging.getLogger(__name__)

_FORM: Final = "multipart/form-data"


class OpenAIHandlers:
    """``/v1/…`` and ``/openai/v1/…``.

    Args:
        plane: What answers.
        keep_alive_s: How long an open stream may be silent, in seconds; then a comment keeps it open.
    """

    def __init__(self, plane: DataPlane, keep_alive_s: float) -> None:
        self._plane = plane
        self._keep_alive_s = keep_alive_s

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        paths = [(f"{prefix}/{route}", route) for prefix in PREFIXES for route in ROUTES]
        paths += [(f"/{route}", route) for route in BARE]
        models = "/openai/v1/models"
        return [
            *(("POST", path, partial(self._call, route)) for path, route in paths),
            ("GET", models, self.models),
            ("GET", models + "/{model}", self.model),
        ]

    async def models(self, request: HttpRequest) -> Encoded:
        """``GET /openai/v1/models``: those that speak the protocol."""
        table = self._plane.table
        return encode_model_list(
            {name: model.created_s for name, model in table.models.items() if _speaks(table, name)}
        )

    async def model(self, request: HttpRequest) -> Encoded:
        """``GET /openai/v1/models/{model}``."""
        name = request.path("model")
        find_revision(self._plane.table, name)
        known = self._plane.table.find_model(name) or self._plane.table.get_model(name.rpartition(":")[0])
        return encode_json(to_model(name, known.created_s))

    async def _call(self, route: str, request: HttpRequest) -> Encoded | Streamed:
        call, revision, is_stream, affinity = await self._decode(route, request)
        inputs = InferenceRequest(request_to_tensors(call), call.id, affinity=affinity)
        answers = self._plane.stream(revision.for_member(MEMBER), SIGNATURE, inputs, request.timeout_s())
        first = asyncio.ensure_future(_next(answers))
        try:
            # A stream that is silent for long begins with a comment; what comes after has to be an event then.
            await asyncio.wait({first}, timeout=self._keep_alive_s if is_stream else None)
            if not first.done() or first.result().content_type == EVENTS:
                events = _events(first, answers, request, route)
                return Streamed(200, events, EVENT_HEADERS, KEEP_ALIVE, self._keep_alive_s)
            part = first.result()
            body = b"".join([part.data, *[_part(answer).data async for answer in answers]])
        except BaseException:
            await _abandon(first, answers)
            raise
        await answers.aclose()
        length = b"%d" % len(body)
        return Encoded(part.status, body, ((b"content-type", part.content_type.encode()), (b"content-length", length)))

    async def _decode(self, route: str, request: HttpRequest) -> tuple[OpenAIRequest, RevisionRoute, bool, int]:
        """The call, who answers it, whether with events, and its affinity.

        Raises:
            InvalidRequest: Its body is damaged or names no model, or the model does not answer such calls.
            UnsupportedMediaType: Its body is of another type.
            ModelNotFound: There is no such model.
            ModelNotReady: It cannot answer now.
        """
        content_type = request.headers.get(b"content-type", b"").decode("latin-1")
        ident = request.scope.get(SHORT_WAY) or request.headers.get(b"x-request-id", b"")
        affinity = 0
        if route.startswith("audio/"):
            body = await request.raw_body()
            name, is_stream = await _decode_form(content_type, body)
            revision = find_revision(self._plane.table, name, request)
            if name != revision.model:
                body = rename_in_form(body, content_type, revision.model)
        else:
            content_type = JSON
            body = await request.body()
            addressee = decode_addressee(body)
            is_stream = addressee.is_stream
            affinity = to_affinity(addressee.document)
            revision = find_revision(self._plane.table, addressee.model, request)
            if addressee.model != revision.model:
                body = rename(addressee, revision.model)
        if route not in revision.openai_routes:
            known = ", ".join(f"/v1/{one}" for one in revision.openai_routes)
            raise InvalidRequest(
                f'model "{revision.model}" does not answer /v1/{route}: '
                + (f"it answers {known}" if known else f"it is no language model, but one of {revision.framework}")
            )
        return OpenAIRequest(route, body, content_type, ident.decode("latin-1")), revision, is_stream, affinity


def find_revision(table: RouteTable, name: str, sender: Sender | None = None) -> RevisionRoute:
    """Who answers to a name: a model, or ``model:revision`` or ``model:label``.

    Args:
        table: All models.
        name: As the client wrote it.
        sender: Whose request it is.

    Raises:
        ModelNotFound: Nobody does.
        ModelNotReady: It cannot answer now.
    """
    if table.find_model(name) is not None:
        return table.choose(name, sender=sender)[0]
    model, colon, version = name.rpartition(":")
    if not colon or table.find_model(model) is None or not version:
        raise ModelNotFound(name)
    return table.get_ready(model, version)[0]


def _speaks(table: RouteTable, name: str) -> bool:
    return bool(table.get_revision(name).openai_routes)


def _part(answer: InferenceResponse) -> Part:
    return part_from_tensors(answer.outputs)


async def _next(answers: AsyncGenerator[InferenceResponse]) -> Part:
    return _part(await anext(answers))


async def _abandon(first: asyncio.Future[Part], answers: AsyncGenerator[InferenceResponse]) -> None:
    """Ends a call that nobody waits for any more."""
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await answers.aclose()


async def _events(
    first: asyncio.Future[Part], answers: AsyncGenerator[InferenceResponse], request: HttpRequest, route: str
) -> AsyncGenerator[bytes]:
    sent = b""
    try:
        sent = _to_event(await first, route, sent)
        yield sent
        async for answer in answers:
            sent = _to_event(_part(answer), route, sent)
            yield sent
    except Exception as exc:  # noqa: BLE001  # the edge: the reply has begun, so its last event says it
        error = as_modelyard_error(exc)
        if isinstance(error, InternalError | ModelFailed):
            logger.warning("stream from %s failed: %s", request.scope["path"], error)
        yield encode_error_event(route, dump_error(error), sent)
    finally:
        await _abandon(first, answers)


def _to_event(part: Part, route: str, sent: bytes) -> bytes:
    """The part as events; an error whose status could not be told any more is one."""
    return part.data if part.content_type == EVENTS else encode_error_event(route, part.data, sent)


async def _decode_form(content_type: str, body: bytes) -> tuple[str, bool]:
    """The model's name and whether the call streams, from a form with a file.

    Raises:
        UnsupportedMediaType: It is no form.
        InvalidRequest: It is a damaged one, or names no model.
    """
    if content_type.partition(";")[0].strip().lower() != _FORM:
        raise UnsupportedMediaType(f'content type: expected {_FORM}, got "{content_type[:80]}"')

    async def chunks() -> AsyncGenerator[bytes]:
        yield body

    try:
        form = await MultiPartParser(Headers({"content-type": content_type}), chunks()).parse()
    except (MultiPartException, KeyError, AssertionError) as exc:
        raise InvalidRequest(f"the request body is not {_FORM}: {exc}") from None
    try:
        return check_model(form.get("model")), form.get("stream") in ("true", "True", "1")
    finally:
        await form.close()
