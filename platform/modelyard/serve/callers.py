# SPDX-License-Identifier: Apache-2.0
"""Whoever sends requests to models follows the controller: its route tables, and the lanes that open and close.

"One request": an ingress replica does so for its clients, a model's replica for the models that it calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Final, TypeAlias

from modelyard.admin import ModelState
from modelyard.batching import Call
from modelyard.dataplane import DataPlane
from modelyard.errors import ModelFailed, ModelNotReady, Overloaded
from modelyard.outcomes import Outcomes
from modelyard.routing import RevisionRoute, RouteTable
from modelyard.serve.caller import RevisionCaller
from modelyard.serve.connections import SharedConnections
from modelyard.serve.handle import RevisionHandle, count, session_id
from modelyard.serve.lane import lane_folder, socket_prefix
from modelyard.statistics import Statistics
from modelyard.tensor import Tensors

logger = logging.getLogger(__name__)

_LANE_SCAN_S: Final = 0.25
_RETRY_S: Final = 0.5
_REPORT_S: Final = 0.5
_STATISTICS_TIMEOUT_S: Final = 10.0
_LEAVING: Final = (ModelState.UNLOADING, ModelState.UNLOADED, ModelState.REMOVING)

Watch: TypeAlias = Callable[[str, int], Awaitable[tuple[RouteTable, bool]]]
"""Asks the controller; see ``Controller.watch``."""

Report: TypeAlias = Callable[[Mapping[str, Outcomes]], Awaitable[object]]
"""Tells the controller; see ``Controller.report``."""


class Callers:
    """The callers of all revisions in the route table, and the lanes they use."""

    def __init__(self) -> None:
        self._callers: dict[str, RevisionCaller] = {}
        self._waking: dict[str, asyncio.Task[bool]] = {}
        self._shared = SharedConnections()
        self._folder = lane_folder(session_id())

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        """See ``dataplane.Transport``."""
        caller = self._callers.get(revision.caller) or self._add(revision)
        if revision.standby is not None and not caller.has_replica:
            began = monotonic()
            outputs = await self._call_standby(revision, revision.standby, call, timeout_s)
            if outputs is not None:
                return outputs
            timeout_s = max(0.0, timeout_s - (monotonic() - began))
        return await caller.call(replace(call, resident=revision.resident) if revision.pool else call, timeout_s)

    async def _call_standby(
        self, revision: RevisionRoute, standby: RevisionRoute, call: Call, timeout_s: float
    ) -> Tensors | None:
        """What the pool answers for a revision that sleeps; None where its own replica is there first, or has to be."""
        waking = self._wake(revision)
        caller = self._callers.get(standby.caller) or self._add(standby, ModelNotReady)
        asked = asyncio.ensure_future(caller.call(replace(call, resident=standby.resident), timeout_s))
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to hear it
        try:
            await asyncio.wait({asked, waking}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done() and not waking.result():
                await asyncio.wait({asked})
            if not asked.done():
                return None
            return asked.result()
        except (ModelNotReady, Overloaded) as exc:  # the pool cannot, or not now
            logger.info('model "%s": its standby does not answer: %s', revision.model, exc)
            return None
        finally:
            asked.cancel()

    def _wake(self, revision: RevisionRoute) -> asyncio.Task[bool]:
        """Has Serve start a replica, once however many requests come meanwhile; whether one runs then."""
        task = self._waking.get(revision.application)
        if task is None:
            task = self._waking[revision.application] = asyncio.create_task(_until_awake(revision))
            task.add_done_callback(lambda _: self._waking.pop(revision.application, None))
        return task

    def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        """See ``dataplane.Transport``."""
        caller = self._callers.get(revision.caller) or self._add(revision)
        return caller.stream(call, timeout_s)

    async def statistics(self, revision: RevisionRoute) -> Statistics:
        """See ``dataplane.Transport``."""
        try:
            return await count(revision, _STATISTICS_TIMEOUT_S)
        except Exception as exc:
            # Serve's many ways to say that a replica is gone or busy.
            raise ModelNotReady(revision.model, "its replicas do not say what they have counted") from exc

    def _add(self, route: RevisionRoute, died: type[ModelFailed | ModelNotReady] = ModelFailed) -> RevisionCaller:
        handle = RevisionHandle(route)
        connections = self._shared if route.pool else None
        caller = self._callers[route.caller] = RevisionCaller(route, handle.call, handle.stream, connections, died)
        return caller

    async def update(self, table: RouteTable) -> None:
        """Follows a new table: callers for what is new, and what is gone sends what it holds and ends."""
        revisions = [
            revision
            for model in table.models.values()
            for revision in model.revisions.values()
            if revision.state not in _LEAVING and not revision.member  # members share their model's
        ]
        standbys = {one.standby.caller: one.standby for one in revisions if one.standby is not None}
        routes = {revision.caller: revision for revision in revisions} | standbys
        for name, route in routes.items():
            caller = self._callers.get(name)
            if caller is not None:
                caller.update(route)
            elif route.is_ready:
                self._add(route, ModelNotReady if name in standbys else ModelFailed)
        for name in self._callers.keys() - routes.keys():
            self._callers.pop(name).retire()
        await self.scan()

    def leave(self) -> None:
        """Removes the folder of lanes where this was the last process that used it."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    async def scan(self) -> None:
        """Opens lanes to the replicas whose sockets have appeared."""
        found: dict[str, list[Path]] = defaultdict(list)
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:  # another ingress replica left an empty folder, and no replica has needed it since
            return
        for entry in entries:
            if entry.name.endswith(".sock"):
                found[entry.name.partition(".")[0] + "."].append(Path(entry.path))
        for caller in list(self._callers.values()):
            paths = found.get(socket_prefix(caller.replicas_of))
            if paths:
                await caller.connect(paths)


async def _until_awake(revision: RevisionRoute) -> bool:
    try:
        await RevisionHandle(revision).wake()
    except Exception as exc:  # noqa: BLE001  # Serve's many errors (replica died, application deleted, …)
        logger.info('model "%s" does not wake: %s: %s', revision.model, type(exc).__name__, exc)
        return False
    return True


class Following:
    """Keeps a data plane and its callers up to date.

    Args:
        plane: Gets the route tables.
        callers: The plane's transport.
        watch: The way to the controller.
        report: The same for what it is told; None tells it nothing.
    """

    def __init__(self, plane: DataPlane, callers: Callers, watch: Watch, report: Report | None = None) -> None:
        self._plane = plane
        self._callers = callers
        self._watch = watch
        self._report = report
        self._settled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_settled(self) -> bool:
        """Every declared model is ready or has definitely failed, or was so once."""
        return self._settled.is_set()

    async def until_settled(self) -> None:
        """Waits for :attr:`is_settled`."""
        await self._settled.wait()

    def start(self) -> None:
        """Begins to follow, in the event loop of the callers."""
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._scan())]
        if self._report is not None:
            self._tasks.append(asyncio.create_task(self._tell(self._report)))

    async def stop(self) -> None:
        """Follows no longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._callers.leave()

    async def _follow(self) -> None:
        """Follows the controller's route tables; without a controller the last one stays."""
        while True:
            table = self._plane.table
            try:
                newest, is_settled = await self._watch(table.epoch, table.version)
                if newest.version and (newest.epoch, newest.version) != (table.epoch, table.version):
                    self._plane.follow(newest)
                    await self._callers.update(newest)
                if is_settled:
                    self._settled.set()
            except Exception as exc:  # noqa: BLE001  # Serve's many ways to say that the controller is away
                logger.info("no news from the controller: %s", type(exc).__name__)
                await asyncio.sleep(_RETRY_S)

    async def _tell(self, report: Report) -> None:
        """Reports what became of requests to revisions on trial; what could not be told is told the next time."""
        while True:
            await asyncio.sleep(_REPORT_S)
            counts = self._plane.trial.take()
            if not counts:
                continue
            try:
                await report(counts)
            except Exception as exc:  # noqa: BLE001  # Serve's many ways to say that the controller is away
                logger.info("the controller cannot be told: %s", type(exc).__name__)
                self._plane.trial.put_back(counts)

    async def _scan(self) -> None:
        while True:
            await asyncio.sleep(_LANE_SCAN_S)
            try:
                await self._callers.scan()
            except OSError:
                logger.exception("the folder of lanes cannot be read")
