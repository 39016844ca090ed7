# SPDX-License-Identifier: Apache-2.0
"""What every part of the configuration is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# Strict: in YAML and JSON a number is a number, so "3" and true are mistakes worth pointing out.
Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]


def _to_text(value: object) -> object:
    return str(value) if type(value) is int else value


# A revision by its number, as a number or a text, or by a label.
Reference = Annotated[str, BeforeValidator(_to_text), Field(strict=True, min_length=1)]


class Section(BaseModel):
    """Base of every part of the configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
