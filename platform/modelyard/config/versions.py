# SPDX-License-Identifier: Apache-2.0
"""Which versions of a folder of numeric version folders are served.

Source: TensorFlow Serving ``FileSystemStoragePathSourceConfig.ServableVersionPolicy`` and
``ModelConfig.version_labels``.
"""

from __future__ import annotations

from collections.abc import Collection

from pydantic import Field, model_validator

from modelyard.config.section import Flag, Integer, Section, Text


class VersionPolicy(Section):
    """Which of an artifact's numeric folders are served, each as the version of its number."""

    latest: Integer | None = Field(default=None, ge=1, description="So many of the highest numbers.")
    all: Flag = Field(default=False, description="Every one.")
    specific: tuple[Integer, ...] = Field(default=(), description="Exactly these, as far as they are there.")
    labels: dict[Text, Integer] = Field(
        default_factory=dict,
        description="Names of versions (`canary: 43`), to ask for in place of numbers. `stable` is the highest version "
        "unless it is given here.",
    )

    @model_validator(mode="after")
    def _check_one(self) -> VersionPolicy:
        given = [key for key in ("latest", "all", "specific") if getattr(self, key)]
        if len(given) > 1:
            raise ValueError(f"expected one of latest, all and specific, got {' and '.join(given)}")
        return self

    def select(self, numbers: Collection[int]) -> tuple[int, ...]:
        """Those of the numbers that are served, in order; without a choice the highest."""
        found = sorted(numbers)
        if self.all:
            return tuple(found)
        if self.specific:
            return tuple(number for number in found if number in self.specific)
        return tuple(found[-(self.latest or 1) :])
