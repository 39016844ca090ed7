# SPDX-License-Identifier: Apache-2.0
"""The engine arguments that the installed vLLM takes, without importing it: which there are, and what they mean here.

The controller checks options and must stay free of vLLM, whose import takes seconds and a GPU's driver: the names are
read from the source of its classes of arguments.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

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
    "disable_log_stats": "nothing: the platform's metrics are made of them",
    "log_config_file": "runtime.env_vars: VLLM_LOGGING_CONFIG_PATH",
    **dict.fromkeys(
        ("uds", "root_path", "uvicorn_log_level", "disable_uvicorn_access_log", "disable_access_log_for_endpoints"),
        "http_options: there is no server but the platform's",
    ),
    **dict.fromkeys(
        ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers", "enable_ssl_refresh"),
        "nothing: TLS ends at a gateway before the platform, see docs/kuberay.md",
    ),
    **dict.fromkeys(
        ("allow_credentials", "allowed_origins", "allowed_methods", "allowed_headers"),
        "nothing: there is no server but the platform's",
    ),
}
"""Arguments that the platform gives, by what a user sets in their place."""

PARALLEL: Final = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "data_parallel_size",
)
"""Their product is the number of workers. Source: vLLM ``ParallelConfig.__post_init__``."""

TRANSFER: Final = "kv_transfer_config"
PLUGINS: Final = ("reasoning_parser_plugin", "tool_parser_plugin")
"""Python files that are run where the server is; in the model's folder, as nothing else of it may be."""

_DEFAULT_WORKER: Final = "auto"
_CODE: Final = frozenset(
    {
        *PLUGINS,
        "trust_remote_code",
        "encoder_cache_manager_cls",
        "inductor_compile_config",
        "inductor_passes",
        "logits_processors",
        "middleware",
        "model_class_overrides",
        "scheduler_cls",
        "worker_cls",
        "worker_extension_cls",
    }
)
"""Arguments, and members of them, with which vLLM imports what they name."""
_MODULE: Final = "module_path"
"""How names of further ones end: connectors', their cache policies' and their further tiers'."""
_SPECULATIVE: Final = "speculative_config"
_FOLDERS: Final = ("tokenizer", "hf_config_path", "spec_model")
"""Arguments that name a folder beside the model's, of which ``trust_remote_code`` runs the code too."""
_TRUST: Final = "trust_remote_code"
_FOLDERS_TO_SPECULATE: Final = ("model", "tokenizer")
_NO_FOLDERS: Final = frozenset({"ngram", "[ngram]"})
"""What vLLM takes in place of a folder for speculation without a model."""
_COMPILATION: Final = "compilation_config"


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


def find_problems(engine: Mapping[str, Any], others: frozenset[str] = frozenset()) -> list[str]:
    """What is wrong with engine arguments, as far as can be told without vLLM.

    Args:
        engine: The arguments.
        others: What might have been meant in place of an unknown one: those of another backend.
    """
    problems = [problem for name in engine if (problem := find_problem(name, others))]
    for name in PARALLEL:
        value = engine.get(name, 1)
        if not _is_count(value):
            problems.append(f"{name}: expected a whole number from 1 on, got {_show(value)}")
    transfer = engine.get(TRANSFER)
    if transfer is not None and not isinstance(transfer, dict):
        problems.append(f"{TRANSFER}: expected a mapping, got {type(transfer).__name__}")
    problems += [
        f"{name}: expected a Python file in the model's folder, by its path there, got {_show(value)}"
        for name in PLUGINS
        if (value := engine.get(name)) and not _is_inside(value)
    ]
    nested = engine.get("structured_outputs_config")
    if isinstance(nested, Mapping) and nested.get(PLUGINS[0]):
        problems.append(f"structured_outputs_config.{PLUGINS[0]} is not set here, but by {PLUGINS[0]}")
    return problems


def _is_count(value: object) -> bool:
    """A whole number from 1 on, perhaps as text, as it comes from a template."""
    if isinstance(value, str):
        return value.isascii() and value.isdecimal() and int(value) > 0
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def count_workers(engine: Mapping[str, Any]) -> int:
    """Processes of one engine with a part of the model each: the product of what it is parallel in."""
    return math.prod(int(engine.get(name, 1)) for name in PARALLEL)


def names_code(engine: object) -> bool:
    """Whether engine arguments, perhaps not what they have to be, make vLLM import code that they name."""
    if not isinstance(engine, Mapping):
        return False
    return _names_code(engine) or _names_custom(engine)


def find_code_folders(engine: object, trusts: object = False) -> tuple[str, ...]:
    """Folders beside the model's that engine arguments name, and whose code runs as that of the model does.

    Args:
        engine: Perhaps not what it has to be.
        trusts: Code is trusted whatever the arguments say.
    """
    if not isinstance(engine, Mapping):
        return ()
    speculative = engine.get(_SPECULATIVE)
    by_itself = isinstance(speculative, Mapping) and speculative.get(_TRUST)
    if not (trusts or engine.get(_TRUST) or by_itself):
        return ()
    named = [engine.get(name) for name in _FOLDERS]
    named += [speculative.get(name) for name in _FOLDERS_TO_SPECULATE] if isinstance(speculative, Mapping) else []
    return tuple(one for one in named if isinstance(one, str) and one and one not in _NO_FOLDERS)


def _names_code(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(
            (bool(one) and _is_code(key) and one != _DEFAULT_WORKER) or _names_code(one) for key, one in value.items()
        )
    return isinstance(value, list | tuple) and any(map(_names_code, value))


def _is_code(key: object) -> bool:
    return isinstance(key, str) and (key in _CODE or key.endswith(_MODULE))


def _names_custom(engine: Mapping[str, Any]) -> bool:
    """A class of one's own by a member that mostly names something of vLLM's, or what was compiled elsewhere.

    Source: vLLM ``SpeculativeConfig._is_custom_proposer_path``, ``CompilationConfig.init_backend`` and ``cache_dir``,
    a folder of pickles and Python files.
    """
    speculative, compilation = engine.get(_SPECULATIVE), engine.get(_COMPILATION)
    found = []
    if isinstance(speculative, Mapping):
        found += [speculative.get("method") == "custom_class", _is_qualified(speculative.get("model"))]
    if isinstance(compilation, Mapping):
        found += ["." in str(compilation.get("backend", "")), bool(compilation.get("cache_dir"))]
    return any(found) or _is_qualified(engine.get("spec_model")) or engine.get("spec_method") == "custom_class"


def _is_qualified(name: object) -> bool:
    """``module.Class``."""
    return isinstance(name, str) and "." in name and all(part.isidentifier() for part in name.split("."))


def _is_inside(path: object) -> bool:
    if not isinstance(path, str):
        return False
    parts = PurePosixPath(path)
    return parts.suffix == ".py" and not parts.is_absolute() and ".." not in parts.parts


def _show(value: object) -> str:
    return f'"{value[:80]}"' if isinstance(value, str) else f"{value}"[:80]


def find_problem(name: str, others: frozenset[str] = frozenset()) -> str:
    """Why there is no such engine argument, with the nearest one there is; empty where there is one."""
    if name in OURS:
        return f'"{name}" is not set here, but by {OURS[name]}'
    known = find_arguments()
    if not known or name in known:
        return ""
    near = difflib.get_close_matches(name.replace("-", "_"), (known | others) - OURS.keys(), n=1, cutoff=0.5)
    who = "no backend has the" if others else "vLLM has no"
    return f'{who} engine argument "{name}"' + (f': did you mean "{near[0]}"?' if near else "")
