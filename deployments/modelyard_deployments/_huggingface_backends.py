# SPDX-License-Identifier: Apache-2.0
"""What generates text: vLLM where it is installed and has the architecture, else transformers.

Nothing is imported for it: the controller asks, too, and stays free of both.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from modelyard.errors import ModelLoadError

_REGISTRY: Final = Path("model_executor", "models", "registry.py")
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
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return "vLLM is not installed"
    if not architectures:
        return "the artifact names no architecture"
    known = _read_architectures(Path(spec.origin).parent / _REGISTRY)
    unknown = [name for name in architectures if name not in known]
    return f"this vLLM does not have {', '.join(unknown)}" if unknown else ""


@cache
def _read_architectures(registry: Path) -> frozenset[str]:
    """The keys of its tables: ``"LlamaForCausalLM": ("llama", "LlamaForCausalLM")``.

    Source: vLLM ``model_executor/models/registry.py``.
    """
    tables = [node for node in ast.walk(ast.parse(registry.read_text())) if isinstance(node, ast.Dict)]
    return frozenset(
        key.value
        for table in tables
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and isinstance(value, ast.Tuple)
    )
