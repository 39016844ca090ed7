# SPDX-License-Identifier: Apache-2.0
"""The folder that ``save_pretrained`` writes, read before any library is: what it is, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelyard.errors import ModelLoadError

_WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_OTHERS: Final = {
    "adapter_config.json": "an adapter (LoRA) without its model; merge it into the model, or serve both with vLLM",
    "model_index.json": "a pipeline of diffusers",
    "saved_model.pb": "a SavedModel: framework tensorflow serves it",
    "MLmodel": "a model of MLflow: framework mlflow serves it",
    "params.json": "weights in Mistral's own format; framework vllm serves them",
}
"""Other kinds of folders, by a file in them."""
_OTHER_WEIGHTS: Final = ("tf_model.h5", "flax_model.msgpack", "model.onnx", "rust_model.ot", "model.ckpt.index")
_LFS: Final = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Folder:
    """A model's files.

    Attributes:
        path: The whole folder.
        model: Where ``config.json`` and the weights are: the same folder, or one inside it.
        config: What is in ``config.json``.
        modules: What sentence-transformers makes of a text's tokens, in order; empty where it is no model of theirs.
    """

    path: Path
    model: Path
    config: Mapping[str, Any]
    modules: tuple[Mapping[str, Any], ...] = ()

    @property
    def architectures(self) -> tuple[str, ...]:
        """Names of the classes that the weights were saved from."""
        names = self.config.get("architectures") or ()
        return tuple(str(name) for name in names)


def read_folder(path: Path) -> Folder:
    """Reads what the folder says of its model.

    Raises:
        ModelLoadError: It is no such folder, or files are missing or damaged.
    """
    if path.is_file():
        raise ModelLoadError(f"{path.name}: expected the folder that save_pretrained writes, got a file")
    modules = _read_modules(path)
    model = path / str(modules[0].get("path", "")) if modules else path
    config = model / "config.json"
    if not config.exists():
        raise ModelLoadError(_explain(path))
    document = read_json(config)
    if not document.get("model_type") and "auto_map" not in document:
        raise ModelLoadError(
            'config.json: expected the key "model_type", which says what transformers has to make of it'
        )
    _check_weights(model)
    return Folder(path, model, document, modules)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        ModelLoadError: It is none.
    """
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, OSError) as exc:
        raise ModelLoadError(f"{path.name}: expected JSON, which it is not: {exc}") from exc
    if not isinstance(document, dict):
        raise ModelLoadError(f"{path.name}: expected a JSON object, got a {type(document).__name__}")
    return document


def _read_modules(path: Path) -> tuple[Mapping[str, Any], ...]:
    file = path / "modules.json"
    if not file.exists():
        return ()
    try:
        modules = json.loads(file.read_bytes())
    except ValueError as exc:
        raise ModelLoadError(f"modules.json: expected JSON, which it is not: {exc}") from exc
    if not isinstance(modules, list) or not modules or not all(isinstance(one, dict) for one in modules):
        raise ModelLoadError("modules.json: expected a list of sentence-transformers' modules")
    for module in modules:
        if not (path / str(module.get("path", ""))).resolve().is_relative_to(path.resolve()):
            raise ModelLoadError(f'modules.json: "{module["path"]}" lies outside the model\'s folder')
    return tuple(modules)


def _explain(path: Path) -> str:
    names = sorted(file.name for file in path.iterdir())
    expected = f"{path.name}: expected a folder with config.json, as save_pretrained writes it"
    for name, kind in _OTHERS.items():
        if name in names:
            return f"{expected}, got {kind}"
    listed = ", ".join(names[:10]) + (" …" if len(names) > 10 else "") if names else "nothing"
    return f"{expected}; the folder holds {listed}"


def _check_weights(path: Path) -> None:
    found = [name for name in _WEIGHTS if (path / name).exists()]
    if not found:
        others = [name for name in _OTHER_WEIGHTS if (path / name).exists()]
        got = f"got {', '.join(others)}, which PyTorch cannot load" if others else "got none of them"
        raise ModelLoadError(f"expected weights in model.safetensors or pytorch_model.bin, {got}")
    for name in found:
        with (path / name).open("rb") as file:
            head = file.read(len(_LFS))
        if head == _LFS:
            raise ModelLoadError(f"{name}: the file is a pointer of Git LFS; fetch the model itself with git lfs pull")
        if not head:
            raise ModelLoadError(f"{name}: the file is empty")
