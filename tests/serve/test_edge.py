# SPDX-License-Identifier: Apache-2.0
"""Replies on the connections of a real server, which has a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from modelyard.serve.edge import send_whole

REQUEST = b"POST /%d HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\n{}"


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    """The path is the length of the reply."""
    await receive()
    body = b"x" * int(scope["path"][1:])
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    await send_whole(start, b"" if scope["method"] == "HEAD" else body, send)


async def _answer_wrongly(_scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]}
    await send_whole(start, b"four", send)


@contextlib.contextmanager
def _connection(app: ASGIApp = _answer) -> Iterator[socket.socket]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, http="httptools", lifespan="off", log_level="critical"))
    thread = threading.Thread(target=lambda: uvloop.run(server.serve()))
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        with socket.create_connection(server.servers[0].sockets[0].getsockname()[:2], timeout=10) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield connection
    finally:
        server.should_exit = True
        thread.join()


def _read(file: BinaryIO) -> bytes:
    """The next reply's body."""
    assert file.readline() == b"HTTP/1.1 200 OK\r\n"
    length = 0
    while (line := file.readline()) != b"\r\n":
        if line.startswith(b"content-length: "):
            length = int(line.split()[1])
    return file.read(length)


class _Written(asyncio.Transport):
    """A connection that keeps what is written, each time by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None:
        pass


async def test_short_replies_are_written_in_one_piece() -> None:
    config = uvicorn.Config(_answer, http="httptools", lifespan="off", log_level="critical")
    config.load()
    protocol = HttpToolsProtocol(config, ServerState(), {})
    connection = _Written()
    protocol.connection_made(connection)
    for length in (0, 20, 64 * 1024):
        protocol.data_received(REQUEST % length)
        await asyncio.gather(*protocol.tasks)
        assert connection.pieces.pop().endswith(b"\r\n\r\n" + b"x" * length)
        assert not connection.pieces


@pytest.mark.parametrize("length", [0, 64 * 1024, 64 * 1024 + 1, 3_000_000])
def test_replies_of_every_length_come_whole(length: int) -> None:
    with _connection() as connection, connection.makefile("rb") as file:
        for _ in range(2):
            connection.sendall(REQUEST % length)
            assert _read(file) == b"x" * length


def test_requests_sent_ahead_are_answered_in_order() -> None:
    with _connection() as connection, connection.makefile("rb") as file:
        connection.sendall(b"".join(REQUEST % length for length in range(1, 9)))
        assert [len(_read(file)) for _ in range(8)] == list(range(1, 9))


def test_a_reply_without_a_body_comes() -> None:
    with _connection() as connection:
        connection.sendall((REQUEST % 20).replace(b"POST", b"HEAD"))
        reply = connection.recv(1000)
    assert b"content-length: 20\r\n" in reply
    assert reply.endswith(b"\r\n\r\n")


def test_the_last_reply_of_a_connection_comes_before_its_end() -> None:
    with _connection() as connection, connection.makefile("rb") as file:
        connection.sendall((REQUEST % 20).replace(b"host", b"connection: close\r\nhost"))
        assert _read(file) == b"x" * 20
        assert file.read() == b""


def test_a_reply_that_cannot_be_sent_ends_the_connection() -> None:
    with _connection(_answer_wrongly) as connection, connection.makefile("rb") as file:
        connection.sendall(REQUEST % 20)
        assert file.read().endswith(b"\r\n\r\nfour")
