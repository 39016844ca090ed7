# SPDX-License-Identifier: Apache-2.0
"""How a revision's caller is connected to replicas: by a lane of its own, or by a part of one that a pool's share.

"One request": between a revision's caller and the lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from modelyard.serve.lane import Kind, LaneProtocol

_LAST: Final = (Kind.ANSWER, Kind.ERROR, Kind.END)

OnFrame = Callable[[Any, Kind, int, Any], None]
"""Told of a frame, with the connection that it came by."""

OnLost = Callable[[Any], None]
"""Told that a connection is no more."""


class Connection(Protocol):
    """What a caller needs of a lane."""

    @property
    def is_open(self) -> bool:
        """Frames can be sent."""

    def send(self, kind: Kind, ident: int, payload: object) -> None:
        """Sends a frame, where it is open."""

    def close(self) -> None:
        """Sends what is queued, then closes."""


class Connections(Protocol):
    """Makes connections. Each is known before it is open: it may say something, or be lost, in the same moment."""

    def make(self, on_frame: OnFrame, on_lost: OnLost) -> Any:
        """A :class:`Connection` that is not open yet."""

    async def open(self, connection: Any, path: Path) -> None:
        """Opens it.

        Raises:
            OSError: The socket cannot be connected to.
        """


class OwnConnections:
    """A lane for each."""

    def make(self, on_frame: OnFrame, on_lost: OnLost) -> LaneProtocol:
        """See :class:`Connections`."""
        return LaneProtocol(on_frame, on_lost)

    async def open(self, connection: LaneProtocol, path: Path) -> None:
        """See :class:`Connections`."""
        await asyncio.get_running_loop().create_unix_connection(lambda: connection, str(path))


class Branch:
    """One caller's part of a lane that many share."""

    def __init__(self, on_frame: OnFrame, on_lost: OnLost) -> None:
        self.on_frame = on_frame
        self.on_lost = on_lost
        self.trunk: Trunk | None = None
        self.idents: dict[int, int] = {}
        self.backlog = 0

    @property
    def is_open(self) -> bool:
        """See :class:`Connection`."""
        return self.trunk is not None and self.trunk.protocol.is_open

    def send(self, kind: Kind, ident: int, payload: object) -> None:
        """See :class:`Connection`."""
        if self.trunk is not None:
            self.trunk.send(self, kind, ident, payload)

    def close(self) -> None:
        """See :class:`Connection`; the lane itself closes with its last branch."""
        if self.trunk is not None:
            self.trunk.leave(self)


@dataclass(frozen=True, slots=True)
class _Sent:
    """Whose call has a number."""

    branch: Branch
    ident: int
    is_stream: bool


class Trunk:
    """A lane that many share.

    Args:
        on_end: Told when it carries nothing any more.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.protocol = LaneProtocol(self._on_frame, self._on_lost)
        self._on_end = on_end
        self._branches: set[Branch] = set()
        self._sent: dict[int, _Sent] = {}
        self._next_ident = 0
        self._backlog = 0
        self._is_leaving = False

    def add(self, branch: Branch) -> None:
        """One more that shares it."""
        branch.trunk = self
        self._branches.add(branch)
        if self._is_leaving:
            branch.on_frame(branch, Kind.GOODBYE, 0, None)

    def send(self, branch: Branch, kind: Kind, ident: int, payload: Any) -> None:
        """Sends a frame of a branch under a number that no other branch uses."""
        if kind in (Kind.CALL, Kind.STREAM):
            self._next_ident += 1
            branch.idents[ident] = number = self._next_ident
            self._sent[number] = _Sent(branch, ident, kind is Kind.STREAM)
            if kind is Kind.CALL:
                call, backlog = payload
                self._backlog += backlog - branch.backlog
                branch.backlog = backlog
                payload = (call, self._backlog)  # what all of them let wait
        else:
            known = branch.idents.get(ident)
            if known is None:
                return
            number = known
            if kind is Kind.CANCEL and self._sent[number].is_stream:  # nothing is heard of it any more
                self._forget(number)
        self.protocol.send(kind, number, payload)

    def leave(self, branch: Branch) -> None:
        """A branch ends, and so does the lane with the last one."""
        if branch not in self._branches:
            return
        self._branches.remove(branch)
        for number in list(branch.idents.values()):
            self._forget(number)
        branch.trunk = None
        asyncio.get_running_loop().call_soon(branch.on_lost, branch)
        if not self._branches:
            self._on_end()
            self.protocol.close()

    def _forget(self, number: int) -> None:
        sent = self._sent.pop(number)
        branch = sent.branch
        branch.idents.pop(sent.ident, None)
        if not branch.idents:  # a caller lets nothing wait while its replica has nothing of it
            self._backlog -= branch.backlog
            branch.backlog = 0

    def _on_frame(self, protocol: LaneProtocol, kind: Kind, number: int, payload: Any) -> None:
        if kind is Kind.GOODBYE:
            self._is_leaving = True
            for branch in list(self._branches):
                branch.on_frame(branch, kind, 0, payload)
            return
        sent = self._sent.get(number)
        if sent is None:
            return
        if kind in _LAST:
            self._forget(number)
        sent.branch.on_frame(sent.branch, kind, sent.ident, payload)

    def _on_lost(self, protocol: LaneProtocol) -> None:
        self._on_end()
        branches, self._branches = self._branches, set()
        self._sent.clear()
        for branch in branches:
            branch.trunk = None
            branch.on_lost(branch)


class SharedConnections:
    """One lane to each replica of the pools, for all the revisions that live there."""

    def __init__(self) -> None:
        self._trunks: dict[Path, asyncio.Task[Trunk]] = {}

    def make(self, on_frame: OnFrame, on_lost: OnLost) -> Branch:
        """See :class:`Connections`."""
        return Branch(on_frame, on_lost)

    async def open(self, connection: Branch, path: Path) -> None:
        """See :class:`Connections`."""
        task = self._trunks.get(path)
        if task is None:
            task = self._trunks[path] = asyncio.ensure_future(self._open(path))
        trunk = await asyncio.shield(task)
        if not trunk.protocol.is_open:  # lost since
            if self._trunks.get(path) is task:
                del self._trunks[path]
            raise ConnectionResetError(f"{path.name} was closed")
        trunk.add(connection)

    async def _open(self, path: Path) -> Trunk:
        trunk = Trunk(lambda: self._end(path, trunk))
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: trunk.protocol, str(path))
        except OSError:
            self._trunks.pop(path, None)
            raise
        return trunk

    def _end(self, path: Path, trunk: Trunk) -> None:
        task = self._trunks.get(path)
        if task is not None and task.done() and task.exception() is None and task.result() is trunk:
            del self._trunks[path]
