# SPDX-License-Identifier: Apache-2.0
"""The model repository of v2, as both its edges have it: index, load, unload.

The index comes from the route table. Load and unload go to the controller, and are answered when the route table of
this ingress replica has followed: what the client asks next here sees their effect.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Final

from modelyard.admin import AdminTransport, IndexEntry, ModelState, ModelStatus
from modelyard.dataplane import DataPlane
from modelyard.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelLoadError,
    ModelNotFound,
    ModelNotReady,
    Unsupported,
)
from modelyard.protocol import repository as protocol
from modelyard.protocol.http import Encoded
from modelyard.routing import RevisionRoute, RouteTable
from modelyard.serve.changes import actor_of
from modelyard.serve.http import HttpRequest, RouteEntry
from modelyard.tensor import Parameters

_UNAVAILABLE: Final = "UNAVAILABLE"
_STATES: Final = {
    ModelState.PENDING: "LOADING",
    ModelState.LOADING: "LOADING",
    ModelState.UNLOADING: "UNLOADING",
    ModelState.REMOVING: "UNLOADING",
}


class Repository:
    """What a v2 client may ask of all models together, and have done to one.

    Args:
        plane: Whose route table counts.
        transport: The way to the controller.
        timeout_s: How long a load or unload without a deadline of its own may take.
    """

    def __init__(self, plane: DataPlane, transport: AdminTransport, timeout_s: float = 600.0) -> None:
        self._plane = plane
        self._transport = transport
        self._timeout_s = timeout_s

    def index(self, ready_only: bool = False) -> tuple[IndexEntry, ...]:
        """Every version of every model, by name and number.

        Args:
            ready_only: Leave out what cannot answer now.
        """
        return tuple(entry for entry in _entries(self._plane.table) if entry.state == "READY" or not ready_only)

    async def load(
        self, name: str, parameters: Parameters, timeout_s: float | None = None, *, actor: str = "v2"
    ) -> None:
        """Has a model loaded, with its artifact as it now is; returns when it answers requests.

        Args:
            name: The model.
            parameters: Of the request.
            timeout_s: The client's deadline; None for the platform's own.
            actor: Who asks.

        Raises:
            Unsupported: A configuration or files come with the request.
            ModelNotFound: There is none of that name.
            ModelLoadError: It cannot be loaded, and why.
            ModelNotReady: It was unloaded or removed meanwhile.
            DeadlineExceeded: It is not ready in time, and goes on loading.
        """
        _check_load(parameters)
        async with deadline(self._limit_s(timeout_s), "the model goes on loading"):
            status = await self._transport.load(name, actor=actor, message="")
            await self._plane.until(Loading(status).find_end)

    async def unload(
        self, name: str, parameters: Parameters, timeout_s: float | None = None, *, actor: str = "v2"
    ) -> None:
        """Has a model unloaded; returns when no new request goes to it. It answers what it has accepted.

        Args:
            name: The model.
            parameters: Of the request. ``unload_dependents`` is taken, and changes nothing: no model depends on
                another.
            timeout_s: The client's deadline; None for the platform's own.
            actor: Who asks.

        Raises:
            InvalidRequest: A parameter is not the extension's.
            ModelNotFound: There is none of that name.
            DeadlineExceeded: The route table has not followed in time.
        """
        _check_unload(parameters)
        async with deadline(self._limit_s(timeout_s), "the model goes on being unloaded"):
            status = await self._transport.unload(name, actor=actor, message="")
            await self._plane.until(partial(find_followed, status))

    def _limit_s(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s


@contextlib.asynccontextmanager
async def deadline(limit_s: float, meanwhile: str) -> AsyncIterator[None]:
    """Ends what is inside after so long.

    Args:
        limit_s: How long it may take, in seconds.
        meanwhile: What goes on nevertheless.

    Raises:
        DeadlineExceeded: It has taken longer.
    """
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError as exc:
        raise DeadlineExceeded(limit_s, meanwhile) from exc


class Loading:
    """Waits for the end of a load in the route tables that come.

    Args:
        status: What the controller answered.
    """

    def __init__(self, status: ModelStatus) -> None:
        self._status = status
        self._is_known = False

    def find_end(self, table: RouteTable) -> bool | None:
        """True when the model is ready; None while that is open."""
        name = self._status.name
        model = table.find_model(name)
        if model is None:
            if self._is_known:
                raise ModelNotFound(name)
            return None
        self._is_known = True
        if model.generation < self._status.generation:
            return None
        if model.newest.state == ModelState.FAILED:
            raise ModelLoadError(f'model "{name}" cannot be loaded: {model.newest.reason}')
        if model.newest.state in (ModelState.UNLOADING, ModelState.UNLOADED, ModelState.REMOVING):
            raise ModelNotReady(name, model.newest.reason)
        return model.newest.is_ready or None


def find_followed(status: ModelStatus, table: RouteTable) -> bool | None:
    """True when the table has followed the change that ended with this status, or knows no such model."""
    model = table.find_model(status.name)
    return model is None or model.generation >= status.generation or None


def _entries(table: RouteTable) -> Iterator[IndexEntry]:
    for name in sorted(table.models):
        revisions = table.models[name].revisions
        for number in sorted(revisions, key=int):
            yield _entry(revisions[number])


def _entry(revision: RevisionRoute) -> IndexEntry:
    if revision.is_ready:
        return IndexEntry(revision.model, revision.version, "READY")
    state = _STATES.get(ModelState(revision.state), _UNAVAILABLE)
    return IndexEntry(revision.model, revision.version, state, revision.reason)


def _check_load(parameters: Parameters) -> None:
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise Unsupported(
                f'load parameter "{name[:40]}": a model is loaded from where it was registered; to serve another '
                "configuration or other files, register a model (POST /platform/v1/models)"
            )
        raise InvalidRequest(f'load parameter "{name[:40]}": expected none')


def _check_unload(parameters: Parameters) -> None:
    for name, value in parameters.items():
        if name != "unload_dependents":
            raise InvalidRequest(f'unload parameter "{name[:40]}": expected unload_dependents')
        if not isinstance(value, bool):
            raise InvalidRequest(f'unload parameter "unload_dependents": expected true or false, got {value!r:.40}')


class RepositoryHandlers:
    """``/v2/repository…``.

    Args:
        repository: What answers.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        model = "/v2/repository/models/{model}"
        return [
            ("POST", "/v2/repository/index", self.index),
            ("POST", f"{model}/load", self.load),
            ("POST", f"{model}/unload", self.unload),
        ]

    async def index(self, request: HttpRequest) -> Encoded:
        """``POST /v2/repository/index``."""
        return protocol.encode_index(self._repository.index(protocol.decode_index(await request.body())))

    async def load(self, request: HttpRequest) -> Encoded:
        """``POST /v2/repository/models/{model}/load``."""
        parameters = protocol.decode_parameters(await request.body())
        await self._repository.load(request.path("model"), parameters, request.timeout_s(), actor=actor_of(request))
        return protocol.encode_done()

    async def unload(self, request: HttpRequest) -> Encoded:
        """``POST /v2/repository/models/{model}/unload``."""
        parameters = protocol.decode_parameters(await request.body())
        await self._repository.unload(request.path("model"), parameters, request.timeout_s(), actor=actor_of(request))
        return protocol.encode_done()
