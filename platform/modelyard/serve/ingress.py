# SPDX-License-Identifier: Apache-2.0
"""The ingress deployment: every protocol on one HTTP and one gRPC port, in front of all models.

Knows no framework. Holds the last route table and, for each revision in it, a caller with its lanes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from modelyard.admin import AdminTransport
from modelyard.config import PlatformConfig
from modelyard.dataplane import DataPlane
from modelyard.serve import edge, rpc, services
from modelyard.serve.admin import AdminHandlers, HandleTransport
from modelyard.serve.callers import Callers, Following
from modelyard.serve.documents import DocumentHandlers
from modelyard.serve.events import CloudEvents
from modelyard.serve.examples import ExampleHandlers
from modelyard.serve.extensions import ExtensionHandlers
from modelyard.serve.http import RouteEntry, make_app
from modelyard.serve.logs import join_serve_log
from modelyard.serve.mlflow import MLflowHandlers
from modelyard.serve.models import ModelService
from modelyard.serve.openai import OpenAIHandlers
from modelyard.serve.prediction import PredictionService
from modelyard.serve.reload import Reloads
from modelyard.serve.repository import Repository, RepositoryHandlers
from modelyard.serve.rpc import HealthService, InferenceService
from modelyard.serve.v1 import V1Handlers
from modelyard.serve.v2 import V2Handlers

logger = logging.getLogger(__name__)

INGRESS_NAME: Final = "Ingress"


def http_routes(
    plane: DataPlane,
    is_ready: Callable[[], bool],
    repository: Repository,
    admin: AdminTransport,
    keep_alive_s: float = 15.0,
) -> list[RouteEntry]:
    """Every route there is; of two that fit, the earlier wins.

    Args:
        plane: What answers inference.
        is_ready: Whether this ingress replica can answer at all.
        repository: Loads and unloads models.
        admin: The way to the controller.
        keep_alive_s: How long an open stream may be silent, in seconds.
    """
    handlers = (
        ExtensionHandlers(plane),
        V2Handlers(plane, is_ready),
        V1Handlers(plane),
        MLflowHandlers(plane),
        ExampleHandlers(plane),
        RepositoryHandlers(repository),
        AdminHandlers(admin, keep_alive_s),
        DocumentHandlers(plane),
        OpenAIHandlers(plane, keep_alive_s),
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
        callers = Callers()
        self._plane = DataPlane(callers)
        self._following = Following(self._plane, callers, controller.watch.remote, controller.report.remote)
        self._admin = HandleTransport(controller)
        self._repository = Repository(self._plane, self._admin, self._config.ingress.load_timeout_s)
        self._inference = InferenceService(
            self._plane, self._repository, self._is_ready, self._config.ingress.max_body_bytes
        )
        self._prediction = PredictionService(self._plane, self._config.ingress.max_body_bytes)
        reloads = Reloads(self._plane, self._admin, self._config.ingress.load_timeout_s)
        self._models = ModelService(self._plane, reloads)
        self._health = HealthService(self._plane, self._is_ready)
        services.serve_locally(
            {
                rpc.INFERENCE: self._inference,
                rpc.PREDICTION: self._prediction,
                rpc.MODELS: self._models,
                rpc.HEALTH: self._health,
            }
        )

    def _is_ready(self) -> bool:
        return self._following.is_settled

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The HTTP application; Serve asks for it after the constructor."""
        limits, own = self._config.ingress, self._config.ingress.cloudevents
        events = CloudEvents(own.response_type, own.response_source, own.merge_attributes)
        known = http_routes(self._plane, self._is_ready, self._repository, self._admin, limits.keep_alive_s)
        routes = events.wrap(known)
        app = make_app(routes, limits.max_body_bytes, self._lifespan, limits.compression_min_bytes)
        edge.serve_locally(app)
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: object) -> AsyncIterator[None]:
        """Starts only when every declared model is ready or has definitely failed: then Serve calls us ready."""
        self._following.start()
        await self._following.until_settled()
        try:
            yield
        finally:
            await self._following.stop()


# For Serve's Python proxy; behind HAProxy the services are on the port themselves.
services.route_through(Ingress, "_inference", InferenceService)
services.route_through(Ingress, "_prediction", PredictionService)
services.route_through(Ingress, "_models", ModelService)
services.route_through(Ingress, "_health", HealthService)
