# SPDX-License-Identifier: Apache-2.0
"""What generates text: vLLM where it is installed and has the architecture, else transformers.

Engine arguments that only one of the two has decide for it. Nothing is imported for it: the controller asks, too, and
stays free of both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from modelyard.errors import ModelLoadError
from modelyard_deployments._generation_settings import SETTINGS, SHARED, find_setting_problems
from modelyard_deployments._vllm_arguments import find_architectures, find_problems
from modelyard_deployments._vllm_install import INSTALL

Backend: TypeAlias = Literal["auto", "vllm", "transformers"]

_WRITERS: Final = ("ForCausalLM", "LMHeadModel")
_OF_TRANSFORMERS: Final = ("device", "threads")
"""Options beside ``engine`` that vLLM has nothing for."""


@dataclass(frozen=True, slots=True)
class Pick:
    """What was picked, and why, in words for people."""

    name: Literal["vllm", "transformers"]
    reason: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model's options want.

    Attributes:
        name: Which of the two; ``auto`` is either.
        option: Which option says so.
        beside: Options that were given and that vLLM, where it is picked, does not use.
    """

    name: Backend
    option: str = "backend"
    beside: tuple[str, ...] = ()


def find_wanted(backend: Backend, given: Collection[str], engine: Mapping[str, Any]) -> Wanted:
    """What options want, taken together.

    Args:
        backend: The option of that name.
        given: Names of the other options that were given and mean something.
        engine: The engine's arguments.

    Raises:
        ValueError: They do not go together, or an argument is none that the backend has; with the nearest there is.
    """
    beside = tuple(name for name in _OF_TRANSFORMERS if name in given)
    ours = [f"engine.{name}" for name in engine if name in SETTINGS - SHARED]
    theirs = [f"engine.{name}" for name in engine if name not in SETTINGS]
    if backend == "transformers":
        problems = find_setting_problems(engine)
    elif backend == "vllm":
        problems = find_problems(engine)
        problems += [f"{name}: vLLM has no such option, it goes by resources" for name in beside]
    else:
        rest = {name: value for name, value in engine.items() if name not in SETTINGS}
        problems = find_problems(rest, SETTINGS)
        if ours and theirs and not problems:
            problems = [
                f"{', '.join(ours)} of transformers and {', '.join(theirs)} of vLLM: expected those of one backend"
            ]
        elif ours and not theirs:
            problems = find_setting_problems(engine)
    if problems:
        raise ValueError("; ".join(problems))
    if backend == "auto" and (ours or theirs):
        return Wanted("transformers", ours[0]) if ours else Wanted("vllm", theirs[0], beside)
    return Wanted(backend, beside=beside)


def pick_backend(wanted: Wanted, architectures: Sequence[str]) -> Pick:
    """Picks one.

    Args:
        wanted: What the options want.
        architectures: Names of the classes that the weights were saved from; none for GGUF files.

    Raises:
        ModelLoadError: vLLM is wanted and cannot serve the model.
    """
    if wanted.name == "transformers":
        return Pick("transformers", f"the option {wanted.option} says so")
    unused = f"; not used: {', '.join(wanted.beside)}, as it goes by resources" if wanted.beside else ""
    against = _find_reason_against_vllm(architectures)
    if wanted.name == "vllm":
        if against:
            advice = "" if find_architectures() else f': pip install "modelyard[vllm]", and then {INSTALL}'
            raise ModelLoadError(f"option {wanted.option}: vLLM cannot serve this model: {against}{advice}")
        return Pick("vllm", f"the option {wanted.option} says so{unused}")
    if against:
        return Pick("transformers", against)
    return Pick("vllm", f"it is installed and has the architecture{unused}")


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
