# SPDX-License-Identifier: Apache-2.0
"""The ingress deployment: every protocol on one HTTP and one gRPC port, in front of all models.

Knows no framework. Holds the last route table and, for each revision in it, a caller with its lanes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from modelyard.admin import AdminTransport, ModelState
from modelyard.batching import Call
from modelyard.config import PlatformConfig
from modelyard.dataplane import DataPlane
from modelyard.errors import ModelNotReady
from modelyard.routing import RevisionRoute, RouteTable
from modelyard.serve import edge, services
from modelyard.serve.admin import AdminHandlers, HandleTransport
from modelyard.serve.caller import RevisionCaller
from modelyard.serve.documents import DocumentHandlers
from modelyard.serve.events import CloudEvents
from modelyard.serve.extensions import ExtensionHandlers
from modelyard.serve.http import RouteEntry, make_app
from modelyard.serve.lane import lane_folder, socket_prefix
from modelyard.serve.logs import join_serve_log
from modelyard.serve.mlflow import MLflowHandlers
from modelyard.serve.replica import RevisionHandle, session_id
from modelyard.serve.repository import Repository, RepositoryHandlers
from modelyard.serve.rpc import HealthService, InferenceService
from modelyard.serve.v1 import V1Handlers
from modelyard.serve.v2 import V2Handlers
from modelyard.statistics import Statistics
from modelyard.tensor import Tensors

logger = logging.getLogger(__name__)

INGRESS_NAME: Final = "Ingress"
_LANE_SCAN_S: Final = 0.25
_RETRY_S: Final = 0.5
_STATISTICS_TIMEOUT_S: Final = 10.0
_LEAVING: Final = (ModelState.UNLOADING, ModelState.UNLOADED, ModelState.REMOVING)


class Callers:
    """The callers of all revisions in the route table, and the lanes they use."""

    def __init__(self) -> None:
        self._callers: dict[str, RevisionCaller] = {}
        self._folder = lane_folder(session_id())

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        """See ``dataplane.Transport``."""
        caller = self._callers.get(revision.application) or self._add(revision)
        return await caller.call(call, timeout_s)

    def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        """See ``dataplane.Transport``."""
        caller = self._callers.get(revision.application) or self._add(revision)
        return caller.stream(call, timeout_s)

    async def statistics(self, revision: RevisionRoute) -> Statistics:
        """See ``dataplane.Transport``."""
        try:
            return await RevisionHandle(revision.application).statistics(revision.member, _STATISTICS_TIMEOUT_S)
        except Exception as exc:
            # Serve's many ways to say that a replica is gone or busy.
            raise ModelNotReady(revision.model, "its replicas do not say what they have counted") from exc

    def _add(self, route: RevisionRoute) -> RevisionCaller:
        handle = RevisionHandle(route.application)
        caller = self._callers[route.application] = RevisionCaller(route, handle.call, handle.stream)
        return caller

    async def update(self, table: RouteTable) -> None:
        """Follows a new table: callers for what is new, and what is gone sends what it holds and ends."""
        routes = {
            route.application: route
            for model in table.models.values()
            for route in model.revisions.values()
            if route.state not in _LEAVING and not route.member  # members share the application's caller
        }
        for application, route in routes.items():
            caller = self._callers.get(application)
            if caller is not None:
                caller.update(route)
            elif route.is_ready:
                self._add(route)
        for application in self._callers.keys() - routes.keys():
            self._callers.pop(application).retire()
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
        for application, caller in list(self._callers.items()):
            paths = found.get(socket_prefix(application))
            if paths:
                await caller.connect(paths)


def http_routes(
    plane: DataPlane, is_ready: Callable[[], bool], repository: Repository, admin: AdminTransport
) -> list[RouteEntry]:
    """Every route there is; of two that fit, the earlier wins.

    Args:
        plane: What answers inference.
        is_ready: Whether this ingress replica can answer at all.
        repository: Loads and unloads models.
        admin: The way to the controller.
    """
    handlers = (
        ExtensionHandlers(plane),
        V2Handlers(plane, is_ready),
        V1Handlers(plane),
        MLflowHandlers(plane),
        RepositoryHandlers(repository),
        AdminHandlers(admin),
        DocumentHandlers(plane),
    )
    return [route for group in handlers for route in group.routes()]


class Ingress:
    """The Serve deployment; method names of gRPC services are fixed by their definitions.

    Args:
        controller: The controller's handle.
        args: ``PlatformConfig`` as JSON values.
    """

    def __init__(self, controller: DeploymentHandle[Any], args: Mapping[str, Any]) -> None:
        join_serve_log()
        self._config = PlatformConfig.model_validate(args)
        self._controller = controller
        self._callers = Callers()
        self._plane = DataPlane(self._callers)
        self._admin = HandleTransport(controller)
        self._repository = Repository(self._plane, self._admin, self._config.ingress.load_timeout_s)
        self._inference = InferenceService(
            self._plane, self._repository, self._is_ready, self._config.ingress.max_body_bytes
        )
        self._health = HealthService(self._plane, self._is_ready)
        services.serve_locally(self._inference, self._health)
        self._settled = False
        self._tasks: list[asyncio.Task[None]] = []

    def _is_ready(self) -> bool:
        return self._settled

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The HTTP application; Serve asks for it after the constructor."""
        limits, own = self._config.ingress, self._config.ingress.cloudevents
        events = CloudEvents(own.response_type, own.response_source, own.merge_attributes)
        routes = events.wrap(http_routes(self._plane, self._is_ready, self._repository, self._admin))
        app = make_app(routes, limits.max_body_bytes, self._lifespan, limits.compression_min_bytes)
        edge.serve_locally(app)
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: object) -> AsyncIterator[None]:
        """Starts only when every declared model is ready or has definitely failed: then Serve calls us ready."""
        first = asyncio.Event()
        self._tasks = [asyncio.create_task(self._watch(first)), asyncio.create_task(self._scan())]
        await first.wait()
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._callers.leave()

    async def _watch(self, settled: asyncio.Event) -> None:
        """Follows the controller's route tables; without a controller the last one stays."""
        while True:
            table = self._plane.table
            try:
                newest, is_settled = await self._controller.watch.remote(table.epoch, table.version)
                if newest.version and (newest.epoch, newest.version) != (table.epoch, table.version):
                    self._plane.follow(newest)
                    await self._callers.update(newest)
                if is_settled:
                    self._settled = True
                    settled.set()
            except Exception as exc:  # noqa: BLE001  # Serve's many ways to say that the controller is away
                logger.info("no news from the controller: %s", type(exc).__name__)
                await asyncio.sleep(_RETRY_S)

    async def _scan(self) -> None:
        while True:
            await asyncio.sleep(_LANE_SCAN_S)
            try:
                await self._callers.scan()
            except OSError:
                logger.exception("the folder of lanes cannot be read")


# For Serve's Python proxy; behind HAProxy the services are on the port themselves.
services.route_through(Ingress, "_inference", InferenceService)
services.route_through(Ingress, "_health", HealthService)
