# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Serving's configuration at run time: makes the models of a list the served ones of their kind.

They are a kind of their own: a reload changes and takes away what reloads have made, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from modelyard.admin import ModelState, ModelStatus
from modelyard.dataplane import DataPlane
from modelyard.errors import ModelLoadError, ModelyardError
from modelyard.serve.repository import Loading, deadline, find_followed


class ReloadTransport(Protocol):
    """The way to the controller."""

    async def reload(self, specs: Sequence[Mapping[str, Any]], *, actor: str, message: str) -> tuple[ModelStatus, ...]:
        """Makes the models that reloads have made exactly these; returns when the catalog has it.

        Args:
            specs: ``ModelSpec`` as JSON.
            actor: Who asks.
            message: Why, for the history.

        Returns:
            The status of each of them after the change, then of those that are being removed.

        Raises:
            InvalidConfig: One cannot be served, or its name is not a reload's to give; nothing has changed.
            Forbidden: One lies outside the allowed locations; nothing has changed.
        """


class Reloads:
    """Has lists of models served.

    Args:
        plane: Whose route table counts.
        transport: The way to the controller.
        timeout_s: How long a reload without a deadline of its own may take.
    """

    def __init__(self, plane: DataPlane, transport: ReloadTransport, timeout_s: float = 600.0) -> None:
        self._plane = plane
        self._transport = transport
        self._timeout_s = timeout_s

    async def reload(self, specs: Sequence[Mapping[str, Any]], timeout_s: float | None = None, *, actor: str) -> None:
        """Returns when all models of the list answer requests, and none goes to those that have left it.

        Args:
            specs: ``ModelSpec`` as JSON.
            timeout_s: The client's deadline; None for the platform's own.
            actor: Who asks.

        Raises:
            InvalidConfig: As for :meth:`ReloadTransport.reload`.
            Forbidden: As for :meth:`ReloadTransport.reload`.
            ModelLoadError: Some cannot be loaded, and why; the others are served.
            DeadlineExceeded: Some are not ready in time, and go on loading.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        async with deadline(limit_s, "the models go on loading"):
            statuses = await self._transport.reload(specs, actor=actor, message="HandleReloadConfigRequest")
            waiting = [self._plane.until(_until(status)) for status in statuses]
            results = await asyncio.gather(*waiting, return_exceptions=True)
        _check(results)


def _until(status: ModelStatus) -> Any:
    """What is to be found in the route table for a model of this status."""
    return partial(find_followed, status) if status.state is ModelState.REMOVING else Loading(status).find_end


def _check(results: Sequence[object]) -> None:
    """Raises where models could not be loaded, for all of them at once."""
    errors = [result for result in results if isinstance(result, BaseException)]
    strange = [error for error in errors if not isinstance(error, ModelyardError)]
    if strange:
        raise strange[0]
    if errors:
        raise ModelLoadError(f"Some models did not become available: {'; '.join(map(str, errors))}")
