# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of an engine: each folder within one folder is an adapter, and its name the name it answers to.

Adapters are added and removed by adding and removing folders, while the engine runs; every replica sees to it itself.
The folder is on the node, or in a store. The engine is given copies: it reads an adapter again that it had no memory
for, at any time while requests need it, and ends where it cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from modelyard.errors import ModelLoadError
from modelyard.store.cache import Copy, fetch, keep
from modelyard.store.remote import Remote, below, digest_of, is_remote

logger = logging.getLogger(__name__)

_LOOK_S: Final = 2.0
_REMOTE_LOOK_S: Final = 15.0
_TRY_AGAIN_S: Final = 30.0
"""After files could not be had."""
_LINGER_S: Final = 3600.0
"""How long the files of an adapter that is no more are kept for requests that still need them."""
_CONFIG: Final = "adapter_config.json"
"""Every adapter has one. Source: PEFT "Checkpoint format"."""
_MARK: Final = "@"
"""Between an adapter's name and the number of its loading, in the name that the engine has for it."""


class Place(Protocol):
    """Where an adapter's files are for the engine."""

    @property
    def path(self) -> Path:
        """Their folder."""


@dataclass(frozen=True, slots=True)
class _Itself:
    """The folder that somebody else writes to: of one that is replaced nothing is left."""

    path: Path


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

    def get(self, name: str, stamp: str) -> Place:
        """The adapter's files as they were found, for as long as the answer lives.

        Raises:
            ModelLoadError: They cannot be fetched or kept, or have changed since.
        """


class Folder:
    """On this node, or on a volume that every node has.

    An adapter is told of when two looks have found its files alike: whoever copies them there has finished.

    Args:
        path: Holds a folder for each adapter.
        copies: Gives copies; else the folders themselves, which workers on other nodes find on a volume.
    """

    look_s = _LOOK_S

    def __init__(self, path: Path, *, copies: bool = True) -> None:
        self._path = path
        self._copies = copies
        self._last: dict[str, str] | None = None
        self._told: dict[str, str] = {}

    def find(self) -> dict[str, str]:
        """See :class:`Shelf`."""
        found = self._look()
        last, self._last = self._last, found
        steady = found if last is None else {name: stamp for name, stamp in found.items() if last.get(name) == stamp}
        self._told = {name: told for name, told in self._told.items() if name in found} | steady
        return dict(self._told)

    def _look(self) -> dict[str, str]:
        found = {}
        for path in sorted(self._path.iterdir()):
            if not path.name.startswith(".") and (path / _CONFIG).is_file():
                with contextlib.suppress(FileNotFoundError):  # it goes just now
                    found[path.name] = _stamp(path)
        return found

    def get(self, name: str, stamp: str) -> Place:
        """See :class:`Shelf`."""
        path = (self._path / name).absolute()
        return keep(path, _stamp, stamp) if self._copies else _Itself(path)


class Store:
    """In an object store or on the hub.

    Args:
        uri: What holds a folder for each adapter.
    """

    look_s = _REMOTE_LOOK_S

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._remote = Remote(uri)

    def find(self) -> dict[str, str]:
        """See :class:`Shelf`."""
        files = self._remote.list()
        names = {file.name.removesuffix(f"/{_CONFIG}") for file in files if file.name.endswith(f"/{_CONFIG}")}
        names = {name for name in names if "/" not in name and not name.startswith(".")}
        return {name: digest_of(below(files, name)) for name in names}

    def get(self, name: str, stamp: str) -> Copy:
        """See :class:`Shelf`."""
        return fetch(f"{self._uri}/{name}", stamp)


def open_shelf(place: str, *, copies: bool = True) -> Shelf:
    """Where adapters are.

    Args:
        place: A folder, or the URL of one in a store.
        copies: See :class:`Folder`.

    Raises:
        ModelLoadError: There is none.
        InvalidConfig: The store can never be reached from here.
    """
    if is_remote(place):
        return Store(place)
    if not Path(place).is_dir():
        raise ModelLoadError(f'options.adapters: expected a folder, got "{place}"')
    return Folder(Path(place), copies=copies)


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
        self._places: dict[str, Place] = {}
        self._gone: list[tuple[float, Place]] = []
        self._refused: dict[str, tuple[str, float, str]] = {}
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
            with contextlib.suppress(RuntimeError):  # its loop has ended, and it with that
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
            self._let_go(name)
        now = time.monotonic()
        self._gone = [(at, place) for at, place in self._gone if now - at < _LINGER_S]
        self._refused = {name: one for name, one in self._refused.items() if name in found}
        self._seen = {name: stamp for name, stamp in self._seen.items() if name in found}
        for name, stamp in sorted(found.items()):
            if self._seen.get(name) == stamp:
                continue
            if self._models.is_base_model(name):
                logger.error('adapter "%s" has the name of its model, which answers to it: give it another', name)
                self._seen[name] = stamp
                continue
            refused, again_at, told = self._refused.get(name, ("", 0.0, ""))
            if refused == stamp and now < again_at:
                continue
            try:  # first, so that the one that is loaded answers meanwhile
                place = await asyncio.to_thread(self._shelf.get, name, stamp)
            except ModelLoadError as exc:
                if told != str(exc):
                    logger.error('adapter "%s" cannot be fetched: %s', name, exc)
                self._refused[name] = stamp, time.monotonic() + _TRY_AGAIN_S, str(exc)
                continue
            await self._load(name, place)
            self._seen[name] = stamp

    async def _load(self, name: str, place: Place) -> None:
        """Puts it in the place of the one before it, once the engine has it."""
        from vllm.lora.request import LoRARequest

        number = self._models.lora_id_counter.inc(1)
        request = LoRARequest(lora_name=f"{name}{_MARK}{number}", lora_int_id=number, lora_path=str(place.path))
        try:
            await self._models.engine_client.add_lora(request)
        except Exception as exc:  # noqa: BLE001  # vLLM and its workers raise anything about files that are no adapter
            logger.error('adapter "%s" cannot be loaded: %s%s', name, exc, self._settle(name))
            return
        self._let_go(name)
        self._models.lora_requests[name], self._places[name] = request, place

    def _settle(self, name: str) -> str:
        """What becomes of an adapter that cannot be replaced: without its own files it is gone."""
        if name not in self._places:
            return ""
        if not isinstance(self._places[name], _Itself):
            return "; the one before it answers on"
        del self._models.lora_requests[name], self._places[name]
        return "; the one before it answers no longer, since its files are gone"

    def _let_go(self, name: str) -> None:
        """Of an adapter that takes no more requests, the files stay for those that it has."""
        if (place := self._places.pop(name, None)) is not None:
            self._gone.append((time.monotonic(), place))


def _name_without_number(name_of: Callable[..., str]) -> Callable[..., str]:
    """As vLLM's ``model_name``, which answers have as their ``model``, with an adapter's own name."""

    def name(lora_request: Any = None) -> str:
        known_as = name_of(lora_request)
        return known_as if lora_request is None else known_as.rpartition(_MARK)[0] or known_as

    return name


def _stamp(folder: Path) -> str:
    """Changes with any of its files; one that cannot be read, as a link to nothing, counts by its name alone."""
    words = []
    for path in sorted(folder.iterdir()):
        words.append(path.name)
        with contextlib.suppress(OSError):
            one = path.stat()
            words.append(f"{one.st_ctime_ns} {one.st_mtime_ns} {one.st_size}")
    return hashlib.blake2b("\n".join(words).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
