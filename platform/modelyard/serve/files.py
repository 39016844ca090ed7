# SPDX-License-Identifier: Apache-2.0
"""Serve files as a whole: Ray Serve's own keys, which it would overlook where they are misspelt, and the platform's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from modelyard.config import IMPORT_PATH, load_platform_config
from modelyard.config.problems import join_path, nearest, problems_of
from modelyard.errors import InvalidConfig


def check_serve_file(document: Mapping[str, Any]) -> tuple[str, ...]:
    """What is wrong with a Serve file, one sentence for each problem, beginning with the key's path.

    Args:
        document: Its contents.
    """
    unknown = tuple(_unknown_keys(document, ServeDeploySchema, ""))
    return unknown + _values(document) + tuple(_platforms(document))


def _values(document: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        ServeDeploySchema.model_validate(document)
    except ValidationError as exc:
        # Of these Serve itself says that they are unknown; we have said it already, with the nearest name.
        return tuple(text for text in problems_of(exc, ServeDeploySchema) if ": unknown key" not in text)
    except AttributeError:  # a check of Serve's own looks into deployments before pydantic has seen what they are
        return ("applications: expected a mapping for each of the deployments",)
    return ()


def _unknown_keys(value: object, schema: type[BaseModel], path: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        field, where = schema.model_fields.get(key), join_path(path, str(key))
        if field is None:
            yield f"{where}: unknown key{nearest(str(key), list(schema.model_fields))}"
            continue
        inner = _find_schema(field.annotation)
        if inner is not None:
            items = [(join_path(where, index), one) for index, one in enumerate(item)] if isinstance(item, list) else []
            for place, one in items or [(where, item)]:
                yield from _unknown_keys(one, inner, place)


def _find_schema(annotation: Any) -> type[BaseModel] | None:
    """What describes the mappings of a field; None where any keys are taken."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _find_schema(inner)) is not None), None)


def _platforms(document: Mapping[str, Any]) -> Iterator[str]:
    applications = document.get("applications")
    for index, application in enumerate(applications if isinstance(applications, list) else ()):
        if not isinstance(application, Mapping) or application.get("import_path") != IMPORT_PATH:
            continue
        args = application.get("args", {})
        if isinstance(args, Mapping):  # else Serve has said so
            yield from _platform(args, join_path("applications", index, "args"))


def _platform(args: Mapping[str, Any], path: str) -> Iterator[str]:
    try:
        load_platform_config(args)
    except InvalidConfig as exc:
        yield from (f"{path}.{problem}" for problem in exc.problems)
