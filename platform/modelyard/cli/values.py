# SPDX-License-Identifier: Apache-2.0
"""What stands on a command line, as values: pairs, settings, inputs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import typer

from modelyard.errors import InvalidRequest
from modelyard.protocol import v2

_SECTIONS: Final = ("batching", "autoscaling", "resources", "limits", "runtime", "rollout")
_KEYS: Final = ("shared", "sticky", "warmup")


def pair(text: str, option: str) -> tuple[str, Any]:
    """``key=value``; the value as JSON where it is JSON, else as text."""
    key, found, value = text.partition("=")
    if not found or not key:
        raise typer.BadParameter(f'expected KEY=VALUE, got "{text}"', param_hint=option)
    try:
        return key, orjson.loads(value)
    except orjson.JSONDecodeError:
        return key, value


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Each ``--set section.key=value`` in its place; keys may have keys of their own."""
    found: dict[str, Any] = {}
    for text in settings:
        path, value = pair(text, "--set")
        section, *inner = path.split(".")
        if bool(inner) != (section in _SECTIONS) or (not inner and section not in _KEYS) or "" in inner:
            known = ", ".join([*(f"{name}.…" for name in _SECTIONS), *_KEYS])
            raise typer.BadParameter(f'expected one of {known}, got "{path}"', param_hint="--set")
        _put(found, (section, *inner), value)
    return found


def _put(found: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *outer, last = path
    for key in outer:
        below = found.setdefault(key, {})
        if not isinstance(below, dict):
            raise typer.BadParameter(f'"{".".join(path)}" has a value already', param_hint="--set")
        found = below
    found[last] = value


def parse_weights(texts: Sequence[str]) -> dict[str, float]:
    """Percent by revision out of ``revision=percent``."""
    return {revision: _to_number(percent, text) for text in texts for revision, _, percent in [text.rpartition("=")]}


def parse_shadow(text: str) -> dict[str, Any]:
    """A shadow out of ``revision`` or ``revision:percent``."""
    revision, _, percent = text.partition(":")
    return {"revision": revision} | ({"percent": _to_number(percent, text)} if percent else {})


def parse_steps(text: str) -> list[float]:
    """Percents out of ``1,10,100``; none out of an empty text."""
    return [_to_number(step, text) for step in text.split(",")] if text.strip() else []


def _to_number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f'expected a number of percent, got "{text}" in "{whole}"') from None


def read_data(data: str) -> bytes:
    """What ``--data`` stands for: standard input, JSON in place, or a file."""
    if data == "-":
        return sys.stdin.buffer.read()
    if data.lstrip()[:1] in ("[", "{"):
        return data.encode()
    try:
        return Path(data).read_bytes()
    except OSError as exc:
        raise InvalidRequest(f'--data: "{data}" cannot be read: {exc.strerror}') from exc


def find_inputs(body: bytes) -> Any:
    """The inputs inside a v1 or v2 request, or the document itself where it is neither."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"--data: expected JSON: {exc}") from exc
    if not isinstance(document, Mapping):
        return document
    if isinstance(document.get("inputs"), list) and all(isinstance(item, Mapping) for item in document["inputs"]):
        return v2.decode_infer(body, None)
    for key in ("instances", "inputs"):
        if key in document:
            return document[key]
    return document
