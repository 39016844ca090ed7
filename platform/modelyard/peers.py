# SPDX-License-Identifier: Apache-2.0
"""How a model calls other models of the platform: by name, without going through HTTP.

"One request": beside the model. What a call means is said here; :mod:`modelyard.serve.peers` makes it happen in a
replica, :class:`modelyard.testing.FakePeers` in a test.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from modelyard.signature import Signature
from modelyard.tensor import Array, Parameters, Tensors, to_protocol_array

_T = TypeVar("_T")

NEVER_NS: Final = 2**63 - 1
"""The deadline of what has none."""


class Origin(Protocol):
    """The requests on whose behalf a model runs."""

    @property
    def deadline_ns(self) -> int:
        """When nobody waits for any of them any more, on ``time.monotonic_ns``."""

    @property
    def via(self) -> tuple[str, ...]:
        """The applications whose models have called one another to get here, outermost first."""

    @property
    def priority(self) -> int:
        """1 goes before 2 and so on, and all of them before 0, which is none; as in ``batching.Call``."""

    @property
    def rows(self) -> tuple[int, ...]:
        """How many rows each of the requests has that run together; ``(0,)`` for a model without rows."""


@dataclass(frozen=True, slots=True)
class Nobody:
    """The origin of what no request has asked for: loading, tests."""

    deadline_ns: int = NEVER_NS
    via: tuple[str, ...] = ()
    rows: tuple[int, ...] = (0,)
    priority: int = 0


_NOBODY: Final = Nobody()
_origin: ContextVar[Origin] = ContextVar("modelyard_origin", default=_NOBODY)  # it is frozen
set_origin: Final = _origin.set
"""Says on whose behalf what follows runs, in this thread or task."""
get_origin: Final = _origin.get
"""On whose behalf this thread or task runs."""


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """One call of another model.

    Attributes:
        model: Its name.
        inputs: Arrays by name; bound to its signature where it is sent.
        outputs: Names to compute; empty for its default outputs.
        parameters: What it gets as the request's parameters; ``priority`` among them counts before the origin's.
        version: A revision's number or a label; empty for the one that answers now.
        timeout_s: How long it may take at most, in seconds; its own limit and the origin's deadline count as well.
        origin: On whose behalf.
        is_openai: It is a call of the OpenAI protocol, as ``modelyard.openai.request_to_tensors`` packs it.
    """

    model: str
    inputs: Tensors
    outputs: tuple[str, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    version: str = ""
    timeout_s: float | None = None
    origin: Origin = _NOBODY
    is_openai: bool = False


class Peers(ABC):
    """The other models."""

    @abstractmethod
    async def call(self, request: PeerRequest) -> Tensors:
        """The answer of one model.

        Raises:
            ModelNotReady: There is no such model or version, or it cannot answer now.
            ValueError: The inputs or outputs are not what its signature says.
            DeadlineExceeded: It has not answered in time.
            ModelFailed: The call would come back to a model that waits for it.
            ModelyardError: What the model answered.
        """

    @abstractmethod
    def stream(self, request: PeerRequest) -> AsyncGenerator[Tensors]:
        """The answers of a decoupled model as they come; the one answer of another.

        Raises:
            ModelyardError: As for :meth:`call`, also after some answers.
        """

    @abstractmethod
    def find_signature(self, model: str, version: str = "") -> Signature | None:
        """What a model that can answer now takes and gives; from any thread."""

    @abstractmethod
    async def until_ready(self, model: str, version: str, timeout_s: float) -> Signature:
        """Waits until a model can answer; not for one that has failed, and not long for one that nobody knows.

        Raises:
            ModelNotReady: It cannot within that time; with the reason.
        """

    @abstractmethod
    async def until_gone(self, model: str) -> None:
        """Waits until a model cannot answer: for whoever can do without it, where calls would wait for its return."""

    @abstractmethod
    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """What one of the coroutines of this class returns, from a thread that may wait for it."""

    @property
    def is_used(self) -> bool:
        """This process has asked another model, or may have."""
        return True

    def may_wait(self) -> bool:
        """Whether this thread may; not where it runs an event loop, which would stand still."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return True
        return False


class _NoPeers(Peers):
    """Outside of a platform there are none."""

    is_used = False

    @staticmethod
    def _refuse(model: str) -> RuntimeError:
        return RuntimeError(
            f'there is no platform here to call the model "{model}" on; a test says which models there are: '
            "with modelyard.testing.FakePeers({...}):"
        )

    async def call(self, request: PeerRequest) -> Tensors:
        raise self._refuse(request.model)

    async def stream(self, request: PeerRequest) -> AsyncGenerator[Tensors]:
        raise self._refuse(request.model)
        yield {}

    def find_signature(self, model: str, version: str = "") -> Signature | None:
        return None

    async def until_ready(self, model: str, version: str, timeout_s: float) -> Signature:
        raise self._refuse(model)

    async def until_gone(self, model: str) -> None:
        raise self._refuse(model)

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run(coroutine)


_peers: Peers = _NoPeers()


def get_peers() -> Peers:
    """The other models, as this process reaches them."""
    return _peers


def set_peers(peers: Peers | None) -> None:
    """Says how this process reaches other models; None takes it back. A replica has one model, so one way."""
    global _peers
    _peers = peers or _NoPeers()


class PeerCalls:
    """What every model inherits: calls of other models by name."""

    def call(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] = (),
        *,
        parameters: Parameters | None = None,
        version: str = "",
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """Asks another model and waits for its answer; in an ``async def``, use :meth:`call_async`.

        Args:
            model: Its name on the platform.
            inputs: Arrays, or what ``numpy.asarray`` takes, by name.
            outputs: Names of the outputs to compute; empty for its default ones.
            parameters: What it gets as the request's parameters.
            version: A version's number or a label; empty for the one that answers now.
            timeout_s: How long it may take, in seconds. The request that this model runs for ends it as well.

        Returns:
            Its outputs by name, read-only; BYTES are object arrays of ``bytes``.

        While a model is loaded, and no request is there to be tried again, it waits for the other to be ready: two
        minutes, or ``timeout_s``.

        Raises:
            ModelyardError: As :meth:`Peers.call` says.
            ValueError: The inputs or outputs are not what its signature says.
        """
        peers = _get_peers_to_wait_for("call", "await self.call_async(…)")
        request = _to_request(model, inputs, outputs, parameters, version, timeout_s)
        return dict(peers.run(peers.call(request)))

    async def call_async(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] = (),
        *,
        parameters: Parameters | None = None,
        version: str = "",
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """As :meth:`call`, without blocking the event loop: several may be awaited at once."""
        return dict(await get_peers().call(_to_request(model, inputs, outputs, parameters, version, timeout_s)))

    def call_stream(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] = (),
        *,
        parameters: Parameters | None = None,
        version: str = "",
        timeout_s: float | None = None,
    ) -> Iterator[dict[str, Array]]:
        """As :meth:`call`, of a model that answers with a stream: each answer as it comes."""
        peers = _get_peers_to_wait_for("call_stream", "async for … in self.call_stream_async(…)")
        answers = peers.stream(_to_request(model, inputs, outputs, parameters, version, timeout_s))
        try:
            while (answer := peers.run(_next(answers))) is not None:
                yield dict(answer)
        finally:
            peers.run(_close(answers))

    async def call_stream_async(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] = (),
        *,
        parameters: Parameters | None = None,
        version: str = "",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[dict[str, Array]]:
        """As :meth:`call_stream`, without blocking the event loop."""
        answers = get_peers().stream(_to_request(model, inputs, outputs, parameters, version, timeout_s))
        try:
            async for answer in answers:
                yield dict(answer)
        finally:
            await answers.aclose()


def _to_request(
    model: str,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    parameters: Parameters | None,
    version: str,
    timeout_s: float | None,
) -> PeerRequest:
    arrays = {name: _to_array(value) for name, value in inputs.items()}
    return PeerRequest(model, arrays, tuple(outputs), parameters or {}, version, timeout_s, get_origin())


def _to_array(value: Any) -> Array:
    array: Array = np.asarray(value)
    if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
        array = np.asarray(value, dtype=object)  # numpy's own texts lose zeros at their end
    return to_protocol_array(array)


def _get_peers_to_wait_for(name: str, instead: str) -> Peers:
    """The other models, where this thread may wait for their answers.

    Raises:
        RuntimeError: It may not.
    """
    peers = get_peers()
    if not peers.may_wait():
        raise RuntimeError(f"self.{name}(…) would block the event loop; in an async def: {instead}")
    return peers


async def _next(answers: AsyncGenerator[Tensors]) -> Tensors | None:
    return await anext(answers, None)


async def _close(answers: AsyncGenerator[Tensors]) -> None:
    await answers.aclose()
