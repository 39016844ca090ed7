# SPDX-License-Identifier: Apache-2.0
"""Calls one revision from the ingress: coalescing, choice of a replica, retry, limits, streams.

"One request": between ``dataplane`` and the replica. Requests that wait for the same revision leave together in one
call; while calls are in flight the next one forms, so nothing is ever delayed to fill a batch.

Calls go over lanes to the replicas of this node and, where there is none or all are busy, through the Serve handle.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final

from modelyard.batching import Answer, Call, GroupKey, enqueue, group_key, merge, split
from modelyard.errors import DeadlineExceeded, InternalError, ModelFailed, ModelNotReady, ModelyardError, Overloaded
from modelyard.routing import RevisionRoute
from modelyard.serve.connections import Connection, Connections, OwnConnections
from modelyard.serve.lane import STREAM_WINDOW, Kind
from modelyard.tensor import Tensors

logger = logging.getLogger(__name__)

_CALLS_BY_HANDLE: Final = 8
_AFFINITY_SLACK: Final = 4
_MAX_ATTEMPTS: Final = 2
_NS: Final = 1_000_000_000

HandleCall = Callable[[Call], Awaitable[Answer]]
"""Calls a revision through its Serve handle."""

HandleStream = Callable[[Call, str], AsyncGenerator[Tensors | ModelyardError]]
"""The same for a stream of answers, from the replica of that name if there is one; an error is its last item."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """One request on its way."""

    call: Call
    future: asyncio.Future[Tensors]
    key: GroupKey
    arrived_ns: int
    deadline_ns: int
    attempts: int = 0


@dataclass(slots=True, eq=False)
class _InFlight:
    """One merged call that a replica has."""

    call: Call
    requests: list[_Waiting]
    ident: int = 0

    @property
    def is_forgotten(self) -> bool:
        """Nobody waits for any of its requests."""
        return all(request.future.done() for request in self.requests)


class _Stream:
    """The answers of one streaming request, on their way from a replica to whoever reads them."""

    def __init__(self, call: Call, timeout_s: float) -> None:
        self.arrived_ns = monotonic_ns()
        self.call = replace(call, deadline_ns=self.arrived_ns + int(timeout_s * _NS))
        self.has_begun = False
        self.attempts = 0
        self.items: asyncio.Queue[Tensors | ModelyardError | None] = asyncio.Queue()
        self.room = asyncio.Semaphore(STREAM_WINDOW)
        self.lane: _Lane | None = None
        self.ident = 0
        self.task: asyncio.Task[None] | None = None
        self._taken = 0

    def put(self, item: Tensors | ModelyardError | None) -> None:
        """One answer, the error that ends the stream, or None at its end."""
        self.has_begun = True
        self.items.put_nowait(item)

    def take(self) -> None:
        """An answer was read, so another may come."""
        if self.lane is None:
            self.room.release()
            return
        self._taken += 1
        if self._taken >= STREAM_WINDOW // 2:
            self.lane.protocol.send(Kind.CREDIT, self.ident, self._taken)
            self._taken = 0


@dataclass(slots=True, eq=False)
class _Lane:
    """A connection to one replica."""

    path: Path
    protocol: Connection
    calls: dict[int, _InFlight] = field(default_factory=dict)
    streams: dict[int, _Stream] = field(default_factory=dict)
    is_leaving: bool = False
    is_exclusive: bool = False
    """What it was sent last is a retry, which shares a replica with no other call: it may have killed the last one."""

    @property
    def replica(self) -> str:
        """Name of the replica."""
        return self.path.stem.rpartition(".")[2]


class RevisionCaller:
    """Everything an ingress replica holds for one revision.

    Args:
        route: What is known of the revision; replaced by :meth:`update`.
        call_by_handle: The way without a lane.
        stream_by_handle: The same for streams.
        connections: Makes the lanes.
        died: What a request is answered whose replicas have died of it, or with it.
    """

    def __init__(
        self,
        route: RevisionRoute,
        call_by_handle: HandleCall,
        stream_by_handle: HandleStream,
        connections: Connections | None = None,
        died: type[ModelFailed | ModelNotReady] = ModelFailed,
    ) -> None:
        self._route = route
        self._connections: Connections = connections or OwnConnections()
        self._died = died
        self._call_by_handle = call_by_handle
        self._stream_by_handle = stream_by_handle
        self._handle_streams: Counter[str] = Counter()
        self._lost: set[str] = set()
        self._waiting: deque[_Waiting] = deque()
        self._lanes: dict[Path, _Lane] = {}
        self._by_handle: dict[asyncio.Task[None], _InFlight] = {}
        self._next_ident = 0
        self._scheduled = False
        self._in_flight = 0
        self._gone = 0
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def update(self, route: RevisionRoute) -> None:
        """Takes the revision's newest route."""
        if route.replicas != self._route.replicas:
            self._gone = 0
        self._lost &= set(route.replica_names)
        self._route = route

    @property
    def replicas_of(self) -> str:
        """The application whose replicas answer: its own, or that of its pool."""
        return self._route.pool or self._route.application

    @property
    def has_replica(self) -> bool:
        """One runs, as far as is known: lanes tell of it before the controller does."""
        is_open = any(lane.protocol.is_open and not lane.is_leaving for lane in self._lanes.values())
        return is_open or self._route.replicas > self._gone

    @property
    def ongoing(self) -> int:
        """Requests waiting here or in flight."""
        return self._in_flight

    async def call(self, call: Call, timeout_s: float) -> Tensors:
        """Sends one request and waits for its outputs (views on a merged answer).

        Cancelling this coroutine takes the request out of the queue, or tells the replica.

        Raises:
            Overloaded: Too many requests wait already.
            DeadlineExceeded: No answer within ``timeout_s``.
            ModelyardError: What the replica answered.
        """
        self._check_room()
        key = group_key(call) if self._merges(call) else ()
        now_ns = monotonic_ns()
        waiting = _Waiting(call, self._loop.create_future(), key, now_ns, now_ns + int(timeout_s * _NS))
        self._in_flight += 1
        timer = self._loop.call_later(timeout_s, self._expire, waiting, timeout_s)
        enqueue(self._waiting, waiting, _priority)
        self._schedule()
        try:
            return await waiting.future
        finally:
            timer.cancel()
            self._in_flight -= 1
            if waiting.future.cancelled():
                self._forget(waiting)

    def _check_room(self) -> None:
        limit = self._route.max_inflight_requests
        if self._in_flight >= limit:
            raise Overloaded(f'model "{self._route.model}": expected at most {limit} requests at once, got more')

    def _merges(self, call: Call) -> bool:
        return self._route.max_batch_size > 1 and call.rows != (0,)

    def _expire(self, waiting: _Waiting, timeout_s: float) -> None:
        if not waiting.future.done():
            waiting.future.set_exception(DeadlineExceeded(timeout_s))
            self._forget(waiting)

    def _forget(self, waiting: _Waiting) -> None:
        """Nobody waits for this request any more."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(waiting)
            return
        for lane in self._lanes.values():
            for ident, in_flight in list(lane.calls.items()):
                if waiting in in_flight.requests and in_flight.is_forgotten:
                    lane.protocol.send(Kind.CANCEL, ident, None)
        for task, in_flight in self._by_handle.items():
            if waiting in in_flight.requests and in_flight.is_forgotten:
                task.cancel()

    # -- dispatch

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._waiting:
            lane = self._find_lane()
            if lane is None and not self._may_use_handle():
                return
            requests = self._take_group()
            if not requests:
                return
            in_flight = _InFlight(_join(requests), requests)
            if lane is not None:
                self._send(lane, in_flight)
            else:
                task = self._loop.create_task(self._send_by_handle(in_flight))
                self._by_handle[task] = in_flight
                task.add_done_callback(self._on_handle_done)

    def _find_lane(self) -> _Lane | None:
        """The least busy lane that takes another call."""
        limit = self._calls_per_lane()
        if self._route.pool:
            home = self._find_home()
            is_free = home is not None and len(home.calls) < (limit if not home.is_exclusive else 1)
            return home if is_free else None
        best: _Lane | None = None
        for lane in self._lanes.values():
            if lane.is_leaving or not lane.protocol.is_open or len(lane.calls) >= limit:
                continue
            if lane.is_exclusive and lane.calls:
                continue
            if best is None or len(lane.calls) < len(best.calls):
                best = lane
        return best

    def _find_home(self) -> _Lane | None:
        """The lane to the one replica of a pool that has this revision loaded, or is to load it.

        Which one that is follows from the names alone, as for streams with an affinity; another one's arrival or end
        moves no more revisions than it must (rendezvous hashing).
        """
        usable = [lane for lane in self._lanes.values() if not lane.is_leaving and lane.protocol.is_open]
        if len(usable) < 2:
            return usable[0] if usable else None
        own = self._route.application.encode()
        return max(usable, key=lambda lane: _lot(own, lane.replica))

    def _calls_per_lane(self) -> int:
        """How many calls a replica may have at once.

        As many as the model runs at once, which is one for most, so that what arrives meanwhile leaves together: on
        small requests that is worth more than keeping the replica busy between two calls. One more where waiting
        longer would not make the call any bigger; and as many as fill a batch where the replica itself waits for it to
        fill.
        """
        if self._waiting[0].attempts:
            return 1
        if self._route.batch_wait_timeout_s > 0:
            return max(self._route.concurrency + 1, self._route.max_batch_size)
        return self._route.concurrency + self._is_full()

    def _is_full(self) -> bool:
        """The next call is as big as it may get."""
        if not self._waiting[0].key:
            return True
        rows = 0
        for request in self._waiting:
            rows += sum(request.call.rows)
            if rows >= self._route.max_batch_size:
                return True
        return False

    def _may_use_handle(self) -> bool:
        """There are replicas without a lane, or no lane at all."""
        usable = sum(1 for lane in self._lanes.values() if not lane.is_leaving and lane.protocol.is_open)
        if self._route.pool and usable:
            return False
        limit = 1 if self._waiting[0].attempts else _CALLS_BY_HANDLE
        return len(self._by_handle) < limit and (usable == 0 or usable < self._route.replicas)

    def _take_group(self) -> list[_Waiting]:
        """The oldest request and those that can travel with it, up to the row limit."""
        group: list[_Waiting] = []
        kept: list[_Waiting] = []
        rows = 0
        limit = self._route.max_batch_size
        while self._waiting:
            request = self._waiting.popleft()
            if request.future.done():
                continue
            count = sum(request.call.rows)
            if not group:
                group.append(request)
                rows = count
                if not request.key or request.attempts:
                    break
            elif request.key == group[0].key and not request.attempts and rows + count <= limit:
                group.append(request)
                rows += count
            else:
                kept.append(request)
            if rows >= limit:
                break
        self._waiting.extendleft(reversed(kept))
        return group

    def _send(self, lane: _Lane, in_flight: _InFlight) -> None:
        self._next_ident += 1
        in_flight.ident = self._next_ident
        lane.calls[in_flight.ident] = in_flight
        lane.is_exclusive = in_flight.requests[0].attempts > 0
        lane.protocol.send(Kind.CALL, in_flight.ident, (in_flight.call, self._backlog()))

    def _backlog(self) -> int:
        """This ingress's waiting requests, as one replica's share: the replicas report it for autoscaling."""
        return -(-len(self._waiting) // max(1, 1 if self._route.pool else len(self._lanes)))

    async def _send_by_handle(self, in_flight: _InFlight) -> None:
        try:
            answer = await self._call_by_handle(in_flight.call)
        except ModelyardError as error:
            self._fail(in_flight, error)
        except Exception as exc:  # noqa: BLE001  # Serve's many errors (replica died, application deleted, …)
            logger.info('model "%s": call by handle failed: %s: %s', self._route.model, type(exc).__name__, exc)
            self._retry(in_flight, ModelNotReady(self._route.model, "its replica went away"))
        else:
            self._complete(in_flight, answer)

    def _on_handle_done(self, task: asyncio.Task[None]) -> None:
        del self._by_handle[task]
        if self._waiting:
            self._schedule()

    # -- answers

    def _complete(self, in_flight: _InFlight, answer: Answer) -> None:
        if len(in_flight.requests) == 1 and answer.merged is not None:
            future = in_flight.requests[0].future
            if not future.done():
                future.set_result(answer.merged)
            return
        for request, outputs in zip(in_flight.requests, split(answer, in_flight.call.rows), strict=True):
            if request.future.done():
                continue
            if isinstance(outputs, ModelyardError):
                request.future.set_exception(outputs)
            else:
                request.future.set_result(outputs)

    @staticmethod
    def _fail(in_flight: _InFlight, error: ModelyardError) -> None:
        for request in in_flight.requests:
            if not request.future.done():
                request.future.set_exception(error)

    def _retry(self, in_flight: _InFlight, error: ModelyardError) -> None:
        """The replica died with this call. Each of its requests runs again, alone: one of them may be the cause.

        Args:
            in_flight: The call.
            error: For those that have been tried often enough.
        """
        for request in reversed(in_flight.requests):
            if request.future.done():
                continue
            request.attempts += 1
            if request.attempts >= _MAX_ATTEMPTS:
                request.future.set_exception(error)
            else:
                self._waiting.appendleft(request)
        self._schedule()

    # -- streams

    async def stream(self, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        """Sends one request of a decoupled model; its answers as they come.

        Closing the generator tells the replica that nobody reads any more.

        Raises:
            Overloaded: Too many requests are on their way already.
            DeadlineExceeded: It has not ended within ``timeout_s``.
            ModelyardError: What the replica answered, also after some answers.
        """
        self._check_room()
        stream = _Stream(call, timeout_s)
        self._in_flight += 1
        timer = self._loop.call_later(timeout_s, self._expire_stream, stream, timeout_s)
        try:
            self._open_stream(stream)
            while (item := await stream.items.get()) is not None:
                if isinstance(item, ModelyardError):
                    raise item
                yield item
                stream.take()
        finally:
            timer.cancel()
            self._in_flight -= 1
            self._close_stream(stream)

    def _open_stream(self, stream: _Stream) -> None:
        stream.lane, replica = self._find_stream_way(stream)
        if (lane := stream.lane) is None:
            self._handle_streams[replica] += 1
            stream.task = self._loop.create_task(self._read_by_handle(stream, replica))
            stream.task.add_done_callback(lambda _: self._on_handle_stream_done(replica))
            return
        self._next_ident += 1
        stream.ident = self._next_ident
        lane.streams[stream.ident] = stream
        lane.protocol.send(
            Kind.STREAM,
            stream.ident,
            _with_wait(stream.call, monotonic_ns() - stream.arrived_ns, stream.call.deadline_ns),
        )

    def _find_stream_way(self, stream: _Stream) -> tuple[_Lane | None, str]:
        """A lane, or without one the name of a replica elsewhere; empty for any.

        What has an affinity goes to the replica of its kind. Everything else takes the lane with the fewest streams,
        unless replicas without a lane have still fewer.
        """
        usable = {lane.replica: lane for lane in self._lanes.values() if not lane.is_leaving and lane.protocol.is_open}
        own = self._find_own_replica(stream.call.affinity, usable) if stream.call.affinity else ""
        if own in usable:
            return usable[own], ""
        if own and not stream.attempts:
            return None, own
        if not usable:
            return None, ""
        best = min(usable.values(), key=lambda lane: len(lane.streams))
        elsewhere = self._route.replicas - len(usable)
        is_busier = elsewhere > 0 and len(best.streams) * elsewhere > self._handle_streams.total()
        return (None, "") if is_busier else (best, "")

    def _find_own_replica(self, affinity: int, usable: Mapping[str, _Lane]) -> str:
        """Name of the replica of a kind of streams, on whatever node; empty where that has much more to do than others.

        Which one it is follows from the names alone: every ingress replica finds the same one, and another replica's
        arrival or end moves no more kinds than it must (rendezvous hashing).
        """
        known = self._lost | {lane.replica for lane in self._lanes.values()}
        names = [*usable, *(name for name in self._route.replica_names if name not in known)]
        if len(names) < 2:
            return ""
        busy = {name: len(usable[name].streams) if name in usable else self._handle_streams[name] for name in names}
        kind = b"%d" % affinity
        own = max(names, key=lambda name: _lot(kind, name))
        return own if busy[own] <= _AFFINITY_SLACK + 2 * min(busy.values()) else ""

    def _on_handle_stream_done(self, replica: str) -> None:
        self._handle_streams[replica] -= 1
        if not self._handle_streams[replica]:
            del self._handle_streams[replica]

    async def _read_by_handle(self, stream: _Stream, replica: str) -> None:
        try:
            call = _with_wait(stream.call, monotonic_ns() - stream.arrived_ns, stream.call.deadline_ns)
            async with contextlib.aclosing(self._stream_by_handle(call, replica)) as answers:
                async for item in answers:
                    await stream.room.acquire()
                    stream.put(item)
            stream.put(None)
        except Exception as exc:  # noqa: BLE001  # Serve's many errors (replica died, application deleted, …)
            logger.info('model "%s": stream by handle failed: %s: %s', self._route.model, type(exc).__name__, exc)
            self._retry_stream(stream, ModelNotReady(self._route.model, "its replica went away"))

    def _on_stream_frame(self, lane: _Lane, kind: Kind, ident: int, payload: Any) -> None:
        stream = lane.streams[ident]
        if kind is Kind.CHUNK:
            stream.put(payload)
            return
        del lane.streams[ident]
        if kind is Kind.END:
            stream.put(None)
        else:
            stream.put(payload if isinstance(payload, ModelyardError) else InternalError("the replica failed"))
        self._close_if_idle(lane)

    def _retry_stream(self, stream: _Stream, error: ModelyardError) -> None:
        """Its replica died. A stream that has given nothing yet begins again elsewhere."""
        stream.attempts += 1
        if stream.has_begun or stream.attempts >= _MAX_ATTEMPTS:
            stream.put(error)
        else:
            self._open_stream(stream)

    def _expire_stream(self, stream: _Stream, timeout_s: float) -> None:
        """Its replica stops at once, also where its reader is too slow to hear of the deadline now."""
        stream.put(DeadlineExceeded(timeout_s))
        self._close_stream(stream)

    def _close_stream(self, stream: _Stream) -> None:
        if stream.task is not None:
            stream.task.cancel()
        lane = stream.lane
        if lane is not None and lane.streams.pop(stream.ident, None) is not None:
            lane.protocol.send(Kind.CANCEL, stream.ident, None)
            self._close_if_idle(lane)

    # -- lanes

    def _on_frame(self, protocol: Connection, kind: Kind, ident: int, payload: Any) -> None:
        lane = next((lane for lane in self._lanes.values() if lane.protocol is protocol), None)
        if lane is None:
            return
        if kind is Kind.GOODBYE:
            self._gone += not lane.is_leaving
            lane.is_leaving = True
            self._close_if_idle(lane)
            return
        if ident in lane.streams:
            self._on_stream_frame(lane, kind, ident, payload)
            return
        in_flight = lane.calls.pop(ident, None)
        if in_flight is None:
            return
        if kind is Kind.ANSWER:
            self._complete(in_flight, payload)
        else:
            error = payload if isinstance(payload, ModelyardError) else InternalError("the replica failed")
            self._fail(in_flight, error)
        self._close_if_idle(lane)
        if self._waiting:
            self._schedule()

    def _close_if_idle(self, lane: _Lane) -> None:
        if lane.is_leaving and not lane.calls and not lane.streams:
            lane.protocol.close()

    def _on_lost(self, protocol: Connection) -> None:
        for path, lane in list(self._lanes.items()):
            if lane.protocol is protocol:
                del self._lanes[path]
                self._gone += not lane.is_leaving
                self._lost.add(lane.replica)
                died = self._died(self._route.model, "its replica died while answering")
                for in_flight in reversed(lane.calls.values()):
                    self._retry(in_flight, died)
                for stream in lane.streams.values():
                    self._retry_stream(stream, died)
        self._schedule()

    async def connect(self, paths: Iterable[Path]) -> None:
        """Opens a lane to each of these sockets that has none yet; a socket nobody listens on is removed."""
        for path in paths:
            if path in self._lanes or self._closed:
                continue
            # Known before it is open: it may say goodbye or be lost, or another call may come by, before this goes on.
            lane = self._lanes[path] = _Lane(path, self._connections.make(self._on_frame, self._on_lost))
            self._lost.discard(lane.replica)
            if await self._open(lane):
                self._gone = max(0, self._gone - 1)
                self._close_if_idle(lane)
                self._schedule()
            else:
                self._lanes.pop(path, None)

    async def _open(self, lane: _Lane) -> bool:
        try:
            await self._connections.open(lane.protocol, lane.path)
        except ConnectionRefusedError:
            lane.path.unlink(missing_ok=True)
            return False
        except OSError as exc:
            logger.info("lane %s cannot be opened: %s", lane.path.name, exc)
            return False
        return True

    def retire(self) -> None:
        """The revision gets no new requests: sends everything that waits at once, whatever the usual limits.

        Its replicas answer what they have before they stop; lanes close when their calls are answered.
        """
        self._closed = True
        lanes = [lane for lane in self._lanes.values() if not lane.is_leaving and lane.protocol.is_open]
        while self._waiting and lanes:
            requests = self._take_group()
            if requests:
                lane = min(lanes, key=lambda lane: len(lane.calls))
                self._send(lane, _InFlight(_join(requests), requests))
        if self._waiting:
            self._schedule()
        for lane in list(self._lanes.values()):
            lane.is_leaving = True
            self._close_if_idle(lane)


def _lot(what: bytes, replica: str) -> bytes:
    """What a replica draws for something that is to go to one of them: by its name, the same everywhere."""
    return hashlib.blake2b(what + b" " + replica.encode(), digest_size=8).digest()


def _priority(waiting: _Waiting) -> int:
    return waiting.call.priority


def _join(requests: Sequence[_Waiting]) -> Call:
    """One call with all of them."""
    now_ns = monotonic_ns()
    waited_ns = sum(now_ns - one.arrived_ns for one in requests)
    deadline_ns = max(one.deadline_ns for one in requests)
    return _with_wait(merge([request.call for request in requests]), waited_ns, deadline_ns)


def _with_wait(call: Call, waited_ns: int, deadline_ns: int) -> Call:
    return Call(
        call.inputs,
        call.rows,
        call.outputs,
        call.parameters,
        call.priority,
        waited_ns,
        call.member,
        deadline_ns,
        call.via,
        call.affinity,
        call.resident,
    )
