# SPDX-License-Identifier: Apache-2.0
"""From pydantic's findings to sentences an operator can act on: key path, what was expected, what was given.

Values under keys that may hold secrets are never repeated, and passwords inside URLs are masked.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_SECRET_KEY: Final = re.compile(r"pass|secret|token|credential|api_?key|access_?key|private|auth", re.IGNORECASE)
_URL_PASSWORD: Final = re.compile(r"(://[^/@:\s]*):\S*@")  # up to the last @: a password may have "/" and "@"
_MAX_SHOWN: Final = 80
_MAX_PROBLEMS: Final = 20
"""Whoever sends more is not helped by more, and all of them are too much for one reply."""
_TYPES: Final[Mapping[type, str]] = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def problems_of(error: ValidationError, model: type[BaseModel], where: str = "") -> tuple[str, ...]:
    """One sentence for each of the first findings, beginning with the key's path; the last may say how many follow.

    Args:
        error: What pydantic found.
        model: The model that was validated; its fields say what was expected.
        where: Path of the validated data inside the whole, ``models[2]``.
    """
    found = error.errors(include_url=False)
    sentences = [sentence for item in found[:_MAX_PROBLEMS] for sentence in _sentences(item, model, where)]
    if len(found) > _MAX_PROBLEMS:
        sentences.append(f"and {len(found) - _MAX_PROBLEMS} more problems")
    return tuple(sentences)


def _sentences(item: Mapping[str, Any], model: type[BaseModel], where: str) -> Iterable[str]:
    loc: tuple[int | str, ...] = item["loc"]
    path = join_path(where, *loc)
    if item["type"] == "extra_forbidden":
        return (f"{path}: unknown key{nearest(str(loc[-1]), _fields(_model_at(model, loc[:-1])))}",)
    if item["type"] == "missing":
        return (f"{path}: expected {_expected(model, loc) or 'a value'}, got nothing",)
    if item["type"] == "value_error":
        return (f"{path or 'configuration'}: {item['ctx']['error']}",)
    if item["type"] == "string_too_long":
        limit, length = item["ctx"]["max_length"], len(item["input"])
        return (f"{path}: expected a text of at most {limit} characters, got {length}",)
    expected = _expected(model, loc) or _lower_first(str(item["msg"]).removeprefix("Input should be "))
    return (f"{path or 'configuration'}: expected {expected}, got {shown(item['input'], path)}",)


def join_path(where: str, *loc: int | str) -> str:
    """``models[2].options`` out of ``models``, 2, ``options``."""
    path = where
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":  # pydantic's mark for a bad key of a mapping; the key itself is already in the path
            name = part if len(part) <= _MAX_SHOWN else f"{part[:_MAX_SHOWN]}…"
            path += f".{name}" if path else name
    return path


def shown(value: object, path: str) -> str:
    """A value as a message may repeat it: short, and never a secret.

    Args:
        value: What was given.
        path: Where it stands; environment variables and keys that sound secret are hidden.
    """
    if value is None:
        return "nothing (null)"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list"
    if "env_vars" in path or _SECRET_KEY.search(path.rpartition(".")[2]):
        return "a value that is not shown"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = mask_url(value)
        return f'"{text[:_MAX_SHOWN]}…"' if len(text) > _MAX_SHOWN else f'"{text}"'
    return str(value)[:_MAX_SHOWN]


def mask_url(text: str) -> str:
    """The text with passwords in URLs replaced by ``***``."""
    return _URL_PASSWORD.sub(r"\1:***@", text)


def nearest(key: str, names: Sequence[str]) -> str:
    """How a message about an unknown key ends: with the nearest name that there is, or else with all of them."""
    near = difflib.get_close_matches(key[:_MAX_SHOWN], names, n=1)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; expected one of {', '.join(names)}" if names else ""


def _fields(model: type[BaseModel] | None) -> list[str]:
    return list(model.model_fields) if model is not None else []


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    found: Any = model
    for part in loc:
        if isinstance(part, int):
            continue  # an item of a list: the annotation was already unwrapped to the item's
        field = found.model_fields.get(part) if _is_model(found) else None
        if field is None:
            return None
        found = _item_of(field.annotation)
    return found if _is_model(found) else None


def _expected(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """What the field at ``loc`` takes, in words; empty where the data is not described by a field of its own."""
    if not loc or not isinstance(loc[-1], str):
        return "a mapping" if loc else ""
    owner = _model_at(model, loc[:-1])
    field = owner.model_fields.get(loc[-1]) if owner is not None else None
    return _describe(field) if field is not None else ""


def _describe(field: FieldInfo) -> str:
    base = _strip_optional(field.annotation)
    if get_origin(base) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(base))
    origin = get_origin(base) or base
    words = "a mapping" if _is_model(origin) else _TYPES.get(origin, "")
    limits = " and ".join(_limits(field.metadata))
    return f"{words} {limits}".strip() if words else ""


def _limits(metadata: Iterable[Any]) -> Iterable[str]:
    for item in metadata:
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            limit = getattr(item, name, None)
            if limit is not None:
                yield f"{sign} {limit:g}"
        if getattr(item, "pattern", None):
            yield f"that matches {item.pattern}"
        elif getattr(item, "min_length", None):
            yield "that is not empty"


def _strip_optional(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _strip_optional(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return next(arg for arg in get_args(annotation) if arg is not type(None))
    return annotation


def _item_of(annotation: Any) -> Any:
    base = _strip_optional(annotation)
    return get_args(base)[0] if get_origin(base) in (list, tuple) else base


def _is_model(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, BaseModel)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
