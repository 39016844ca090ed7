# SPDX-License-Identifier: Apache-2.0
"""What a reply of the OpenAI protocol says, whatever parts and events it came in: to compare two of them.

Source: OpenAI API reference, "Streaming" of chat completions, completions, responses and transcriptions.
"""

from __future__ import annotations

import binascii
import math
import re
from base64 import b64decode
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest
from modelyard.openai import EVENTS, OpenAIRequest, Part
from modelyard.protocol.http import load_json

DONE: Final = b"data: [DONE]\n\n"
"""The last event of most streams: their readers go when they have it."""
_SAMPLING: Final = ("chat/completions", "completions", "responses")
_CHANGING: Final = frozenset(
    ("id", "call_id", "item_id", "created", "created_at", "completed_at", "usage", "system_fingerprint", "model")
)
"""Members that no two replies share, and what only counts."""
_WHOLE: Final = frozenset(("role", "type", "name", "finish_reason", "stop_reason"))
"""Members of events that are not parts of a text."""
_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")
_MAY_FAIL: Final = re.compile(rb'"error"\s*:\s*\{|:\s*"(?:error|failed|response\.failed)"')
"""What the replies that say a failure have in common; few others do."""
_MISTAKES: Final = frozenset(
    (
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "rate_limit_error",
        "rate_limit_exceeded",
        "invalid_prompt",
    )
)
"""Types and codes of errors that are no faults of the server."""
_SERVER_ERROR: Final = 500


def is_sampled(request: OpenAIRequest) -> bool:
    """Two answers to it are two samples: nothing is wrong where they differ."""
    if request.route not in _SAMPLING:
        return False
    try:
        body = load_json(request.body)
    except InvalidRequest:
        return False
    return isinstance(body, dict) and body.get("temperature") != 0 and body.get("seed") is None


def is_fault(part: Part) -> bool:
    """It says that the server failed: as a whole reply, or as an event of a stream."""
    if part.status >= _SERVER_ERROR or not _MAY_FAIL.search(part.data):
        return part.status >= _SERVER_ERROR
    return any(map(_says_fault, _documents(part)))


def _says_fault(document: dict[str, Any]) -> bool:
    response = document.get("response") if document.get("type") == "response.failed" else document
    error = response.get("error") if isinstance(response, dict) else None
    if document.get("type") == "error":
        error = error or document
    elif document.get("type") == "response.failed" or document.get("status") == "failed":
        error = error or {}
    return isinstance(error, dict) and not _is_mistake(error)


def _is_mistake(error: dict[str, Any]) -> bool:
    """The client's own, in OpenAI's words or with vLLM's status as its code."""
    code = error.get("code")
    is_small = isinstance(code, int) and code < _SERVER_ERROR
    return is_small or error.get("type") in _MISTAKES or (isinstance(code, str) and code in _MISTAKES)


def is_same_answer(one: Sequence[Part], other: Sequence[Part], tolerance: float, *, in_words: bool) -> bool:
    """Whether two replies say the same.

    Args:
        one: All parts of the caller's.
        other: All parts of the copy's.
        tolerance: Numbers that differ by so much, relatively or absolutely, are the same; whole ones are not.
        in_words: Word by word; else it is enough that both are answers, or both are none.
    """
    if [part.status for part in one[:1]] != [part.status for part in other[:1]]:
        return False
    if any(map(is_fault, one)) != any(map(is_fault, other)):
        return False
    return not one or not in_words or _is_alike(_to_document(one), _to_document(other), tolerance)


def _to_document(parts: Sequence[Part]) -> Any:
    """What the reply says as JSON, of a stream as if it had not been one."""
    data = b"".join(part.data for part in parts)
    if parts[0].content_type == EVENTS:
        return _simplify(_join(list(_events(data)), has_ended=DONE.strip() in data))
    try:
        return _simplify(load_json(data))
    except InvalidRequest:
        return data  # a transcription as text


def _documents(part: Part) -> Iterator[dict[str, Any]]:
    if part.content_type == EVENTS:
        yield from _events(part.data)
        return
    try:
        document = load_json(part.data)
    except InvalidRequest:
        return
    if isinstance(document, dict):
        yield document


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        field, _, value = line.partition(b":")
        if field != b"data" or value.strip() == b"[DONE]":
            continue
        try:
            event = load_json(value.strip())
        except InvalidRequest:
            event = {"error": {"code": None}}
        if isinstance(event, dict):
            yield event


def _join(events: Sequence[dict[str, Any]], *, has_ended: bool) -> Any:
    ends = [event.get("response") for event in events if event.get("type") in _ENDS]
    if ends:
        return ends[-1]
    choices: list[list[Any]] = []
    texts: dict[str, str] = {}
    others: list[dict[str, Any]] = []
    for event in events:
        kind, delta = str(event.get("type")), event.get("delta")
        if isinstance(found := event.get("choices"), list):
            # Those of transcriptions have no index.
            choices.append([{"index": at} | one for at, one in enumerate(found) if isinstance(one, dict)])
        elif isinstance(delta, str):
            texts[kind] = texts.get(kind, "") + delta
        else:
            others.append({name: value for name, value in event.items() if name != "sequence_number"})
    joined: list[Any] = reduce(_merge_lists, choices, [])
    return {"choices": joined, "texts": texts, "others": others, "has_ended": has_ended}


def _merge(begun: Any, more: Any) -> Any:
    """A part of a reply with what the next event adds to it."""
    if begun is None or more is None:
        return begun if more is None else more
    if isinstance(begun, dict) and isinstance(more, dict):
        added = {
            name: value if name in _WHOLE and value is not None else _merge(begun.get(name), value)
            for name, value in more.items()
        }
        return begun | added
    if isinstance(begun, list) and isinstance(more, list):
        return _merge_lists(begun, more)
    return begun + more if isinstance(begun, str) and isinstance(more, str) else more


def _merge_lists(begun: list[Any], more: list[Any]) -> list[Any]:
    """Choices and calls of tools have an index; everything else comes one after another."""
    if not all(isinstance(one, dict) and isinstance(one.get("index"), int) for one in (*begun, *more)):
        return [*begun, *more]
    by_index = {one["index"]: one for one in begun}
    for one in more:
        by_index[one["index"]] = _merge(by_index.get(one["index"]), one)
    return [by_index[index] for index in sorted(by_index)]


def _simplify(value: Any, name: str = "") -> Any:
    """Without what changes from reply to reply, and what says nothing: an absent member is as good as an empty one."""
    if isinstance(value, dict):
        simple = {key: _simplify(one, key) for key, one in value.items() if key not in _CHANGING}
        return {key: one for key, one in simple.items() if one is not None and one not in ([], {})}
    if isinstance(value, list):
        return [_simplify(one) for one in value]
    return _to_numbers(value) if name == "embedding" and isinstance(value, str) else value


def _to_numbers(text: str) -> Any:
    """An embedding that was asked for as base64. Source: OpenAI API reference, ``encoding_format``."""
    try:
        return np.frombuffer(b64decode(text, validate=True), "<f4").tolist()
    except (binascii.Error, ValueError):
        return text


def _is_alike(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_alike(one[name], other[name], tolerance) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(lambda a, b: _is_alike(a, b, tolerance), one, other))
    if {type(one), type(other)} in ({float}, {int, float}):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return type(one) is type(other) and bool(one == other)
