# SPDX-License-Identifier: Apache-2.0
"""What the admin routes read of a request: its JSON body, its reason, who asks."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qs

from modelyard.admin import By, ModelStatus
from modelyard.errors import InvalidRequest, TooLarge
from modelyard.protocol.fields import check_depth, check_object, check_text, expected, quoted
from modelyard.protocol.http import Encoded, encode_json, load_json
from modelyard.serve.http import HttpRequest

_MAX_DOCUMENT_BYTES: Final = 1024 * 1024
"""Of a model's description: Serve's own messages end at 4 MiB."""
_MAX_DEPTH: Final = 64
_MAX_MESSAGE_CHARS: Final = 4096
_MAX_ACTOR_CHARS: Final = 200
ACTOR_HEADER: Final = "x-modelyard-actor"
"""Who asks, for the history; our own client and command line send it."""
_FLAGS: Final = {"false": False, "true": True}
_GENERATION: Final = "expected_generation"
_DRY_RUN: Final = "dry_run"
MAX_ID: Final = 2**63 - 1
"""The largest number that a database keeps."""


def check_query(request: HttpRequest, *known: str) -> None:
    """Refuses what a change does not look at.

    Args:
        request: The request.
        known: Parameters of the query that it looks at, besides those of each change.

    Raises:
        InvalidRequest: It has others.
    """
    known = (*known, _DRY_RUN, _GENERATION)
    for name in _parse_query(request):
        if name not in known:
            raise InvalidRequest(f"query {name[:40]}: expected {quoted(known)}")


async def read_change(request: HttpRequest) -> tuple[dict[str, Any], By]:
    """The change in a body, and who makes it; the body is empty where nothing has to be said."""
    check_query(request)
    document = await read_document(request, b"{}")
    return document, to_by(request, pop_message(document))


async def read_document(request: HttpRequest, default: bytes = b"") -> dict[str, Any]:
    """The JSON object in a body, small and flat enough for the way to the controller.

    Args:
        request: The request.
        default: Stands for an empty body.

    Raises:
        InvalidRequest: It is no such object.
        TooLarge: It is too large.
    """
    body = await request.body()
    if len(body) > _MAX_DOCUMENT_BYTES:
        raise TooLarge("request body", _MAX_DOCUMENT_BYTES, len(body))
    document = check_object(load_json(body if body.strip() else default), "the request body")
    check_depth(document, _MAX_DEPTH, "the request body")
    return document


def pop_message(document: dict[str, Any]) -> str:
    """Takes the ``message`` out of a body.

    Raises:
        InvalidRequest: It is no text.
        TooLarge: It is too long.
    """
    return _check_message(check_text(document.pop("message", ""), "message"))


def pop_revision(document: dict[str, Any]) -> str | None:
    """Takes the ``revision`` out of a body: its number, as a number or a text, or a label; None where there is none.

    Raises:
        InvalidRequest: It is nothing of that.
    """
    revision = document.pop("revision", None)
    if type(revision) is int or (type(revision) is str and revision):
        return str(revision)
    if revision is not None:
        raise expected("revision", "a revision's number or label", revision)
    return None


def check_empty(document: dict[str, Any], known: str) -> None:
    """Refuses keys that nobody has taken out of a body.

    Args:
        document: What is left of it.
        known: The keys it may have, for the message.

    Raises:
        InvalidRequest: There are some.
    """
    if document:
        raise InvalidRequest(f"the request body: expected {known}, got the unknown keys {quoted(document)}")


def find_by(request: HttpRequest) -> By:
    """Who makes the change of a request without a body, whose ``message`` is in the query.

    Raises:
        InvalidRequest: The query has something else.
        TooLarge: The message is too long.
    """
    check_query(request, "message")
    return to_by(request, _check_message(find_parameter(request, "message")))


def to_by(request: HttpRequest, message: str) -> By:
    """Who makes a change, why, for which generation of the model, and whether it is a dry run.

    Raises:
        InvalidRequest: The generation is none, or ``dry_run`` is neither true nor false.
    """
    by: By = {"actor": actor_of(request), "message": message, _GENERATION: _find_generation(request)}
    return {**by, _DRY_RUN: True} if find_flag(request, _DRY_RUN) else by


def encode_change(status: ModelStatus, by: By, *, is_done: bool) -> Encoded:
    """The reply to a change: 200 where nothing is left to do, as of a dry run, else 202."""
    return encode_json(status.to_dict(), 200 if is_done or by.get("dry_run") else 202)


def find_parameter(request: HttpRequest, name: str) -> str:
    """A parameter of the query; the first where it comes twice, empty where it does not come."""
    return _parse_query(request).get(name, [""])[0]


def _parse_query(request: HttpRequest) -> dict[str, list[str]]:
    return parse_qs(request.scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)


def find_flag(request: HttpRequest, name: str) -> bool:
    """A parameter of the query that is ``true`` or ``false``; false where it does not come.

    Raises:
        InvalidRequest: It is neither, or comes more than once.
    """
    given = _parse_query(request).get(name, ["false"])
    if len(given) > 1 or given[0] not in _FLAGS:
        raise InvalidRequest(f'query {name}: expected true or false, got "{", ".join(given)[:40]}"')
    return _FLAGS[given[0]]


def find_number(request: HttpRequest, name: str, least: int, most: int) -> int | None:
    """An integer in the query, from ``least`` to ``most``; None where it does not come.

    Raises:
        InvalidRequest: It is none.
    """
    text = find_parameter(request, name)
    return to_number(text, f"query {name}", least, most) if text else None


def to_number(text: str, where: str, least: int, most: int) -> int:
    """An integer in digits, from ``least`` to ``most``.

    Raises:
        InvalidRequest: It is none.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise InvalidRequest(f'{where}: expected an integer from {least} to {most}, got "{text[:40]}"')
    return int(text)


def _find_generation(request: HttpRequest) -> int | None:
    """The generation that a change is for, in the query or in ``If-Match``; None where any will do."""
    asked = find_number(request, _GENERATION, 0, MAX_ID)
    match = request.header("if-match")
    if asked is not None or not match:
        return asked
    # RFC 9110 has entity tags in quotes there.
    return to_number(match.strip().removeprefix('"').removesuffix('"'), "header if-match", 0, MAX_ID)


def _check_message(message: str) -> str:
    if len(message) > _MAX_MESSAGE_CHARS:
        raise TooLarge("message", _MAX_MESSAGE_CHARS, len(message), "characters")
    return message


def actor_of(request: HttpRequest) -> str:
    """Who asks, as they say themselves, or from where: nothing here is verified."""
    named = (request.header(ACTOR_HEADER) or "").strip()
    if named.isprintable() and 0 < len(named) <= _MAX_ACTOR_CHARS:
        return named
    client = request.scope.get("client")
    return f"http:{client[0]}" if client else "http"
