# SPDX-License-Identifier: Apache-2.0
"""What the admin routes refuse before anybody behind them sees it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from modelyard.catalog import Catalog
from modelyard.serve.admin import AdminHandlers
from modelyard.serve.http import make_app
from modelyard.testing.platform import FakePlatform

MODELS = "/platform/v1/models"
SPEC = {"name": "m", "framework": "sklearn", "uri": "models/m"}


@contextlib.asynccontextmanager
async def _lifespan(_app: object) -> AsyncIterator[None]:
    yield


@pytest.fixture
async def behind(tmp_path: Path) -> AsyncIterator[FakePlatform]:
    with Catalog(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        yield FakePlatform(catalog)


@pytest.fixture
async def client(behind: FakePlatform) -> AsyncIterator[httpx.AsyncClient]:
    transport = behind.open_transport()
    app = make_app(AdminHandlers(transport).routes(), 64 * 1024 * 1024, _lifespan)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge") as client:
        yield client
    await transport.close()


def nested(depth: int) -> bytes:
    inner = b'{"a":' * depth + b"1" + b"}" * depth
    return json.dumps(SPEC).encode()[:-1] + b', "options": ' + inner + b"}"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "it is empty"),
        (b"[]", 400, "expected an object, got a list"),
        (nested(64), 400, "at most 64 objects and lists inside each other"),
        (nested(900), 400, "at most 64 objects and lists inside each other"),
        (json.dumps({**SPEC, "description": "d" * 1024 * 1024}).encode(), 413, "at most 1048576 bytes"),
        (json.dumps({**SPEC, "message": "m" * 4097}).encode(), 413, "at most 4096 characters, got 4097"),
        (json.dumps({**SPEC, "message": 1}).encode(), 400, "message: expected a string, got 1"),
    ],
)
async def test_a_bad_registration_goes_no_further(
    client: httpx.AsyncClient, behind: FakePlatform, body: bytes, status: int, words: str
) -> None:
    reply = await client.post(MODELS, content=body)
    assert (reply.status_code, set(reply.json())) == (status, {"error", "code"})
    assert words in reply.json()["error"]
    assert behind.requests == []


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_a_bad_change_goes_no_further(client: httpx.AsyncClient, behind: FakePlatform, verb: str) -> None:
    for body in (b"[]", b"{", b'{"message": 1}', b'{"message": "' + b"m" * 4097 + b'"}'):
        assert (await client.post(f"{MODELS}/m/{verb}", content=body)).status_code in (400, 413)
    assert (await client.delete(f"{MODELS}/m", params={"message": "m" * 4097})).status_code == 413
    assert behind.requests == []


async def test_a_registration_that_is_nested_as_deep_as_may_be_is_passed_on(
    client: httpx.AsyncClient, behind: FakePlatform
) -> None:
    await client.post(MODELS, content=nested(62))
    assert len(behind.requests) == 1
