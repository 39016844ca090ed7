# SPDX-License-Identifier: Apache-2.0
"""What a reply of the OpenAI protocol says, whatever parts and events it came in: to compare two of them.

Source: OpenAI API reference, "Streaming" of chat completions, completions and responses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, Final

from modelyard.errors import InvalidRequest
from modelyard.openai import EVENTS, OpenAIRequest, Part
from modelyard.protocol.http import load_json

_SAMPLING: Final = ("chat/completions", "completions", "responses")
_CHANGING: Final = frozenset(
    ("id", "call_id", "item_id", "created", "created_at", "completed_at", "usage", "system_fingerprint", "model")
)
"""Members that no two replies share, and what only counts."""
_WHOLE: Final = frozenset(("role", "type", "finish_reason", "stop_reason"))
"""Members of events that are not parts of a text."""
_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")
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
    """It says that the server failed, as a whole reply or as a stream's last event."""
    if part.status >= _SERVER_ERROR:
        return True
    if part.content_type != EVENTS or b'"error"' not in part.data:
        return False
    errors = [event["error"] for event in _events(part.data) if isinstance(event.get("error"), dict)]
    return any(not _is_mistake(error) for error in errors)


def _is_mistake(error: dict[str, Any]) -> bool:
    """The client's own, in OpenAI's words or with vLLM's status as its code."""
    code = error.get("code")
    return error.get("type") == "invalid_request_error" or (isinstance(code, int) and code < _SERVER_ERROR)


def is_same_answer(one: Sequence[Part], other: Sequence[Part], tolerance: float, *, in_words: bool) -> bool:
    """Whether two replies say the same.

    Args:
        one: All parts of the caller's.
        other: All parts of the copy's.
        tolerance: Numbers that differ by so much, relatively or absolutely, are the same.
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
        return _without_changing(_join(list(_events(data))))
    try:
        return _without_changing(load_json(data))
    except InvalidRequest:
        return data  # a transcription as text


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


def _join(events: Sequence[dict[str, Any]]) -> Any:
    ends = [event.get("response") for event in events if event.get("type") in _ENDS]
    if ends:
        return ends[-1]
    errors = [event["error"] for event in events if "error" in event]
    choices = [event["choices"] for event in events if isinstance(event.get("choices"), list)]
    return {"choices": reduce(_merge, choices, []), "errors": errors}


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


def _without_changing(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_changing(one) for name, one in value.items() if name not in _CHANGING}
    return [_without_changing(one) for one in value] if isinstance(value, list) else value


def _is_alike(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_alike(one[name], other[name], tolerance) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(lambda a, b: _is_alike(a, b, tolerance), one, other))
    numbers = (int, float)
    if isinstance(one, numbers) and isinstance(other, numbers) and bool not in (type(one), type(other)):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return type(one) is type(other) and bool(one == other)
