# SPDX-License-Identifier: Apache-2.0
"""Shared models through the client and on the command line."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from modelyard.admin import Pool, PoolProcess
from modelyard.catalog import Catalog
from modelyard.cli import printing
from modelyard.client import HttpTransport, Platform
from modelyard.testing.platform import FakePlatform

POOL = Pool("pool@sklearn", 1000, (PoolProcess("r-1", 300, 398, 400, 900, 100, 100, 70, 5.2, 20.0),))


def test_a_model_is_registered_as_shared(tmp_path: Path) -> None:
    with Catalog(f"sqlite:///{tmp_path}/catalog.db") as catalog, FakePlatform(catalog).connect() as platform:
        platform.register("a", framework="sklearn", uri="a", shared=True)
        platform.register("b", framework="sklearn", uri="b")
        assert [(pool.name, pool.revisions) for pool in platform.pools()] == [("pool@sklearn", 1)]
        assert [record.spec["shared"] for record in catalog.list_models()] == [True, False]


def test_a_pool_comes_as_it_was_sent() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/platform/v1/pools"
        return httpx.Response(200, json={"pools": [POOL.to_dict() | {"newer": 1}]})

    transport = httpx.MockTransport(answer)
    with Platform(lambda: HttpTransport("http://platform.test", transport=transport)) as platform:
        assert platform.pools() == (POOL,)


def test_pools_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    printing.print_pools([POOL], as_json=False)
    shown = capsys.readouterr().out
    for part in ("pool@sklearn", "1000", "300", "398 of 400 MiB", "90.0% of 1000", "100", "70", "5 ms", "20 ms"):
        assert part in shown
