# SPDX-License-Identifier: Apache-2.0
"""What Python and which packages one model's replicas run in; part of its revision."""

from __future__ import annotations

import shlex
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import ConfigDict, Field, field_validator, model_validator

from modelyard.config.section import Section, Text

_PYTHONS: Final = ("pip", "uv", "conda", "image_uri", "py_executable")
_INSTALLERS: Final = ("pip", "uv")


class Runtime(Section):
    """What the model's replica processes run in: the platform's own Python, unless told otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    env_vars: dict[str, str] = Field(
        default_factory=dict,
        description="Environment variables of the replica processes; set before anything is imported. Those that "
        "begin with `PIP_` or `UV_` also reach the installer. Never shown in messages.",
    )
    version: Text | None = Field(
        default=None,
        description='Version of the framework\'s library, `"3.0.5"` or `"3.0.*"`, in quotes; the rest is the '
        "platform's. Installed by pip, or by uv where `uv` is given.",
    )
    pip: tuple[Text, ...] | None = Field(
        default=None,
        description="Requirements that pip installs over the platform's packages, for this model only.",
    )
    uv: tuple[Text, ...] | None = Field(
        default=None,
        description="Requirements that uv installs over the platform's packages, for this model only; with everything "
        "they need, since uv does not look at what the platform has.",
    )
    conda: str | dict[str, Any] | None = Field(
        default=None,
        description="Name or folder of a conda environment that is there, or a mapping as in `environment.yml`.",
    )
    image_uri: Text | None = Field(default=None, description="Container image that the replicas run in, by podman.")
    py_executable: Text | None = Field(
        default=None,
        description="A Python with Ray and Modelyard of the platform's versions: its path, arguments may follow.",
    )

    @field_validator("env_vars")
    @classmethod
    def _check_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not name or "=" in name or "\0" in name:
                raise ValueError(f'expected names without "=", got "{name}"')
        return value

    @field_validator("version", mode="before")
    @classmethod
    def _check_version(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            raise ValueError(f"expected a text, got the number {value}: put it in quotes")
        try:
            if isinstance(value, str):
                SpecifierSet(f"=={value}")
        except InvalidSpecifier as exc:
            raise ValueError(f'expected a version such as "3.0.5" or "3.0.*", got "{value[:40]}"') from exc
        return value

    @field_validator("pip", "uv", mode="before")
    @classmethod
    def _check_requirements(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) for item in value):
            raise ValueError('expected a list of requirements, such as ["numpy==1.26.4"]')
        for item in value:
            _check_requirement(item)
        return value

    @field_validator("conda", mode="before")
    @classmethod
    def _check_conda(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("dependencies"), list):
            return value
        if value is None or (isinstance(value, str) and value and not value.endswith((".yml", ".yaml"))):
            return value
        raise ValueError(
            "expected the name or folder of an environment, or a mapping with a list of dependencies (not the name of "
            "a file that holds one: its content would not be part of the revision)"
        )

    @field_validator("image_uri")
    @classmethod
    def _check_image(cls, value: str | None) -> str | None:
        if value is not None and (not value or value.startswith("-") or set(value) & set(" \t\r\n'\"`$;&|<>()\\")):
            raise ValueError("expected the name of an image, such as registry.example.com/team/model:1")
        return value

    @field_validator("py_executable")
    @classmethod
    def _check_executable(cls, value: str | None) -> str | None:
        try:
            if value is not None and (not shlex.split(value) or "\0" in value):
                raise ValueError
        except ValueError as exc:
            raise ValueError("expected the path of a Python; quotes in it have to be closed") from exc
        return value

    @model_validator(mode="after")
    def _check_alone(self) -> Runtime:
        given = [name for name in _PYTHONS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"expected one of {', '.join(_PYTHONS)}, got {' and '.join(given)}")
        if self.version is not None and given and given[0] not in _INSTALLERS:
            raise ValueError(
                f"expected version alone or with pip or uv, got it with {given[0]}, which decides it itself"
            )
        return self


def _check_requirement(text: str) -> None:
    if text.lstrip().startswith("-"):
        raise ValueError(
            f'expected a requirement, got the option "{text[:20]}": the installer\'s options go into env_vars, as '
            "PIP_INDEX_URL or UV_INDEX_URL"
        )
    try:
        Requirement(text)
    except InvalidRequirement as exc:
        raise ValueError('expected a requirement such as "numpy==1.26.4" or "name @ URL", got another text') from exc
