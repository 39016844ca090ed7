# SPDX-License-Identifier: Apache-2.0
"""An ASGI application in this process: its reply part by part, and its work cancelled when nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from modelyard.errors import InternalError
from modelyard.openai import Part
from modelyard_deployments import _asgi


class Work:
    """What a handler does; the test sees how it ends."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = False
        self.listening = 0

    async def forever(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    async def listen(self, request: Request) -> None:
        self.listening += 1
        try:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        finally:
            self.listening -= 1

    async def either(self, request: Request) -> Response | None:
        """As vLLM's server runs a handler: beside a task that listens for the client to go away."""
        tasks = {asyncio.ensure_future(self.forever()), asyncio.ensure_future(self.listen(request))}
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return None

    async def words(self) -> AsyncIterator[bytes]:
        yield b"one "
        await self.forever()


def _call(app: _asgi.Application) -> AsyncGenerator[Part]:
    return _asgi.call(app, "/x", b"[1]", "application/json")


async def test_a_reply_comes_with_its_status_and_type() -> None:
    async def app(scope, receive, send) -> None:
        request = Request(scope, receive)
        await JSONResponse(await request.json(), 418)(scope, receive, send)

    assert [part async for part in _call(app)] == [Part(b"[1]", 418, "application/json")]


async def test_a_slow_reader_holds_the_application_back() -> None:
    sent: list[int] = []

    async def many() -> AsyncIterator[bytes]:
        for number in range(100):
            sent.append(number)
            yield b"%d " % number

    async def app(scope, receive, send) -> None:
        await StreamingResponse(many())(scope, receive, send)

    parts = _call(app)
    assert (await anext(parts)).data == b"0 "
    await asyncio.sleep(0.05)
    assert len(sent) < 20
    assert len([part async for part in parts]) == 99


async def test_a_handler_that_listens_ends_when_the_client_goes_away() -> None:
    work = Work()

    async def app(scope, receive, send) -> None:
        await work.either(Request(scope, receive))

    reading = asyncio.ensure_future(anext(_call(app)))
    await work.begun.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert (work.cancelled, work.listening) == (True, 0)


async def test_a_stream_ends_when_the_client_goes_away() -> None:
    work = Work()

    async def app(scope, receive, send) -> None:
        await StreamingResponse(work.words())(scope, receive, send)

    async with contextlib.aclosing(_call(app)) as parts:
        assert (await anext(parts)).data == b"one "
        await work.begun.wait()
    assert work.cancelled


async def test_a_failure_after_the_reply_is_the_applications_own() -> None:
    async def app(scope, receive, send) -> None:
        await JSONResponse({"error": "clean"}, 500)(scope, receive, send)
        raise KeyError("/secret/path")

    assert [part.status async for part in _call(app)] == [500]


@pytest.mark.parametrize("error", [KeyError("/secret/path"), asyncio.CancelledError()])
async def test_a_failure_without_a_reply_is_told_without_internals(error: BaseException) -> None:
    async def app(scope, receive, send) -> None:
        raise error

    with pytest.raises(InternalError) as caught:
        await anext(_call(app))
    assert "secret" not in str(caught.value)
