# SPDX-License-Identifier: Apache-2.0
"""The lane: how an ingress replica talks to a model replica on the same node.

A Serve handle call costs more than a millisecond, most of it bookkeeping that a request between two of our own
processes does not need; a frame over a Unix socket costs about a tenth. Serve still starts, places, checks, scales and
stops the replicas, and calls to replicas on other nodes (or while no socket is there) go through the handle.

Discovery is the folder: a replica that can answer has a socket ``<application's digest>.<replica>.sock`` in a folder
that only this user can enter; one that drains removes it first. Neither the controller nor Serve is asked.

A frame is ``length of pickle: u32, number of buffers: u32, id: u64, kind: u32`` then the buffers' lengths (u64 each),
the pickle, and the buffers. Arrays travel as pickle protocol 5 out-of-band buffers: written from and read into place
without a copy of their own. The pickle and each buffer are padded so that every buffer begins at a multiple of 16
bytes: native libraries read arrays where they lie, and rely on their alignment. Pickle is safe here because both ends
are this user's own processes (the folder's mode).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import pickle
import stat
import struct
import tempfile
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast

from modelyard.serve.numpies import share_array_pickles

share_array_pickles()

_HEAD: Final = struct.Struct("<IIQI")
_ALIGNMENT: Final = 16
_OUT_OF_BAND_BYTES: Final = 64 * 1024
_MAX_BUFFERED_BYTES: Final = 8 * 1024 * 1024

STREAM_WINDOW: Final = 16
"""Answers of one stream that may be under way; the model waits when its client is slower."""


class Kind(IntEnum):
    """What a frame carries."""

    CALL = 1
    """Ingress → replica: ``(Call, backlog)``."""
    ANSWER = 2
    """Replica → ingress: ``Answer``."""
    ERROR = 3
    """Replica → ingress: the error of the whole call."""
    CANCEL = 4
    """Ingress → replica: nobody waits for this call any more."""
    GOODBYE = 5
    """Replica → ingress: send nothing new here; what was sent is still answered."""
    STREAM = 6
    """Ingress → replica: a ``Call`` of a decoupled model."""
    CHUNK = 7
    """Replica → ingress: one answer of a stream; at most ``STREAM_WINDOW`` are on their way."""
    CREDIT = 8
    """Ingress → replica: so many answers were taken, as many more may be sent."""
    END = 9
    """Replica → ingress: the stream has given its last answer."""


def lane_folder(session: str) -> Path:
    """The folder of one Ray session's sockets, made when missing, entered by this user only.

    Args:
        session: Any text that is equal for all processes of one Ray session on this node.

    Raises:
        PermissionError: The folder exists and belongs to somebody else or is open to others.
    """
    digest = hashlib.sha256(session.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"modelyard-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder


@lru_cache(4096)
def socket_prefix(application: str) -> str:
    """How the names of an application's sockets begin; a digest, since socket paths are limited to 107 bytes."""
    return hashlib.sha256(application.encode()).hexdigest()[:16] + "."


def socket_path(folder: Path, application: str, replica: str) -> Path:
    """Where a replica listens."""
    return folder / f"{socket_prefix(application)}{replica}.sock"


def encode_frame(kind: Kind, ident: int, payload: object) -> list[bytes | memoryview]:
    """The frame as chunks to write one after another; large arrays are views."""
    buffers: list[pickle.PickleBuffer] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < _OUT_OF_BAND_BYTES:
            return True
        buffers.append(buffer)
        return False

    body = pickle.dumps(payload, protocol=5, buffer_callback=keep_in_band)
    raws = [buffer.raw() for buffer in buffers]
    lengths = struct.pack(f"<{len(raws)}Q", *(raw.nbytes for raw in raws))
    padding = bytes(_padding(_HEAD.size + len(lengths) + len(body)))  # pickle stops reading before it
    head = _HEAD.pack(len(body) + len(padding), len(raws), ident, kind)
    chunks: list[bytes | memoryview] = [b"".join((head, lengths, body, padding))]
    for raw in raws:
        chunks += (raw, bytes(_padding(raw.nbytes)))
    return chunks


def _padding(length: int) -> int:
    return -length % _ALIGNMENT


class LaneProtocol(asyncio.Protocol):
    """One end of a lane: whole frames in, whole frames out."""

    def __init__(
        self,
        on_frame: Callable[[LaneProtocol, Kind, int, Any], None],
        on_lost: Callable[[LaneProtocol], None],
    ) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = _HEAD.size
        self._outgoing: list[bytes | memoryview] = []
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_MAX_BUFFERED_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._transport = None
        self._chunks.clear()
        self._outgoing.clear()
        self._on_lost(self)

    @property
    def is_open(self) -> bool:
        """Frames can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, kind: Kind, ident: int, payload: object) -> None:
        """Queues a frame; all frames of one turn of the event loop leave in one write."""
        if not self.is_open:
            return
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.extend(encode_frame(kind, ident, payload))

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self._transport is not None and outgoing and not self._transport.is_closing():
            self._transport.writelines(outgoing)

    def close(self) -> None:
        """Sends what is queued, then closes."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return
        joined = data if len(self._chunks) == 1 else b"".join(self._chunks)
        view = memoryview(joined)
        offset = 0
        try:
            while True:
                size = self._frame_size(view, offset)
                if size is None or offset + size > len(view):
                    break
                self._take(view[offset : offset + size])
                offset += size
        except Exception:
            # A frame that cannot be read means that both ends no longer agree on where frames begin.
            self.abort()
            raise
        rest = bytes(view[offset:])
        self._chunks = [rest] if rest else []
        self._have = len(rest)
        size = self._frame_size(memoryview(rest), 0)
        self._need = _HEAD.size if size is None else size

    @staticmethod
    def _frame_size(view: memoryview, offset: int) -> int | None:
        if len(view) - offset < _HEAD.size:
            return None
        body, count, _, _ = _HEAD.unpack_from(view, offset)
        start = offset + _HEAD.size
        if count == 0:
            return int(_HEAD.size + body)
        if len(view) - start < 8 * count:
            return int(_HEAD.size + 8 * count + body)
        lengths = struct.unpack_from(f"<{count}Q", view, start)
        return int(_HEAD.size + 8 * count + body + sum(length + _padding(length) for length in lengths))

    def _take(self, frame: memoryview) -> None:
        body, count, ident, kind = _HEAD.unpack_from(frame)
        start = _HEAD.size + 8 * count
        buffers: list[memoryview] = []
        if count:
            position = start + body
            for length in struct.unpack_from(f"<{count}Q", frame, _HEAD.size):
                buffers.append(frame[position : position + length].toreadonly())
                position += length + _padding(length)
        payload = pickle.loads(frame[start : start + body], buffers=buffers)  # noqa: S301  # own processes only
        self._on_frame(self, Kind(kind), ident, payload)
