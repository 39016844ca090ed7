# SPDX-License-Identifier: Apache-2.0
"""The models of a pool's replica: each loaded when it is asked for, and gone when others need its memory.

"One request": in place of the one model's runners. Models load one after the other, so that what each takes can be
seen; those that are loaded answer meanwhile. The least recently used goes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import hashlib
import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import psutil

from modelyard.admin import PoolProcess
from modelyard.batching import Answer, Call
from modelyard.errors import ModelLoadError, ModelNotReady, Overloaded
from modelyard.model import Model, describe
from modelyard.serve.autoscaling import Work, to_work
from modelyard.serve.revision import Batching, RevisionSpec, fetch_artifact, to_reason
from modelyard.serve.runners import Runners
from modelyard.serve.warmup import warm_up
from modelyard.signature import Description
from modelyard.statistics import Statistics, merge_statistics
from modelyard.store.remote import is_remote
from modelyard.tensor import Tensors

logger = logging.getLogger(__name__)

_MIB: Final = 1024 * 1024
_LOOK_AGAIN_S: Final = 0.01
_ROOM_TIMEOUT_S: Final = 10.0
_SLACK: Final = 0.02
"""Part of the budget that is made free beyond what is needed, so that not every load has to make room."""
_LAST_LOADS: Final = 1000
_FIND_S: Final = 10.0
_HUNG_S: Final = 60.0
_TRY_AGAIN_S: Final = 5.0
"""A model that could not be loaded is not tried again for so long, whoever asks."""


@dataclass(frozen=True, slots=True)
class Resident:
    """One revision that lives in a pool.

    Attributes:
        key: What calls name it by: its application and its digest.
        pool: The pool's Serve application.
        application: What it would be called if it had an application of its own.
        spec: What to load.
        batching: The limits it answers within.
        load_timeout_s: How long it may take to load.
    """

    key: str
    pool: str
    application: str
    spec: RevisionSpec
    batching: Batching
    load_timeout_s: float

    @property
    def fingerprint(self) -> str:
        """Equal exactly when nothing has changed."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


@dataclass(slots=True)
class PoolCounts:
    """What a pool's replica has done since it started.

    Attributes:
        hits: Calls that found their model loaded.
        misses: Calls that waited for it.
        loads: Models that were loaded.
        evictions: Models that made room for others.
        load_s: Seconds that each load since the last look took.
        last_load_s: The same of the last ones.
    """

    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0
    load_s: list[float] = field(default_factory=list)
    last_load_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST_LOADS))


@dataclass(frozen=True, slots=True)
class _Loaded:
    resident: Resident
    model: Model
    runners: Runners
    size_bytes: int


Find = Callable[[str], Awaitable[Resident | None]]
"""Asks the controller who has this key; None where nobody has."""


def process_memory() -> int:
    """Bytes of memory that this process takes."""
    return int(psutil.Process().memory_info().rss)


class Residents:
    """Answers calls for many models.

    Args:
        find: Where a key leads that is not known yet.
        load: Loads a model; called in a thread.
        budget_bytes: Memory that the process may take.
        memory: Bytes that it takes now.
    """

    def __init__(
        self,
        find: Find,
        load: Callable[[RevisionSpec], Model],
        budget_bytes: int,
        memory: Callable[[], int] = process_memory,
    ) -> None:
        self._find = find
        self._load_model = load
        self._budget = budget_bytes
        self._memory = memory
        self._known: dict[str, Resident] = {}
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._awaited: Counter[str] = Counter()
        self._sizes: dict[str, int] = {}
        self._statistics: dict[str, dict[str, Statistics]] = {}
        self._nobody_waits = asyncio.Event()
        self._turn = asyncio.Lock()
        self._threads: set[str] = set()
        self._least = memory()
        self._has_library = False
        self._closed = False
        self.counts = PoolCounts()

    @property
    def budget_bytes(self) -> int:
        """Memory that the process may take; may be set anew."""
        return self._budget

    @budget_bytes.setter
    def budget_bytes(self, value: int) -> None:
        self._budget = value

    @property
    def loaded(self) -> tuple[str, ...]:
        """Keys of the models that are loaded, the least recently used first."""
        return tuple(self._loaded)

    @property
    def ongoing(self) -> int:
        """Requests that wait, also for their model, or are being predicted."""
        return self._awaited.total() + sum(one.runners.ongoing for one in list(self._loaded.values()))

    @property
    def work(self) -> Work:
        """What was done."""
        return to_work(one for members in list(self._statistics.values()) for one in list(members.values()))

    @property
    def is_alive(self) -> bool:
        """Every queue is being emptied."""
        return all(one.runners.is_alive for one in list(self._loaded.values()))

    def find_unhealthy(self) -> tuple[str, ...]:
        """Keys of the models that say that they will not answer any more; from any thread."""
        return tuple(key for key, one in list(self._loaded.items()) if not _is_healthy(one.model))

    @property
    def failed(self) -> dict[str, str]:
        """Why models cannot be loaded, by key, of those that somebody has asked for since they last could."""
        return {key: reason for key, (_, reason) in self._failed.items()}

    def report(self, name: str) -> PoolProcess:
        """What it holds and has done.

        Args:
            name: The replica's.
        """
        counts = self.counts
        p50, p99 = np.percentile(counts.last_load_s, (50, 99)) if counts.last_load_s else (0.0, 0.0)
        return PoolProcess(
            name=name,
            loaded=len(self._loaded),
            memory_mb=self._memory() // _MIB,
            memory_limit_mb=self._budget // _MIB,
            hits=counts.hits,
            misses=counts.misses,
            loads=counts.loads,
            evictions=counts.evictions,
            load_p50_ms=round(1e3 * float(p50), 3),
            load_p99_ms=round(1e3 * float(p99), 3),
        )

    def statistics(self, key: str) -> Statistics:
        """What was counted of one model, also before it was last loaded."""
        return merge_statistics(self._statistics.get(key, {}).values())

    def all_statistics(self) -> Mapping[str, Statistics]:
        """The same of all, by application."""
        known = self._known.copy()
        return {known[key].application: self.statistics(key) for key in list(self._statistics) if key in known}

    def submit(self, call: Call) -> asyncio.Future[Answer]:
        """Queues one call, behind the load of its model where that has to come first.

        The future raises what :meth:`ModelRunner.submit` raises, and:
            ModelNotReady: The model cannot be loaded.
            Overloaded: No room can be made for it now.
        """
        one = self._loaded.get(call.resident)
        if one is None:
            self.counts.misses += 1
            return asyncio.ensure_future(self._load_and_submit(call))
        self.counts.hits += 1
        self._loaded.move_to_end(call.resident)
        return one.runners.submit(call)

    async def stream(self, call: Call) -> AsyncGenerator[Tensors]:
        """As :meth:`ModelRunner.stream`; what streams is not let into a pool, so this answers what was sent too late.

        Raises:
            ModelNotReady: Always.
        """
        raise ModelNotReady(_model_of(call.resident), "models in a pool do not stream")
        yield {}

    async def describe(self, resident: Resident) -> Description:
        """What a model takes and gives; loads it.

        Raises:
            ModelLoadError: It cannot be loaded, or is none for a pool.
            Overloaded: No room can be made for it now.
        """
        self._known[resident.key] = resident
        self._failed.pop(resident.key, None)
        try:
            return describe((await self._get(resident.key)).model)
        except ModelNotReady as exc:
            if self._closed:
                raise Overloaded("its replica is stopping: try again") from exc
            raise ModelLoadError(exc.reason) from exc

    def replace(self, resident: Resident) -> None:
        """Takes new limits of a model that is known."""
        self._known[resident.key] = resident
        one = self._loaded.get(resident.key)
        if one is not None:
            _configure(one.runners, resident.batching)

    async def forget(self, key: str) -> None:
        """Nobody asks for this model any more; it answers what it has and goes, also where it is loading."""
        self._known.pop(key, None)
        self._statistics.pop(key, None)
        self._sizes.pop(key, None)
        self._failed.pop(key, None)
        await self.evict(key)

    async def evict(self, key: str) -> None:
        """Takes one model out of memory, when it has answered what it has; who asks for it next loads it again."""
        if key in self._loaded:
            await self._loaded.pop(key).runners.drain()

    @property
    def known(self) -> Mapping[str, Resident]:
        """What the controller has told, by key."""
        return self._known

    async def drain(self) -> None:
        """Waits until everything submitted is answered, then closes the models."""
        while self._awaited:
            self._nobody_waits.clear()
            await self._nobody_waits.wait()
        self._closed = True
        await asyncio.gather(*(self.evict(key) for key in list(self._loaded)))

    # -- loading

    async def _load_and_submit(self, call: Call) -> Answer:
        one = await self._get(call.resident)
        return await one.runners.submit(call)  # up to here nothing can take the model away again

    async def _get(self, key: str) -> _Loaded:
        self._awaited[key] += 1
        try:
            while (one := self._loaded.get(key)) is None:
                task = self._loading.get(key)
                if task is None:
                    task = self._loading[key] = asyncio.ensure_future(self._load(key))
                    task.add_done_callback(lambda done: self._on_loaded(key, done))
                await asyncio.shield(task)  # others wait for it too
            self._loaded.move_to_end(key)
            return one
        finally:
            self._awaited[key] -= 1
            if not self._awaited[key]:
                del self._awaited[key]
            if not self._awaited:
                self._nobody_waits.set()

    def _on_loaded(self, key: str, task: asyncio.Task[None]) -> None:
        del self._loading[key]
        if not task.cancelled():
            task.exception()  # nobody may be left to hear it

    async def _load(self, key: str) -> None:
        until, reason = self._failed.get(key, (0.0, ""))
        if time.monotonic() < until:
            raise ModelNotReady(_model_of(key), reason)
        if key in self._threads:
            raise ModelNotReady(_model_of(key), "it hangs where it was loaded before")
        resident = self._known.get(key) or await self._ask_controller(key)
        self._known[key] = resident
        try:
            # Before its turn: a store that is slow, or away, holds up nobody else. Kept until it is loaded.
            async with asyncio.timeout(resident.load_timeout_s):
                copy = await asyncio.to_thread(fetch_artifact, resident.spec) if is_remote(resident.spec.uri) else None
        except TimeoutError as exc:
            raise self._fail(resident, _too_slow(resident), _TRY_AGAIN_S) from exc
        except Exception as exc:
            raise self._fail(resident, to_reason(exc), _TRY_AGAIN_S) from exc
        async with self._turn:
            if self._closed:
                raise ModelNotReady(_model_of(key), "its replica is stopping")
            await self._make_room(self._sizes.get(key, 0))
            began = time.monotonic()
            try:
                async with asyncio.timeout(resident.load_timeout_s):
                    one = await self._bring(resident)
                await self._keep(one)
            except Overloaded:
                raise
            except TimeoutError as exc:
                raise self._fail(resident, _too_slow(resident), _HUNG_S) from exc
            except Exception as exc:
                # Whatever a library raises while it loads is the reason that ``status`` shows.
                raise self._fail(resident, to_reason(exc), _TRY_AGAIN_S) from exc
            del copy  # the model has its own hold
            took_s = time.monotonic() - began
            self.counts.loads += 1
            self.counts.load_s.append(took_s)
            self.counts.last_load_s.append(took_s)

    async def _ask_controller(self, key: str) -> Resident:
        try:
            async with asyncio.timeout(_FIND_S):
                resident = await self._find(key)
        except Exception as exc:
            # Serve's many ways to say that the controller is away.
            raise ModelNotReady(_model_of(key), "the platform's controller does not say where it is") from exc
        if resident is None:
            raise ModelNotReady(_model_of(key), "its pool does not know it")
        return resident

    def _fail(self, resident: Resident, reason: str, again_s: float) -> ModelNotReady:
        self._failed[resident.key] = (time.monotonic() + again_s, reason)
        return ModelNotReady(resident.spec.model, reason)

    async def _bring(self, resident: Resident) -> _Loaded:
        """Loads a model, and has it answer its warm-up requests."""
        spec = resident.spec
        before = self._memory()
        model = await self._in_thread(resident.key, spec)
        runners: Runners | None = None
        try:
            _check_kind(model)
            await model.start()
            runners = Runners(spec.model, model)
            runners.start()
            if spec.warmup:
                await warm_up(runners, model.signature, spec.warmup)
        except BaseException:
            await (asyncio.to_thread(model.close) if runners is None else runners.drain())
            raise
        # The first one brings its library with it, which stays.
        size = max(0, self._memory() - before) if self._has_library else 0
        self._has_library = True
        return _Loaded(resident, model, runners, size)

    async def _in_thread(self, key: str, spec: RevisionSpec) -> Model:
        """Loads in a thread of its own: one that hangs takes nobody else's place. A model that comes late is closed."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Model] = loop.create_future()

        def settle(model: Model | None, error: BaseException | None) -> None:
            self._threads.discard(key)
            if not loaded.done():
                if model is None:
                    loaded.set_exception(error if isinstance(error, Exception) else ModelLoadError(repr(error)))
                else:
                    loaded.set_result(model)
            elif model is not None:
                threading.Thread(target=model.close, name="close", daemon=True).start()

        def load() -> None:
            model, error = None, None
            try:
                model = self._load_model(spec)
            except BaseException as exc:  # noqa: BLE001  # a library may raise anything, also SystemExit
                error = exc
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, model, error)

        self._threads.add(key)
        threading.Thread(target=load, name="load", daemon=True).start()
        return await loaded

    async def _keep(self, one: _Loaded) -> None:
        """Lets a model that is loaded answer, when it has its room.

        Raises:
            ModelLoadError: There can never be enough.
            Overloaded: There is none now.
        """
        key = one.resident.key
        try:
            if self._least + one.size_bytes > self._budget:
                raise self._too_large()
            await self._make_room(0)
            if not self._loaded and self._memory() > self._budget:
                raise self._too_large()
        except BaseException:
            await one.runners.drain()
            raise
        known = self._known.get(key)
        if known is None:  # forgotten meanwhile
            await one.runners.drain()
            return
        _configure(one.runners, known.batching)
        self._statistics[key] = one.runners.adopt(self._statistics.get(key, {}))
        self._sizes[key] = one.size_bytes
        self._loaded[key] = one
        self._failed.pop(key, None)

    def _too_large(self) -> ModelLoadError:
        return ModelLoadError(
            f"with it its pool's process takes {self._memory() // _MIB} MiB, expected at most "
            f"{self._budget // _MIB} (pools.memory_mb)"
        )

    async def _make_room(self, need: int) -> None:
        """Evicts what is least recently used, and idle, until so much more fits.

        Raises:
            Overloaded: All that is loaded has been busy for too long.
        """
        until = time.monotonic() + _ROOM_TIMEOUT_S
        is_first = True
        while self._loaded and (too_much := self._memory() + need - self._budget) > 0:
            too_much += int(self._budget * _SLACK)
            evicted = False
            while too_much > 0 and (key := self._find_idle()) is not None:
                too_much -= max(1, self._loaded[key].size_bytes)
                await self.evict(key)
                self.counts.evictions += 1
                evicted = True
            if evicted:
                await asyncio.to_thread(_give_back_memory, thorough=not is_first)
                is_first = False
            elif time.monotonic() < until:
                await asyncio.sleep(_LOOK_AGAIN_S)
            else:
                raise Overloaded("every model in its pool is busy, and none can make room: try again")

    def _find_idle(self) -> str | None:
        idle = (key for key, one in self._loaded.items() if not one.runners.ongoing and not self._awaited[key])
        return next(idle, None)


def _configure(runners: Runners, batching: Batching) -> None:
    runners.configure(batching.max_batch_size, batching.batch_wait_timeout_s, batching.max_queued_requests)


def _check_kind(model: Model) -> None:
    if model.signature.decoupled or model.publishes_members:
        what = "streams" if model.signature.decoupled else "is a whole repository"
        raise ModelLoadError(f"it {what}, which models in a pool cannot: leave out `shared`")


def _is_healthy(model: Model) -> bool:
    try:
        model.check_health()
    except Exception:
        # Whatever it says: it is loaded anew.
        logger.exception('model "%s" in a pool is not healthy', model.name)
        return False
    return True


def _too_slow(resident: Resident) -> str:
    return f"it did not load within {resident.load_timeout_s:g} s (limits.load_timeout_s)"


def _model_of(key: str) -> str:
    return key.rpartition("@")[0]


def _give_back_memory(*, thorough: bool) -> None:
    """What was freed goes back to the system, which glibc does not see to by itself.

    Args:
        thorough: Look for what is held by nothing but itself, too; that stops the process for a while.
    """
    if thorough:
        gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another libc gives back what it likes
        return
