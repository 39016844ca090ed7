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
        self._refused: dict[str, float] = {}
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
            except OSError as exc:
                logger.warning("the folder of adapters cannot be read: %s", exc)

    async def _follow(self) -> None:
        found = await asyncio.to_thread(_find, self._folder)
        for name in set(self.names) - found.keys():
            await self._unload(name)
        for name, path in found.items():
            changed = (path / _CONFIG).stat().st_mtime
            if name not in self.names and self._refused.get(name) != changed:
                await self._load(name, path, changed)

    async def _load(self, name: str, path: Path, changed: float) -> None:
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        request = LoadLoRAAdapterRequest(lora_name=name, lora_path=str(path))
        answer = await self._models.load_lora_adapter(request)
        if isinstance(answer, str):
            self._refused.pop(name, None)
        else:
            self._refused[name] = changed
            logger.error('adapter "%s" cannot be loaded: %s', name, answer.error.message)

    async def _unload(self, name: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))


def _find(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir()) if (path / _CONFIG).is_file()}
