# SPDX-License-Identifier: Apache-2.0
"""Tools: how a model is told of them, and the calls found in what it says.

Models write calls as ``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` (Hermes, Qwen, SmolLM) or as bare JSON
(Llama); both are read. Where a call is required, a grammar leaves the model nothing else to say, in vLLM's form.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from modelyard_deployments._openai_protocol import read_text
from modelyard_deployments._openai_requests import Tool

_OPEN: Final = "<tool_call>"
_CLOSE: Final = "</tool_call>"
_KEYS: Final = ("name", "arguments", "parameters", "type")
"""What a bare call begins with; other JSON is an answer."""
_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        name: The function's.
        arguments: JSON text.
        id: Its id, for the tool's answer.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"chatcmpl-tool-{uuid.uuid4().hex}")

    def to_object(self) -> dict[str, Any]:
        """As a message has it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class More:
    """More of the arguments of the last call."""

    arguments: str


Found: TypeAlias = str | Call | More
"""Content, a call, or more of one."""


class Reader(Protocol):
    """Finds calls in a text that comes in pieces."""

    def add(self, text: str) -> list[Found]:
        """What is certain once this has come."""

    def flush(self) -> list[Found]:
        """What was held back, now that nothing follows."""


class TextReader:
    """Finds none: all is content."""

    def add(self, text: str) -> list[Found]:
        """The text."""
        return [text] if text else []

    def flush(self) -> list[Found]:
        """Nothing."""
        return []


class NamedReader:
    """All that is said are the arguments of one function, which are shown as they come."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._has_begun = False

    def add(self, text: str) -> list[Found]:
        """The call with the first piece, then more of its arguments."""
        if not self._has_begun:
            self._has_begun = True
            return [Call(self._name, text)]
        return [More(text)] if text else []

    def flush(self) -> list[Found]:
        """Nothing."""
        return []


def describe_tools(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """The tools as chat templates take them."""
    return [tool.model_dump(exclude_none=True) for tool in tools]


def explain_tools(tools: Iterable[Tool]) -> str:
    """The tools in words, for a model whose chat template says nothing of them.

    Source: the Hermes function calling prompt, in which most models with tools were trained.
    """
    signatures = "\n".join(json.dumps(one, ensure_ascii=False) for one in describe_tools(tools))
    return (
        "You may call one or more functions to assist with the user query. You are provided with function signatures "
        f"within <tools></tools> XML tags:\n<tools>\n{signatures}\n</tools>\n"
        "For each function call, return a json object with function name and arguments within "
        f'{_OPEN}{_CLOSE} XML tags:\n{_OPEN}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{_CLOSE}'
    )


def write_call(name: str, arguments: str) -> str:
    """An earlier call in a model's own words, for a template that says nothing of calls."""
    return f'{_OPEN}\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n{_CLOSE}'


def to_parameters_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a function's arguments."""
    return tool.function.parameters or _NO_PARAMETERS


def to_calls_schema(tools: Sequence[Tool], parallel: bool) -> dict[str, Any]:
    """The schema of an answer that calls at least one of the functions.

    Source: vLLM ``tool_parsers/utils.py``, ``_get_json_schema_from_tools``.
    """
    definitions: dict[str, Any] = {}
    forms = []
    for tool in tools:
        schema = dict(to_parameters_schema(tool))
        definitions |= schema.pop("$defs", {})
        forms.append(
            {
                "type": "object",
                "properties": {"name": {"type": "string", "enum": [tool.function.name]}, "parameters": schema},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    calls: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": forms}}
    if not parallel:
        calls["maxItems"] = 1
    return calls | ({"$defs": definitions} if definitions else {})


class CallReader:
    """Finds the calls in a text that comes in pieces; shows content as soon as it can be no part of a call.

    Args:
        names: The functions that can be called.
        is_required: The whole text is JSON with calls.
    """

    def __init__(self, names: Iterable[str], is_required: bool = False) -> None:
        self._names = frozenset(names)
        self._is_required = is_required
        self._held = ""
        self._has_called = False
        self._is_bare: bool | None = True if is_required else None
        self._has_begun = False  # as a call does, and what follows shows only at its end whether it is one
        self._is_whole = False

    def add(self, text: str) -> list[Found]:
        """What is certain once this has come."""
        self._held += text
        if self._is_bare is None and (start := self._held.lstrip()):
            self._is_bare = start[0] in "{["
        if self._is_bare and not self._is_required:
            self._is_bare = self._may_be_bare(text)
        return [] if self._is_bare in (None, True) else self._read()

    def flush(self) -> list[Found]:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        if self._is_bare:
            calls = _to_calls(held, self._names)
            return [*calls] if calls is not None else [held]
        before, opened, inside = held.partition(_OPEN)
        calls = _to_calls(inside, None) if opened else None  # the closing tag may be the token that ended the answer
        if calls is None:
            return [held] if held.strip() or (held and not self._has_called) else []
        return [*([before] if before.strip() else []), *calls]

    def _may_be_bare(self, text: str) -> bool:
        """Whether a text that begins with a bracket, and ends with this piece, may still become bare calls.

        Each piece is looked at once: what is held grows with every token.
        """
        if self._is_whole:
            return not text.strip()
        if not self._has_begun:
            text = self._held.lstrip()
            begins = _begins_bare(text, self._names)
            if not begins:
                return begins is None
            self._has_begun = True
        if "}" not in text and "]" not in text:
            return True
        held = self._held.lstrip()
        try:
            _, end = json.JSONDecoder().raw_decode(held)
        except (ValueError, RecursionError):  # mostly because there is more to come
            return True
        self._is_whole = True
        return not held[end:].strip()

    def _read(self) -> list[Found]:
        found: list[Found] = []
        while _OPEN in self._held and _CLOSE in self._held:
            before, _, rest = self._held.partition(_OPEN)
            inside, _, self._held = rest.partition(_CLOSE)
            if before.strip():
                found.append(before)
            calls = _to_calls(inside, None)
            self._has_called = self._has_called or calls is not None
            found += calls or [f"{_OPEN}{inside}{_CLOSE}"]
        # White space behind a call is mostly what separates it from the next.
        if _OPEN in self._held or (self._has_called and not self._held.strip()):
            return found
        kept = _overlap(self._held)
        shown = self._held[: len(self._held) - kept]
        if not shown or (self._has_called and not shown.strip()):
            return found
        self._held = self._held[len(shown) :]
        return [*found, shown]


def _begins_bare(text: str, names: frozenset[str]) -> bool | None:
    """Whether a text that begins with a bracket begins as bare calls do; None while too little of it has come."""
    inside = text[1:].lstrip() if text[0] == "[" else text
    if not inside:
        return None
    member = inside[1:].lstrip()
    if inside[0] != "{" or (member and member[0] != '"'):
        return False
    key, is_whole, rest = member[1:].partition('"')
    if not is_whole:
        return None if any(one.startswith(key) for one in _KEYS) else False
    if key not in _KEYS:
        return False
    return _begins_name(rest.lstrip(), names) if key == "name" else True


def _begins_name(rest: str, names: frozenset[str]) -> bool | None:
    """Whether what is behind ``"name"`` is the name of a function; None while it may become one."""
    value = rest[1:].lstrip()
    if (rest and rest[0] != ":") or (value and value[0] != '"'):
        return False
    name, is_whole, _ = value[1:].partition('"')
    if is_whole:
        return name in names
    return None if any(one.startswith(name) for one in names) else False


def _overlap(text: str) -> int:
    """How much of the end of the text may be the beginning of a call."""
    sizes = range(min(len(_OPEN) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(_OPEN[:size])), 0)


def _to_calls(text: str, names: frozenset[str] | None) -> list[Call] | None:
    """The calls in a JSON text; None where it is none, or calls what is none of the names."""
    try:
        document = read_text(text)
        calls = [_to_call(one, names) for one in (document if isinstance(document, list) else [document])]
    except (ValueError, RecursionError):  # writing what could just be read may be too deep
        return None
    valid = [call for call in calls if call is not None]
    return valid if valid and len(valid) == len(calls) else None


def _to_call(document: Any, names: frozenset[str] | None) -> Call | None:
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        return None
    arguments = document.get("arguments", document.get("parameters"))
    if not isinstance(arguments, dict | str) or (names is not None and document["name"] not in names):
        return None
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Call(document["name"], written)
