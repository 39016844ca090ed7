# SPDX-License-Identifier: Apache-2.0
"""The Serve deployment class that serves every framework: loads one revision and answers calls for it.

"One request": the model's process. Loading happens in the constructor, so Serve counts a replica as started only when
it can answer.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import random
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Final

import psutil
import ray

from modelyard.environments.start import check_started
from modelyard.model import GPU_SHARE, describe
from modelyard.openai import OpenAIModel
from modelyard.peers import set_peers
from modelyard.serve.autoscaling import OWN, Work
from modelyard.serve.counts import keep_counts
from modelyard.serve.failures import clear_report, report_failure
from modelyard.serve.handle import announce
from modelyard.serve.meter import RayMeter
from modelyard.serve.peers import ControllerLink, ReplicaPeers
from modelyard.serve.process import DRAIN_TIMEOUT_S, Replica
from modelyard.serve.revision import Batching, RevisionSpec, load_revision, to_reason
from modelyard.serve.runners import Runners
from modelyard.serve.warmup import warm_up
from modelyard.signature import Description
from modelyard.statistics import Statistics

logger = logging.getLogger(__name__)

_ANNOUNCE_S: Final = 300.0


def _tell_gpu_share() -> None:
    """To the framework, which keeps to it where its library can."""
    gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]
    if 0 < gpus < 1:
        os.environ[GPU_SHARE] = f"{gpus:g}"


class ModelReplica(Replica):
    """Serves one revision.

    Args:
        application: The Serve application it belongs to.
        spec: What to load.
        attempt: Under which it reports why it cannot.

    Raises:
        ModelLoadError: The model cannot be loaded; why is kept for the controller.
    """

    def __init__(self, application: str, spec: RevisionSpec, attempt: str) -> None:
        began_s = time.time()
        super().__init__(application)
        self._spec = spec
        self._is_mute = False
        self._announcing: Future[None] | None = None
        link = ControllerLink(spec.platform)
        self._peers = ReplicaPeers(application, link.watch, self._loop, report=link.report)
        set_peers(self._peers)
        try:
            check_started()
            _tell_gpu_share()
            self._model = load_revision(spec)
            self._meter: RayMeter | None = None
            if isinstance(self._model, OpenAIModel):
                self._model.meter = self._meter = RayMeter(application)
            self._run(self._model.start())
            loaded_s = time.time()
            self._answering = self._runners = Runners(spec.model, self._model)
            self._run(self._begin())
        except Exception as exc:
            # Whatever a library raises while it loads is the reason that ``status`` shows.
            report_failure(application, attempt, to_reason(exc))
            raise
        clear_report(application, attempt)  # of a replica before this one
        self._run(self._open_lane())
        if self._model.openai_routes:
            self._announce()  # prompts that begin alike go to one replica, by its name where no lane leads to it
            self._announcing = asyncio.run_coroutine_threadsafe(self._announce_forever(), self._loop)
        process_s = began_s - psutil.Process().create_time()
        logger.info(
            "ready after %.2f s: process %.2f s, load %.2f s, warm-up %.2f s",
            process_s + time.time() - began_s,
            process_s,
            loaded_s - began_s,
            time.time() - loaded_s,
        )

    async def _announce_forever(self) -> None:
        """Again and again: a Serve controller that has started anew knows no names. Each makes it tell all handles."""
        while True:
            await asyncio.sleep(_ANNOUNCE_S * random.uniform(0.8, 1.2))  # noqa: S311  # not all at once
            await asyncio.to_thread(self._announce)

    def _announce(self) -> None:
        try:
            announce((self._replica,))
        except Exception as exc:  # noqa: BLE001  # Serve's many ways to say that its controller is away
            logger.info("this replica's name is not announced: %s", type(exc).__name__)

    async def _begin(self) -> None:
        self._runners.start()
        if self._spec.warmup:
            await warm_up(self._runners, self._model.signature, self._spec.warmup)

    def reconfigure(self, settings: dict[str, Any]) -> None:
        """Takes new batching limits without a restart; Serve calls it with ``user_config``."""
        batching = Batching(**settings)
        self._drain_timeout_s = max(DRAIN_TIMEOUT_S, batching.request_timeout_s)

        async def configure() -> None:
            self._runners.configure(
                batching.max_batch_size, batching.batch_wait_timeout_s, batching.max_queued_requests
            )

        self._run(configure())

    async def describe(self) -> Description:
        """What the loaded model takes and gives."""
        return describe(self._model)

    async def statistics(self, member: str) -> tuple[str, Statistics]:
        """This replica's name, and what it has counted of the model or of a published member since it started."""

        async def copy_now() -> Statistics:
            return copy.deepcopy(self._runners.statistics[member])

        return self._replica, await self._here(copy_now())

    def record_autoscaling_stats(self) -> dict[str, float]:
        """See :class:`Replica`."""
        if self._meter is not None:
            self._meter.refresh()
        return super().record_autoscaling_stats() | self._own_load()

    def _own_load(self) -> dict[str, float]:
        try:
            own = {OWN + name: float(value) for name, value in self._model.report_load().items()}
        except Exception as exc:  # noqa: BLE001  # a user's code: scaling goes on without it
            if not self._is_mute:
                logger.warning('model "%s" cannot report its load: %s: %s', self._spec.model, type(exc).__name__, exc)
            self._is_mute = True
            return {}
        self._is_mute = False
        return own

    def _work(self) -> Work:
        generated = self._meter.generated if self._meter is not None else 0
        return replace(super()._work(), tokens=generated)

    def check_health(self) -> None:
        """Healthy while the loop that answers is alive, and the runner in it, and the model says nothing else.

        Raises:
            RuntimeError: It is not.
            Exception: What the model says.
        """
        if not self._thread.is_alive() or not self._runners.is_alive:
            raise RuntimeError("what answers calls has ended")
        self._model.check_health()

    async def _close(self) -> None:
        if self._announcing is not None:
            self._announcing.cancel()
        await self._peers.close()

    def _keep_counts(self) -> None:
        for member, counts in self._runners.statistics.items():
            keep_counts(self._application, member, self._replica, counts)
