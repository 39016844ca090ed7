# SPDX-License-Identifier: Apache-2.0
"""Reaches a model's replicas through Serve: slower than a lane, and wherever they are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection
from dataclasses import replace
from time import monotonic_ns
from typing import Any, Final

import ray
from ray import serve
from ray.serve._private.common import RequestRoutingInfo
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from modelyard.batching import Answer, Call
from modelyard.errors import ModelyardError
from modelyard.routing import RevisionRoute
from modelyard.serve.counts import get_kept_counts
from modelyard.statistics import Statistics, merge_statistics
from modelyard.tensor import Tensors

logger = logging.getLogger(__name__)

CONTROLLER_NAME: Final = "Controller"
"""The controller's deployment in the platform's application."""

DEPLOYMENT_NAME: Final = "Model"
"""The one deployment of a revision's application."""


def session_id() -> str:
    """Names this Ray cluster's session on this node; equal in all its processes."""
    return str(ray.get_runtime_context().gcs_address)


def announce(names: Collection[str]) -> None:
    """Calls through Serve that ask for one of these names come to this replica, while it takes any.

    For Serve they are models that the replica has loaded, see ``serve.multiplexed``. It may block.

    Raises:
        Exception: Serve's many ways to say that its controller is away.
    """
    client: Any = _get_global_client()
    replica = serve.get_replica_context().replica_id
    client.record_request_routing_info(RequestRoutingInfo(replica, multiplexed_model_ids=list(names)))


class RevisionHandle:
    """Reaches one revision's replicas through Serve, wherever they are; the handle is made when it is first needed.

    Args:
        route: Of the revision.
    """

    def __init__(self, route: RevisionRoute) -> None:
        self._route = route
        self._handle: DeploymentHandle[Any] | None = None

    def _get(self) -> DeploymentHandle[Any]:
        if self._handle is None:
            route = self._route
            handle = serve.get_deployment_handle(DEPLOYMENT_NAME, app_name=route.pool or route.application)
            self._handle = handle.options(multiplexed_model_id=route.resident) if route.pool else handle
        return self._handle

    def _address(self, call: Call) -> Call:
        return replace(call, resident=self._route.resident) if self._route.pool and not call.resident else call

    async def call(self, call: Call) -> Answer:
        """See :meth:`ModelReplica.call`."""
        answer: Answer = await self._get().call.remote(self._address(call), monotonic_ns())
        return answer

    async def stream(self, call: Call, replica: str = "") -> AsyncGenerator[Tensors | ModelyardError]:
        """See :meth:`ModelReplica.stream`.

        Args:
            call: What is asked.
            replica: Name of the one that is to answer, where it has announced it and takes calls; empty for any.
        """
        handle = self._get().options(stream=True)
        if replica:
            handle = handle.options(multiplexed_model_id=replica)
        answers: Any = handle.stream.remote(self._address(call), monotonic_ns())
        try:
            async for item in answers:
                yield item
        finally:
            answers.cancel()

    async def wake(self) -> None:
        """Returns when a replica runs; Serve starts one for this where there is none."""
        await self._get().describe.remote()

    async def counts(self, member: str, timeout_s: float) -> dict[str, Statistics]:
        """What each replica, also those that have stopped since, has counted of the model or of a published member.

        Raises:
            TimeoutError: Not all have answered in time.
        """
        asked = self._route.resident if self._route.pool else member
        answers = await self._get().broadcast("statistics", asked).results_async(timeout_s=timeout_s)
        return await self.kept_counts(member) | dict(answers)

    async def kept_counts(self, member: str) -> dict[str, Statistics]:
        """What each replica that has stopped had counted."""
        return dict(await asyncio.to_thread(get_kept_counts, self._route.application, member))


async def count(revision: RevisionRoute, timeout_s: float) -> Statistics:
    """What all replicas of a revision have counted, also those that have stopped since and those of its standby.

    Raises:
        Exception: Serve's many ways to say that a replica is gone or busy.
    """
    handle = RevisionHandle(revision)
    if revision.is_ready and not revision.replicas:  # scaled to zero, and not to be woken for this
        counts = await handle.kept_counts(revision.member)
    else:
        counts = await handle.counts(revision.member, timeout_s)
    if revision.standby is not None:
        try:
            counts |= await RevisionHandle(revision.standby).counts(revision.member, timeout_s)
        except Exception as exc:  # noqa: BLE001  # its own counts are there all the same
            logger.info('model "%s": its standby tells no counts: %s', revision.model, type(exc).__name__)
    return merge_statistics(counts.values())
