# SPDX-License-Identifier: Apache-2.0
"""What generates text: vLLM where it is installed and knows the architecture, else transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modelyard.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class Pick:
    """What was picked, and why, in words for people."""

    name: Literal["vllm", "transformers"]
    reason: str


def pick_backend(wanted: Literal["auto", "vllm", "transformers"], task: str, architectures: Sequence[str]) -> Pick:
    """Picks one.

    Args:
        wanted: The option.
        task: One that generates.
        architectures: Names of the classes that the weights were saved from; none for GGUF files.

    Raises:
        ModelLoadError: vLLM is wanted and cannot serve the model.
    """
    if wanted == "transformers":
        return Pick("transformers", "the option backend says so")
    against = _find_reason_against_vllm(task, architectures)
    if wanted == "vllm":
        if against:
            raise ModelLoadError(f"option backend: vLLM cannot serve this model: {against}")
        return Pick("vllm", "the option backend says so")
    return Pick("transformers", against) if against else Pick("vllm", "it is installed and has the architecture")


def _find_reason_against_vllm(task: str, architectures: Sequence[str]) -> str:
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    if task == "text2text-generation":
        return "vLLM has no encoder-decoder models for text"
    if not architectures:
        return "the artifact names no architecture"
    from vllm.model_executor.models.registry import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    unknown = [name for name in architectures if name not in known]
    return f"this vLLM does not have {', '.join(unknown)}" if unknown else ""
