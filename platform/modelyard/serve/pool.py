# SPDX-License-Identifier: Apache-2.0
"""The Serve deployment class of a pool: many models in one process, each loaded when it is asked for.

"One request": the models' process.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from typing import Any, Final

from modelyard.admin import PoolProcess
from modelyard.environments.start import check_started
from modelyard.errors import ModelyardError
from modelyard.serve.counts import keep_counts
from modelyard.serve.failures import clear_report, report_failure
from modelyard.serve.handle import announce
from modelyard.serve.peers import ControllerLink
from modelyard.serve.poolmeter import PoolMeter
from modelyard.serve.process import Replica
from modelyard.serve.residents import Resident, Residents
from modelyard.serve.revision import load_revision
from modelyard.signature import Description
from modelyard.statistics import Statistics

logger = logging.getLogger(__name__)

_REFRESH_S: Final = 5.0
_MIB: Final = 1024 * 1024


class PoolReplica(Replica):
    """Serves the models of one pool.

    Args:
        application: The pool's Serve application.
        platform: The platform's application, whose controller knows the models.
        attempt: Under which it reports why it cannot start.
    """

    def __init__(self, application: str, platform: str, attempt: str) -> None:
        super().__init__(application)
        try:
            check_started()
        except ModelyardError as exc:
            report_failure(application, attempt, str(exc))
            raise
        clear_report(application, attempt)
        self._link = ControllerLink(platform)
        self._residents = Residents(self._find, load_revision, budget_bytes=0)
        self._answering = self._residents
        self._meter = PoolMeter(application)
        self._told: tuple[str, ...] = ()
        self._leaving: set[asyncio.Task[None]] = set()
        self._refreshing = asyncio.run_coroutine_threadsafe(self._refresh_forever(), self._loop)

    async def _find(self, key: str) -> Resident | None:
        return (await self._link.residents({key: ""})).get(key)

    def reconfigure(self, settings: dict[str, Any]) -> None:
        """Takes its budget, or another one without a restart; Serve calls it with ``user_config``."""
        self._residents.budget_bytes = settings["memory_mb"] * _MIB
        if self._server is None:
            self._run(self._open_lane())

    async def describe(self, resident: Resident) -> Description | ModelyardError:
        """What one model takes and gives; loads it. Errors are returned, for Serve would wrap what is raised."""
        try:
            return await self._here(self._residents.describe(resident))
        except ModelyardError as error:
            return error

    async def report(self) -> PoolProcess:
        """What it holds and has done."""

        async def report_now() -> PoolProcess:
            return self._residents.report(self._replica)

        return await self._here(report_now())

    async def statistics(self, key: str) -> tuple[str, Statistics]:
        """This replica's name, and what it has counted of one model since it started."""

        async def copy_now() -> Statistics:
            return copy.deepcopy(self._residents.statistics(key))

        return self._replica, await self._here(copy_now())

    def record_autoscaling_stats(self) -> dict[str, float]:
        """See :class:`Replica`."""
        self._meter.record(self._residents)
        return super().record_autoscaling_stats()

    def check_health(self) -> None:
        """Healthy while the loop that answers is alive; a model that is not is loaded anew.

        Raises:
            RuntimeError: It is not.
        """
        if not self._thread.is_alive() or not self._residents.is_alive:
            raise RuntimeError("what answers calls has ended")
        for key in self._residents.find_unhealthy():
            asyncio.run_coroutine_threadsafe(self._residents.evict(key), self._loop)

    async def _refresh_forever(self) -> None:
        """Follows the controller: new limits, and models that are no more. Tells it which ones cannot be loaded."""
        while True:
            await asyncio.sleep(_REFRESH_S)
            try:
                await self._refresh()
            except Exception as exc:  # noqa: BLE001  # Serve's many ways to say that the controller is away
                logger.info("no news from the controller: %s", type(exc).__name__)

    async def _refresh(self) -> None:
        known = {key: resident.fingerprint for key, resident in self._residents.known.items()}
        for key, resident in (await self._link.residents(known, self._residents.failed)).items():
            if resident is None:
                task = asyncio.create_task(self._residents.forget(key))  # it may have much to answer before
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
            else:
                self._residents.replace(resident)
        if (loaded := tuple(sorted(self._residents.loaded))) != self._told:
            await asyncio.to_thread(announce, loaded)  # where Serve's own way is taken, it leads here
            self._told = loaded

    async def _close(self) -> None:
        self._refreshing.cancel()

    def _keep_counts(self) -> None:
        for application, counts in self._residents.all_statistics().items():
            keep_counts(application, "", self._replica, counts)
