# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of an engine: each folder within one folder is an adapter, and its name the name it answers to.

Adapters are added and removed by adding and removing folders, while the engine runs; every replica sees to it itself.
The folder is on the node, or in a store.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any, Final, Protocol

from modelyard.errors import ModelLoadError
from modelyard.store.cache import Copy, fetch
from modelyard.store.remote import Remote, below, digest_of, is_remote

logger = logging.getLogger(__name__)

_LOOK_S: Final = 2.0
_REMOTE_LOOK_S: Final = 15.0
_CONFIG: Final = "adapter_config.json"
"""Every adapter has one. Source: PEFT "Checkpoint format"."""


class Shelf(Protocol):
    """Where adapters are."""

    look_s: float
    """Seconds between two looks."""

    def find(self) -> dict[str, str]:
        """Each adapter by its name, with what changes with its files.

        Raises:
            OSError: It cannot be read.
            ModelLoadError: Likewise.
        """

    def get(self, name: str, stamp: str) -> Path:
        """The adapter's folder on this node, as it was found.

        Raises:
            ModelLoadError: It cannot be fetched, or has changed since.
        """


class Folder:
    """On this node, or on a volume that every node has.

    Args:
        path: Holds a folder for each adapter.
    """

    look_s = _LOOK_S

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self) -> dict[str, str]:
        """See :class:`Shelf`: times and sizes change while files are being copied, too."""
        folders = (path for path in sorted(self._path.iterdir()) if not path.name.startswith("."))
        return {path.name: _stamp(path) for path in folders if (path / _CONFIG).is_file()}

    def get(self, name: str, stamp: str) -> Path:  # it is here
        """See :class:`Shelf`."""
        return self._path / name


class Store:
    """In an object store or on the hub; copies are kept while they are in use.

    Args:
        uri: What holds a folder for each adapter.
    """

    look_s = _REMOTE_LOOK_S

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._remote = Remote(uri)
        self._copies: dict[str, Copy] = {}

    def find(self) -> dict[str, str]:
        """See :class:`Shelf`."""
        files = self._remote.list()
        names = {file.name.removesuffix(f"/{_CONFIG}") for file in files if file.name.endswith(f"/{_CONFIG}")}
        names = {name for name in names if "/" not in name and not name.startswith(".")}
        found = {name: digest_of(below(files, name)) for name in names}
        self._copies = {name: copy for name, copy in self._copies.items() if name in found}
        return found

    def get(self, name: str, stamp: str) -> Path:
        """See :class:`Shelf`."""
        copy = self._copies[name] = fetch(f"{self._uri}/{name}", stamp)
        return copy.path


def open_shelf(place: str) -> Shelf:
    """Where adapters are.

    Args:
        place: A folder, or the URL of one in a store.

    Raises:
        ModelLoadError: There is none.
        InvalidConfig: The store can never be reached from here.
    """
    if is_remote(place):
        return Store(place)
    if not Path(place).is_dir():
        raise ModelLoadError(f'options.adapters: expected a folder, got "{place}"')
    return Folder(Path(place))


class Adapters:
    """Keeps the adapters of an engine equal to the folders there are.

    Args:
        shelf: Where they are.
        models: vLLM's own table of models (``OpenAIServingModels``).
    """

    def __init__(self, shelf: Shelf, models: Any) -> None:
        self._shelf = shelf
        self._models = models
        self._seen: dict[str, str] = {}
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
            await asyncio.sleep(self._shelf.look_s)
            try:
                await self._follow()
            except Exception as exc:  # noqa: BLE001  # vLLM's, or a folder that goes away just now: the next look may do
                logger.warning("adapters are not followed: %s: %s", type(exc).__name__, exc)

    async def _follow(self) -> None:
        found = await asyncio.to_thread(self._shelf.find)
        for name in set(self.names) - found.keys():
            await self._unload(name)
        self._seen = {name: stamp for name, stamp in self._seen.items() if name in found}
        for name, stamp in sorted(found.items()):
            if self._seen.get(name) == stamp:
                continue
            try:  # first, so that the one that is loaded answers meanwhile
                path = await asyncio.to_thread(self._shelf.get, name, stamp)
            except ModelLoadError as exc:
                logger.error('adapter "%s" cannot be fetched: %s', name, exc)
                continue  # the next look tries again
            if name in self.names:
                await self._unload(name)
            await self._load(name, path)
            self._seen[name] = stamp

    async def _load(self, name: str, path: Path) -> None:
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        request = LoadLoRAAdapterRequest(lora_name=name, lora_path=str(path))
        answer = await self._models.load_lora_adapter(request)
        if not isinstance(answer, str):
            logger.error('adapter "%s" cannot be loaded: %s', name, answer.error.message)

    async def _unload(self, name: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))


def _stamp(folder: Path) -> str:
    files = [path.stat() for path in folder.iterdir()]
    return f"{max(one.st_mtime for one in files)} {sum(one.st_size for one in files)}"
