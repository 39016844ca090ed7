# SPDX-License-Identifier: Apache-2.0
"""What generates text: vLLM where it is installed and has the architecture, else transformers.

Nothing is imported for it: the controller asks, too, and stays free of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from modelyard.errors import ModelLoadError
from modelyard_deployments._vllm_arguments import find_architectures

_WRITERS: Final = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True)
class Pick:
    """What was picked, and why, in words for people."""

    name: Literal["vllm", "transformers"]
    reason: str


def pick_backend(wanted: Literal["auto", "vllm", "transformers"], architectures: Sequence[str]) -> Pick:
    """Picks one.

    Args:
        wanted: The option.
        architectures: Names of the classes that the weights were saved from; none for GGUF files.

    Raises:
        ModelLoadError: vLLM is wanted and cannot serve the model.
    """
    if wanted == "transformers":
        return Pick("transformers", "the option backend says so")
    against = _find_reason_against_vllm(architectures)
    if wanted == "vllm":
        if against:
            raise ModelLoadError(f"option backend: vLLM cannot serve this model: {against}")
        return Pick("vllm", "the option backend says so")
    return Pick("transformers", against) if against else Pick("vllm", "it is installed and has the architecture")


def looks_generative(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a model that writes text, as far as can be told without transformers."""
    names = [str(name) for name in config.get("architectures") or ()]
    if any(name.endswith("ForConditionalGeneration") for name in names):
        return "vision_config" in config
    return any(name.endswith(_WRITERS) for name in names)


def _find_reason_against_vllm(architectures: Sequence[str]) -> str:
    known = find_architectures()
    if not known:
        return "vLLM is not installed"
    if not architectures:
        return "the artifact names no architecture"
    unknown = [name for name in architectures if name not in known]
    return f"this vLLM does not have {', '.join(unknown)}" if unknown else ""
