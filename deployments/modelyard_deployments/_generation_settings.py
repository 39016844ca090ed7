# SPDX-License-Identifier: Apache-2.0
"""How a generative model runs: the framework's options, and what ``engine`` says besides."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from modelyard.errors import ModelLoadError


class GenerationOptions(Protocol):
    """Those options of ``framework: huggingface`` that a generative model reads."""

    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def trust_remote_code(self) -> bool: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def engine(self) -> dict[str, Any]: ...
    @property
    def model_fields_set(self) -> set[str]: ...


class EngineSettings(BaseModel):
    """The option ``engine``.

    Attributes:
        max_running: Most sequences in the batch at once.
        max_waiting: Most sequences that wait for a place in the batch; more are refused with 429.
        max_model_len: As the option ``max_length``, under the name that vLLM has for it.
        cache_tokens: Most token places of the key-value cache, those that pad shorter sequences counted; None takes
            32768, or the model's limit where that is more.
        prefill_tokens: Most prompt tokens computed between two steps of those that already run.
        attention: Which attention of transformers; None leaves it the choice.
        chat_template: A Jinja template instead of the tokenizer's own; a text, not a file's name.
        default_max_tokens: Length of answers over v2 whose request says none; as that of OpenAI's completions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_running: PositiveInt = 16
    max_waiting: PositiveInt = 256
    max_model_len: PositiveInt | None = None
    cache_tokens: PositiveInt | None = None
    prefill_tokens: PositiveInt = 512
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = None
    chat_template: str | None = None
    default_max_tokens: PositiveInt = 16


SETTINGS: Final = frozenset(EngineSettings.model_fields)
"""Names of the settings."""

SHARED: Final = frozenset({"max_model_len", "chat_template"})
"""Those that vLLM has under the same name."""


def find_setting_problems(engine: Mapping[str, Any]) -> list[str]:
    """What is wrong with the option ``engine``: with the nearest name for one that is unknown."""
    known = list(EngineSettings.model_fields)
    problems = []
    for name in engine:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0) or known
            problems.append(
                f'engine: the transformers backend has no "{name}"; did you mean "{near[0]}"? It has {", ".join(known)}'
            )
    if not problems:
        try:
            EngineSettings.model_validate(engine)
        except ValidationError as exc:
            problems = [f"engine.{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors()]
    return problems


def read_settings(engine: Mapping[str, Any]) -> EngineSettings:
    """The option ``engine``, checked.

    Raises:
        ModelLoadError: It has a mistake.
    """
    if problems := find_setting_problems(engine):
        raise ModelLoadError(f"option {'; '.join(problems)}")
    return EngineSettings.model_validate(engine)
