# SPDX-License-Identifier: Apache-2.0
"""The engine arguments that the installed vLLM takes, without importing it.

The controller checks options and must stay free of vLLM, whose import takes seconds and a GPU's driver: the names are
read from the source of its classes of arguments.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final

_SOURCES: Final = {
    "engine/arg_utils.py": ("EngineArgs", "AsyncEngineArgs"),
    "entrypoints/launchers/cli_args.py": ("BaseFrontendArgs", "FrontendArgs"),
}
"""Where the classes are. Source: vLLM 0.29."""

_REGISTRY: Final = "model_executor/models/registry.py"
_NOT_SERVED: Final = ("_PREVIOUSLY_SUPPORTED_MODELS", "_OOT_SUPPORTED_MODELS")
"""Tables there of models that older versions, or plug-ins, serve."""


OURS: Final = {
    "model": "uri",
    "served_model_name": "name",
    "distributed_executor_backend": "resources",
    "host": "http_options.host",
    "port": "http_options.port",
    "api_key": "nothing: the platform's ingress checks who is calling",
    "enable_lora": "options.adapters",
    "lora_modules": "options.adapters",
}
"""Arguments that the platform gives, by what a user sets in their place."""


@cache
def find_arguments() -> frozenset[str]:
    """The names; empty where vLLM is not installed here."""
    names: set[str] = set()
    for file, classes in _SOURCES.items():
        names |= set(_fields(_parse(file), classes))
    return frozenset(names)


@cache
def find_architectures() -> frozenset[str]:
    """The architectures (``LlamaForCausalLM``) that vLLM serves; empty where it is not installed here."""
    return frozenset(
        key.value
        for node in _parse(_REGISTRY).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and not _is_not_served(node)
        for key in node.value.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    )


def _is_not_served(node: ast.Assign) -> bool:
    return isinstance(node.targets[0], ast.Name) and node.targets[0].id in _NOT_SERVED


def _parse(file: str) -> ast.Module:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return ast.Module([], [])
    path = Path(next(iter(spec.submodule_search_locations))) / file
    return ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])


def _fields(tree: ast.Module, classes: Iterable[str]) -> Iterable[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in classes:
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield item.target.id


def find_problem(name: str) -> str:
    """Why there is no such engine argument, with the nearest one there is; empty where there is one."""
    if name in OURS:
        return f'"{name}" is not set here, but by {OURS[name]}'
    known = find_arguments()
    if not known or name in known:
        return ""
    near = difflib.get_close_matches(name.replace("-", "_"), known - OURS.keys(), n=1, cutoff=0.5)
    return f'vLLM has no engine argument "{name}"' + (f': did you mean "{near[0]}"?' if near else "")
