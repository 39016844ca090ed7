# SPDX-License-Identifier: Apache-2.0
"""Mistakes in requests that vLLM's server lets pass: it ignores parameters it does not know, and any role will do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, get_args

import orjson
from pydantic import BaseModel

from modelyard.openai import JSON, ROUTES, OpenAIRequest
from modelyard.peers import get_origin
from modelyard_deployments._openai_multipart import is_form, list_names
from modelyard_deployments._openai_protocol import Refusal
from modelyard_deployments._vllm_members import check_members, list_members, to_unknown

_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
"""Source: OpenAI API reference, "Create chat completion"."""

KEEP: Final[Mapping[str, Any]] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""What one model asks of another: to keep what it computes of a prompt. Source: ``ray.serve.llm``'s
``base_prefill_kv_transfer_params``."""
TRANSFER: Final = "kv_transfer_params"
_TRANSFERS: Final = (TRANSFER, "ec_transfer_params")
"""They name hosts that the engine fetches from."""
_EXTRA: Final = "vllm_xargs"

_NO_EFFECT: Final = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"})
"""Parameters of OpenAI's that change no answer: taken, whatever the server does with them."""

GENERATING: Final = ("chat/completions", "completions")
"""Routes whose bodies are checked within, and whose prompts another model may read."""
_NESTED: Final = frozenset({"response_format", "stream_options", "structured_outputs", "tool_choice", "tools"})
"""Parameters of theirs whose members are checked as well."""


class Requests:
    """What vLLM's server knows of the bodies that it takes.

    Args:
        routes: Those of its FastAPI application.
    """

    def __init__(self, routes: Iterable[Any]) -> None:
        bodies = {getattr(route, "path", ""): getattr(route, "dependant", None) for route in routes}
        self._kinds: Mapping[str, tuple[type[BaseModel], ...]] = {
            name: tuple(_kinds(dependant))
            for name in ROUTES
            if (dependant := bodies.get(f"/v1/{name}") or bodies.get(f"/{name}")) is not None
        }
        self._known = {name: frozenset(_names(kinds)) for name, kinds in self._kinds.items()}

    def fits(self, request: OpenAIRequest) -> bool:
        """Whether vLLM's own classes take the body, whatever its engine then says."""
        for kind in self._kinds.get(request.route, ()):
            with contextlib.suppress(Exception):  # vLLM's validators raise more than pydantic turns into its own
                kind.model_validate_json(request.body)
                return True
        return False

    def check(self, request: OpenAIRequest) -> None:
        """Checks a JSON body, or the names in a form.

        Raises:
            Refusal: It is none, has a parameter that nobody knows, also within another one, or that is for models only,
                no messages, or a role that there is not.
        """
        if is_form(request.content_type):
            self._check_names(request.route, list_names(request))
        if request.content_type != JSON:
            return
        try:
            document = orjson.loads(request.body)
        except orjson.JSONDecodeError as exc:  # Python's would take more: NaN, for one
            raise Refusal(f"the request body is not JSON: {exc}") from None
        if isinstance(document, dict):
            _check_transfer(document)
            self._check_names(request.route, document)
            if request.route in GENERATING:
                self._check_nested(request.route, document)
            if request.route == "chat/completions":
                _check_messages(document.get("messages"))

    def _check_nested(self, route: str, document: Mapping[str, Any]) -> None:
        for name in _NESTED & document.keys():
            for kind in self._kinds.get(route, ()):
                if (field := kind.model_fields.get(name)) is None:
                    continue
                try:
                    check_members(name, document[name], field.annotation)
                except RecursionError:
                    raise Refusal(f"{name}: it is nested too deeply", name) from None

    def _check_names(self, route: str, names: Iterable[str]) -> None:
        given, known = set(names), self._known.get(route)
        for name in given - (known or given) - _NO_EFFECT:
            raise to_unknown("", name, known or ())


def _check_messages(messages: Any) -> None:
    if messages == []:
        raise Refusal("messages: expected at least one message, got none", "messages", "empty_array")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role not in _ROLES:
            expected = ", ".join(_ROLES)
            raise Refusal(f'messages[{index}].role: expected one of {expected}, got "{role[:80]}"', "messages")


def _check_transfer(document: Mapping[str, Any]) -> None:
    """No client, and no model on behalf of one, says where the engine fetches from."""
    extra = document.get(_EXTRA)
    for name in _TRANSFERS:
        is_asked_by_model = name == TRANSFER and document.get(name) == KEEP and get_origin().via
        if (document.get(name) is not None and not is_asked_by_model) or (isinstance(extra, dict) and name in extra):
            raise Refusal(f"{name}: expected nothing: the models of the platform tell one another of it", name)


def _kinds(dependant: Any) -> Iterator[type[BaseModel]]:
    """A route's body may be one of several classes."""
    for parameter in dependant.body_params:
        annotation = parameter.field_info.annotation
        for kind in get_args(annotation) or (annotation,):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield kind


def _names(kinds: Iterable[type[BaseModel]]) -> Iterator[str]:
    for kind in kinds:
        for name, _ in list_members(kind):
            yield name
