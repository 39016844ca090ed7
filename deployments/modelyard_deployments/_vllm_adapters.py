# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of an engine: each folder within one folder is an adapter, and its name the name it answers to.

Adapters are added and removed by adding and removing folders, while the engine runs; every replica sees to it itself.
The folder is on the node, or in a store.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
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
_MARK: Final = "@"
"""Between an adapter's name and the number of its loading, in the name that the engine has for it."""


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

    def has(self, name: str, stamp: str) -> bool:
        """Whether the files that :meth:`get` gave then are still there, as they were."""


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

    def has(self, name: str, stamp: str) -> bool:
        """See :class:`Shelf`."""
        try:
            return _stamp(self._path / name) == stamp
        except OSError:
            return False


class Store:
    """In an object store or on the hub; copies are kept while they are in use.

    Args:
        uri: What holds a folder for each adapter.
    """

    look_s = _REMOTE_LOOK_S

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._remote = Remote(uri)
        self._copies: dict[str, dict[str, Copy]] = {}

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
        copy = fetch(f"{self._uri}/{name}", stamp)
        # The one before it stays: requests that run have it, and all have where the new one cannot be loaded.
        before = [(known, one) for known, one in self._copies.get(name, {}).items() if known != stamp]
        self._copies[name] = {**dict(before[-1:]), stamp: copy}
        return copy.path

    def has(self, name: str, stamp: str) -> bool:
        """See :class:`Shelf`."""
        return stamp in self._copies.get(name, {})


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

    The engine knows each loading of an adapter by a name and a number of its own, which never come back: it finds
    weights by the number and what it remembers of prompts by the name, and files that look the same need not be.

    Args:
        shelf: Where they are.
        models: vLLM's own table of models (``OpenAIServingModels``).
    """

    def __init__(self, shelf: Shelf, models: Any) -> None:
        self._shelf = shelf
        self._models = models
        self._models.model_name = _name_without_number(models.model_name)
        self._loaded: dict[str, str] = {}
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
            del self._models.lora_requests[name]
        self._loaded = {name: stamp for name, stamp in self._loaded.items() if name in found}
        self._seen = {name: stamp for name, stamp in self._seen.items() if name in found}
        for name, stamp in sorted(found.items()):
            if self._seen.get(name) == stamp:
                continue
            try:  # first, so that the one that is loaded answers meanwhile
                path = await asyncio.to_thread(self._shelf.get, name, stamp)
            except ModelLoadError as exc:
                logger.error('adapter "%s" cannot be fetched: %s', name, exc)
                continue  # the next look tries again
            await self._load(name, stamp, path)
            self._seen[name] = stamp

    async def _load(self, name: str, stamp: str, path: Path) -> None:
        """Puts it in the place of the one before it, once the engine has it."""
        from vllm.lora.request import LoRARequest

        number = self._models.lora_id_counter.inc(1)
        request = LoRARequest(lora_name=f"{name}{_MARK}{number}", lora_int_id=number, lora_path=str(path))
        try:
            await self._models.engine_client.add_lora(request)
        except Exception as exc:  # noqa: BLE001  # vLLM and its workers raise anything about files that are no adapter
            logger.error('adapter "%s" cannot be loaded: %s%s', name, exc, await self._settle(name))
            return
        self._models.lora_requests[name], self._loaded[name] = request, stamp

    async def _settle(self, name: str) -> str:
        """What becomes of an adapter that cannot be replaced: without its own files it is gone.

        The engine reads an adapter again that it has no memory for, and ends where it cannot.
        """
        if name not in self._models.lora_requests:
            return ""
        if await asyncio.to_thread(self._shelf.has, name, self._loaded[name]):
            return "; the one before it answers on"
        del self._models.lora_requests[name], self._loaded[name]
        return "; the one before it answers no longer, since its files are gone"


def _name_without_number(name_of: Callable[..., str]) -> Callable[..., str]:
    """As vLLM's ``model_name``, which answers have as their ``model``, with an adapter's own name."""

    def name(lora_request: Any = None) -> str:
        known_as = name_of(lora_request)
        return known_as if lora_request is None else known_as.rpartition(_MARK)[0] or known_as

    return name


def _stamp(folder: Path) -> str:
    """Changes with the name, time or size of any file."""
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    words = [f"{name} {one.st_mtime_ns} {one.st_size}" for name, one in files]
    return hashlib.blake2b("\n".join(words).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
