# SPDX-License-Identifier: Apache-2.0
"""Names of parameters, and of what is within them, against the classes that vLLM's server reads them with.

Those classes take whatever they do not know, and forget it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from modelyard_deployments._openai_protocol import Refusal

_NO_EFFECT: Final = frozenset({"stream_options.include_obfuscation"})
"""What changes no answer, and is taken although vLLM does not have it."""


def to_unknown(where: str, name: str, known: Iterable[str]) -> Refusal:
    """The mistake of whoever sends it, with the nearest name there is.

    Args:
        where: What it is in, with a dot; empty for the body.
        name: As it was sent.
        known: What there is.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f': did you mean "{near[0]}"?' if near else ""
    return Refusal(f'unknown parameter "{where}{name[:80]}"{hint}', f"{where}{name[:80]}", "unknown_parameter")


def check_members(where: str, value: Any, annotation: Any) -> None:
    """Refuses members that none of a parameter's classes has; what may be anything, is.

    Args:
        where: The parameter, as the client has it.
        value: What it is.
        annotation: What vLLM takes.

    Raises:
        Refusal: With the nearest name there is.
    """
    for index, one in enumerate(value if isinstance(value, list) else ()):
        check_members(f"{where}[{index}]", one, annotation)
    kinds = list(_flatten(annotation))
    classes = [kind for kind in kinds if isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))]
    if not isinstance(value, dict) or not classes or dict in kinds or Any in kinds:
        return
    members = [pair for kind in classes for pair in list_members(kind)]
    known = {name for name, _ in members}
    for name, inner in value.items():
        if name not in known and f"{where}.{name}" not in _NO_EFFECT:
            raise to_unknown(f"{where}.", str(name), known)
        if inside := tuple(inside for known_as, inside in members if known_as == name):
            check_members(f"{where}.{name}", inner, Union[inside])  # noqa: UP007  # whichever of the classes it is


def _flatten(annotation: Any) -> Iterator[Any]:
    """The classes within unions, lists and annotated ones."""
    origin = get_origin(annotation)
    if origin is dict:
        yield dict
    elif origin is not None and origin is not Literal:
        for one in get_args(annotation):
            yield from _flatten(one)
    else:
        yield annotation


def list_members(kind: Any) -> Iterator[tuple[str, Any]]:
    """The names that a class takes its members by, with what they are; a member that has an alias, by that alone."""
    if issubclass(kind, BaseModel):
        by_name = kind.model_config.get("populate_by_name") or kind.model_config.get("validate_by_name")
        for name, field in kind.model_fields.items():
            if by_name or not field.alias:
                yield name, field.annotation
            if field.alias:
                yield field.alias, field.annotation
        return
    hints = get_type_hints(kind)
    for member in fields(kind):
        if member.init:
            yield member.name, hints[member.name]
