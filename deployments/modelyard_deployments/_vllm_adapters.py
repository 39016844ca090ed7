# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of an engine: each folder within one folder is an adapter, and its name the name it answers to.

Adapters are added and removed by adding and removing folders, while the engine runs; every replica sees to it itself.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, Final

logger = logging.getLogger(__name__)

_LOOK_S: Final = 2.0
_CONFIG: Final = "adapter_config.json"
"""Every adapter has one. Source: PEFT "Checkpoint format"."""


class Adapters:
    """Keeps the adapters of an engine equal to the folders there are.

    Args:
        folder: Holds a folder for each adapter.
        models: vLLM's own table of models (``OpenAIServingModels``).
    """

    def __init__(self, folder: Path, models: Any) -> None:
        self._folder = folder
        self._models = models
        self._seen: dict[str, tuple[float, int]] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are loaded."""
        return tuple(sorted(self._models.lora_requests))

    async def start(self) -> None:
        """Loads what is there, and from then on follows the folder."""
        await self._follow()
        self._task = asyncio.create_task(self._follow_forever())

    def stop(self) -> None:
        """Follows no longer; from any thread."""
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    async def _follow_forever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._follow()
            except Exception as exc:  # noqa: BLE001  # vLLM's, or a folder that goes away just now: the next look may do
                logger.warning("adapters are not followed: %s: %s", type(exc).__name__, exc)

    async def _follow(self) -> None:
        found = await asyncio.to_thread(_find, self._folder)
        changed = {name for name, (_, stamp) in found.items() if self._seen.get(name) != stamp}
        for name in set(self.names) & (changed | (set(self.names) - found.keys())):
            await self._unload(name)
        self._seen = {name: stamp for name, (_, stamp) in found.items()}
        for name in sorted(changed):
            await self._load(name, found[name][0])

    async def _load(self, name: str, path: Path) -> None:
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        request = LoadLoRAAdapterRequest(lora_name=name, lora_path=str(path))
        answer = await self._models.load_lora_adapter(request)
        if not isinstance(answer, str):
            logger.error('adapter "%s" cannot be loaded: %s', name, answer.error.message)

    async def _unload(self, name: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))


def _find(folder: Path) -> dict[str, tuple[Path, tuple[float, int]]]:
    """Each adapter's folder, and what changes with its files: while it is being copied, for example."""
    return {path.name: (path, _stamp(path)) for path in sorted(folder.iterdir()) if (path / _CONFIG).is_file()}


def _stamp(folder: Path) -> tuple[float, int]:
    files = [path.stat() for path in folder.iterdir()]
    return max(one.st_mtime for one in files), sum(one.st_size for one in files)
