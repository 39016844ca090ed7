# SPDX-License-Identifier: Apache-2.0
"""Models as a list of their own: what is exported from one platform and imported into another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from modelyard.config.documents import read_yaml
from modelyard.config.section import Section
from modelyard.config.spec import ModelSpec, parse_section


def check_different(models: tuple[ModelSpec, ...]) -> tuple[ModelSpec, ...]:
    """The models, which have different names.

    Raises:
        ValueError: Two have the same.
    """
    first: dict[str, int] = {}
    for index, spec in enumerate(models):
        if first.setdefault(spec.name, index) != index:
            raise ValueError(
                f'expected different names, got "{spec.name}" in models[{first[spec.name]}] and models[{index}]'
            )
    return models


class ModelsFile(Section):
    """A file with nothing but models."""

    models: tuple[ModelSpec, ...] = Field(description="As under `models` of the platform's configuration.")

    _check_names = field_validator("models")(check_different)


def read_models(path: Path) -> tuple[ModelSpec, ...]:
    """The models of a file, as far as their shape is right.

    Raises:
        InvalidConfig: The file cannot be read, is not YAML, or with one problem for each key that is wrong,
            ``models[2].autoscaling.min_replicas: …``.
    """
    return parse_section(ModelsFile, read_yaml(path, "models")).models


def to_short(spec: ModelSpec) -> dict[str, Any]:
    """The spec as JSON values without what is a default: as somebody would write it."""
    return spec.model_dump(mode="json", exclude_defaults=True)
