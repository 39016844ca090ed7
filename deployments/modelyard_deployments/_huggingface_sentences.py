# SPDX-License-Identifier: Apache-2.0
"""How token embeddings become one: what the folder of a sentence-transformers model says, or the options.

Source: sentence-transformers ``sentence_transformer/modules/pooling.py`` and ``base/modules/dense.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from modelyard.errors import ModelLoadError
from modelyard_deployments._huggingface_folder import Folder, read_json
from modelyard_deployments._huggingface_options import HuggingFaceOptions, Pooling

_LEGACY: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""What versions before 5.5 wrote, in the order in which several are joined."""
_TASKS: Final = ("feature-extraction", None)

Layer = Callable[[Any], Any]
"""From embeddings to embeddings, tensors ``[rows, dimensions]``."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is made of a text's token embeddings.

    Attributes:
        pooling: How they become one; of several the results stand side by side.
        layers: What comes after that, in order.
        normalizes: The last of them is normalization.
        max_length: Tokens of one text; None where nothing says it.
        lowers_case: Texts are put into lower case first.
        prompts: What can be put before a text, by name.
        prompt_name: The one that is, where a request names none.
        includes_prompt: Its tokens count among those of the text.
    """

    pooling: tuple[Pooling, ...] = ("mean",)
    layers: tuple[Layer, ...] = ()
    normalizes: bool = True
    max_length: int | None = None
    lowers_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt_name: str | None = None
    includes_prompt: bool = True


def is_sentence_model(folder: Folder) -> bool:
    """It is of sentence-transformers, and makes one embedding of a text."""
    return any(_kind(module) in ("Pooling", "StaticEmbedding") for module in folder.modules)


def read_recipe(folder: Folder, options: HuggingFaceOptions, device: str) -> Recipe:
    """What the folder says; options come before it.

    Raises:
        ModelLoadError: It has a module that is not known here, or there is no such prompt.
    """
    recipe = _read_modules(folder, device) if folder.modules else Recipe()
    normalizes = recipe.normalizes if options.normalize is None else options.normalize
    prompt_name = options.prompt_name or recipe.prompt_name
    if prompt_name is not None and prompt_name not in recipe.prompts:
        names = ", ".join(recipe.prompts) or "none"
        raise ModelLoadError(f'option prompt_name: the folder has the prompts {names}, got "{prompt_name}"')
    return Recipe(
        (options.pooling,) if options.pooling else recipe.pooling,
        recipe.layers,
        normalizes,
        recipe.max_length,
        recipe.lowers_case,
        recipe.prompts,
        prompt_name,
        recipe.includes_prompt,
    )


def _kind(module: Mapping[str, Any]) -> str:
    return str(module.get("type", "")).rpartition(".")[2]


def _read_modules(folder: Folder, device: str) -> Recipe:
    pooling: tuple[Pooling, ...] = ("mean",)
    layers: list[Layer] = []
    normalizes, includes_prompt = False, True
    for module in folder.modules[1:]:
        kind, path = _kind(module), folder.path / str(module.get("path", ""))
        if kind == "Pooling":
            document = read_json(path / "config.json")
            pooling, includes_prompt = _read_pooling(document), bool(document.get("include_prompt", True))
        elif kind == "Dense":
            layers.append(_read_dense(path, device))
        elif kind == "Normalize":
            normalizes = True
        elif kind != "Dropout":
            raise ModelLoadError(
                f'modules.json: expected Transformer, Pooling, Dense and Normalize, got "{module.get("type")}"; '
                "a model with other modules is served by framework: custom"
            )
    settings = _read_settings(folder.model)
    prompts = _read_optional(folder.path / "config_sentence_transformers.json")
    return Recipe(
        pooling=pooling,
        layers=tuple(layers),
        normalizes=normalizes,
        max_length=settings.get("max_seq_length"),
        lowers_case=bool(settings.get("do_lower_case")),
        prompts={name: text for name, text in (prompts.get("prompts") or {}).items() if text is not None},
        prompt_name=prompts.get("default_prompt_name"),
        includes_prompt=includes_prompt,
    )


def _read_settings(path: Path) -> dict[str, Any]:
    settings = _read_optional(path / "sentence_bert_config.json")
    if settings.get("transformer_task") not in _TASKS:
        raise ModelLoadError(
            f'sentence_bert_config.json: expected the task feature-extraction, got "{settings["transformer_task"]}"'
        )
    return settings


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _read_pooling(document: Mapping[str, Any]) -> tuple[Pooling, ...]:
    named = document.get("pooling_mode")
    modes = [named] if isinstance(named, str) else named or [name for key, name in _LEGACY.items() if document.get(key)]
    unknown = [mode for mode in modes if mode not in get_args(Pooling)]
    if unknown:
        raise ModelLoadError(f"pooling: expected some of {', '.join(get_args(Pooling))}, got {unknown[0]!r}")
    return tuple(modes) or ("mean",)


def _read_dense(path: Path, device: str) -> Layer:
    """A linear layer and what comes behind it; only classes of ``torch.nn`` are taken.

    Raises:
        ModelLoadError: It is of another kind, or its weights are missing.
    """
    import torch

    document = read_json(path / "config.json")
    function = str(document.get("activation_function", "torch.nn.modules.activation.Tanh"))
    kind = getattr(torch.nn, function.rpartition(".")[2], None)
    if not function.startswith("torch.nn.") or kind is None or document.get("use_residual"):
        raise ModelLoadError(f"{path.name}: a dense layer with {function} is not known here")
    weights = _read_weights(path)
    linear = torch.nn.Linear(document["in_features"], document["out_features"], bias=bool(document.get("bias", True)))
    linear.load_state_dict({name.removeprefix("linear."): value for name, value in weights.items()})
    layer: Layer = torch.nn.Sequential(linear, kind()).to(device).eval().requires_grad_(False)
    return layer


def _read_weights(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    if (path / "model.safetensors").exists():
        return dict(load_file(path / "model.safetensors"))
    return dict(torch.load(path / "pytorch_model.bin", map_location="cpu", weights_only=True))


def pool(tokens: Any, modes: Sequence[Pooling], skip: int = 0) -> Any:
    """One embedding of a text's own.

    Args:
        tokens: A tensor ``[tokens, dimensions]`` without padding.
        modes: How; of several the results stand side by side.
        skip: Tokens at the beginning that do not count: those of a prompt.
    """
    import torch

    kept = tokens[skip:] if skip < len(tokens) else tokens
    return torch.cat([_POOLINGS[mode](kept, len(tokens) - len(kept)) for mode in modes])


def _weighted_mean(tokens: Any, skipped: int) -> Any:
    import torch

    weights = torch.arange(1, len(tokens) + 1, device=tokens.device, dtype=tokens.dtype).unsqueeze(1) + skipped
    return (tokens * weights).sum(dim=0) / weights.sum()


_POOLINGS: Final[Mapping[Pooling, Callable[[Any, int], Any]]] = {
    "mean": lambda tokens, _: tokens.sum(dim=0) / len(tokens),
    "cls": lambda tokens, _: tokens[0],
    "max": lambda tokens, _: tokens.max(dim=0).values,
    "mean_sqrt_len_tokens": lambda tokens, _: tokens.sum(dim=0) / len(tokens) ** 0.5,
    "weightedmean": _weighted_mean,
    "lasttoken": lambda tokens, _: tokens[-1],
}
