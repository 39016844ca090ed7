# SPDX-License-Identifier: Apache-2.0
"""The engine of ``ray.serve.llm`` in a replica: vLLM's engine process and its workers, and vLLM's own server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelyard.errors import ModelLoadError
from modelyard.openai import Meter
from modelyard_deployments._vllm_arguments import PARALLEL, PLUGINS
from modelyard_deployments._vllm_install import INSTALL
from modelyard_deployments._vllm_meter import StatLogger

logger = logging.getLogger(__name__)

_ENVIRONMENT: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings speak of what it chose, not of what is wrong
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "NIXL_LOG_LEVEL": "WARN",
    "HF_HUB_OFFLINE": "1",  # the model is a folder here
    # Without a GPU: the cache of keys and values in GiB, and no cores of its own beside other replicas.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""What the engine's processes find where the user has said nothing else."""

_SHARE: Final = 0.92
"""Of a GPU's memory, or of the part of one that a replica has. Source: vLLM ``CacheConfig``."""
_CPU_SHARE: Final = 0.2
"""Of a machine's memory: vLLM's own check refuses to start where less than its share is free."""
_TRANSFER_PORT: Final = "VLLM_NIXL_SIDE_CHANNEL_PORT"
"""Where engines tell one another of their memory: each needs its own, and ``ray.serve.llm`` counts within one model."""
_TRANSFER_PORTS: Final = range(20_000, 29_900)
_REASON: Final = 300
_SETTLE_S: Final = 1.0
_PARSERS: Final = ("reasoning_parser", "tool_call_parser")
"""What names the parsers of :data:`PLUGINS`."""


def prepare_environment() -> None:
    """Before vLLM is imported, which reads it then."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class Engine:
    """One engine.

    Args:
        path: The model's folder.
        arguments: vLLM's engine arguments.
        has_adapters: LoRA adapters will be loaded.
    """

    def __init__(self, path: Path, arguments: Mapping[str, Any], has_adapters: bool) -> None:
        self._path = path
        self._arguments = {name: int(value) if name in PARALLEL else value for name, value in arguments.items()}
        if has_adapters:
            self._arguments["enable_lora"] = True
        self._server: Any = None
        self._app: Any = None
        self._settling: asyncio.Task[None] | None = None

    async def start(self, name: str, meter: Meter, *, keeps_cache: bool = False) -> None:
        """Starts it on this event loop.

        Args:
            name: The model's, in requests and answers.
            meter: Where it tells of its steps.
            keeps_cache: Blocks are kept for another engine when their request is over.

        Raises:
            ModelLoadError: vLLM refuses the model or the arguments, or there is not enough memory.
        """
        from modelyard_deployments._vllm_server import make_server

        if self._arguments.get("kv_transfer_config"):
            os.environ.setdefault(_TRANSFER_PORT, str(_free_ports(int(self._arguments.get("data_parallel_size", 1)))))
        bundles = _bundles()
        check_platform(bool(bundles), _is_for_cpus())
        self._arguments.setdefault("use_tqdm_on_load", False)
        self._arguments.setdefault("gpu_memory_utilization", _memory_share(bundles) if bundles else _CPU_SHARE)
        try:
            check_plugins(self._arguments, bool(bundles))
            import_plugins(self._path, self._arguments)
            self._server = make_server(name, str(self._path), self._arguments, bundles)
            await self._server.start()
            self._app = await self._server.engine.build_asgi_app()
            self._logger = StatLogger(meter, keeps_cache)
            self._client.logger_manager.stat_loggers.append(self._logger)
            self._settling = asyncio.create_task(self._settle())
            # A client's mistake in a conversation is the client's reply, and no traceback in the log.
            logging.getLogger("vllm.renderers.hf").setLevel(logging.CRITICAL)
        except Exception as exc:
            # vLLM and its engine's process raise anything; whatever it is, the model cannot be served.
            raise ModelLoadError(f"vLLM: {_to_reason(exc)}") from exc

    async def _settle(self) -> None:
        while True:
            await asyncio.sleep(_SETTLE_S)
            if not self._client.output_processor.has_unfinished_requests():
                self._logger.settle()

    @property
    def app(self) -> Any:
        """VLLM's OpenAI server, an ASGI application."""
        return self._app

    @property
    def paths(self) -> frozenset[str]:
        """Paths that it answers for this model."""
        return (
            frozenset(getattr(route, "path", "") for route in self._app.routes)
            if self._app is not None
            else frozenset()
        )

    @property
    def models(self) -> Any:
        """VLLM's table of the model and its adapters."""
        return self._app.state.openai_serving_models

    def check_health(self) -> None:
        """Whether it can answer.

        Raises:
            RuntimeError: Its process has ended.
        """
        client = self._client
        if client is not None and client.errored:
            raise RuntimeError(f"vLLM's engine has ended: {client.dead_error}")

    @property
    def _client(self) -> Any:
        return None if self._app is None else self._app.state.engine_client

    def close(self) -> None:
        """Ends its processes."""
        if self._settling is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended, and it with that
                self._settling.get_loop().call_soon_threadsafe(self._settling.cancel)
        if self._client is not None:
            self._client.shutdown()


def _is_for_cpus() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def check_platform(has_gpus: bool, is_for_cpus: bool) -> None:
    """Says at once what vLLM's engine would say in the log of another process.

    Args:
        has_gpus: The replica.
        is_for_cpus: The vLLM that is installed here, ``vllm-cpu``.

    Raises:
        ModelLoadError: The two do not go together.
    """
    if has_gpus and is_for_cpus:
        raise ModelLoadError(
            "resources.num_gpus: vLLM can use none here, it is the one for CPUs: leave the GPUs out, or install the "
            f"other with `{INSTALL} --gpu`"
        )
    if not has_gpus and not is_for_cpus:
        raise ModelLoadError(
            "resources.num_gpus: expected some, got none: vLLM is the one for GPUs here: give the model one, or a part "
            f"of one, or install the other with `{INSTALL} --cpu`"
        )


def check_plugins(arguments: Mapping[str, Any], has_gpus: bool) -> None:
    """Refuses what ``ray.serve.llm`` has no way for.

    Raises:
        ValueError: The replica has GPUs, and the arguments a reasoning parser of the model's own.
    """
    if has_gpus and arguments.get(PLUGINS[0]):
        raise ValueError(
            f"{PLUGINS[0]}: expected none on GPUs: there the engine is configured in another of Ray's workers, which "
            "does not run the file; use a reasoning_parser of vLLM's own, or install the parser with vLLM as a plug-in"
        )


def import_plugins(folder: Path, arguments: dict[str, Any]) -> None:
    """Runs the model's own parsers, which vLLM's launcher would do; their arguments become whole paths.

    Raises:
        ValueError: There is no such file in the folder, or the parser that is asked for is not in it.
    """
    for name, parser in zip(PLUGINS, _PARSERS, strict=True):
        if not arguments.get(name):
            continue
        file = (folder / arguments[name]).resolve()
        if not file.is_file() or not file.is_relative_to(folder.resolve()):
            raise ValueError(f'{name}: expected a Python file in the model\'s folder, got "{arguments[name]}"')
        known = _run_plugin(name, str(file))
        if (asked := arguments.get(parser)) and asked not in known:  # vLLM only logs what is wrong with the file
            raise ValueError(f'{parser}: {arguments[name]} registers no "{asked}", and vLLM has none; see the log')
        arguments[name] = str(file)


def _run_plugin(name: str, file: str) -> list[str]:
    """The parsers that there are then."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    if name == PLUGINS[0]:
        ReasoningParserManager.import_reasoning_parser(file)
        known: list[str] = ReasoningParserManager.list_registered()
    else:
        ToolParserManager.import_tool_parser(file)
        known = ToolParserManager.list_registered()
    return known


def _bundles() -> list[dict[str, float]]:
    """What this replica's placement group reserves, a bundle for each worker; empty without a GPU."""
    from ray.util.placement_group import get_current_placement_group

    group = get_current_placement_group()
    return [dict(bundle) for bundle in group.bundle_specs] if group is not None else []


def _free_ports(count: int) -> int:
    """The first of so many in a row, which nobody is given in the time until vLLM opens them.

    So they lie below those that the kernel gives to whoever asks for any, and above those of Ray's workers.
    """
    for first in random.sample(_TRANSFER_PORTS, len(_TRANSFER_PORTS)):
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            for port in range(first, first + count):
                opened.enter_context(socket.socket()).bind(("", port))
            return first
    raise ModelLoadError(f"no {count} free ports in a row between {_TRANSFER_PORTS.start} and {_TRANSFER_PORTS.stop}")


def _memory_share(bundles: list[dict[str, float]]) -> float:
    """Of a GPU's memory: a replica that has a part of one takes no more than its part."""
    return round(_SHARE * min(1.0, bundles[0].get("GPU", 1.0)), 3)


def _to_reason(exc: BaseException) -> str:
    """What it said, without the sentences around it."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    text = str(exc) or type(exc).__name__
    return text if len(text) <= _REASON else f"{text[:_REASON]}…"
