# SPDX-License-Identifier: Apache-2.0
"""Models in an object store: registered, updated, taken back, refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from platform_process import PlatformProcess
from s3_server import serving_s3

from modelyard.client import Platform
from modelyard.errors import Forbidden, InvalidConfig

ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
URI = "s3://models/iris"


@pytest.fixture(scope="module")
def buckets(platform: PlatformProcess) -> Path:
    pytest.importorskip("s3fs", reason="pip install modelyard[s3]")
    folder = platform.folder / "buckets"
    shutil.copytree(platform.folder / "models" / "iris-sklearn", folder / "models" / "iris")
    shutil.copytree(platform.folder / "models" / "iris-xgboost", folder / "other" / "iris")
    return folder


@pytest.fixture(scope="module")
def client(platform: PlatformProcess) -> Iterator[Platform]:
    with Platform.connect(platform.url, timeout_s=60) as opened:
        yield opened


def _ask(client: Platform, model: str) -> list[Any]:
    (answer,) = client.predict(model, ROWS).outputs.values()
    return answer.tolist()


def _port(platform: PlatformProcess) -> int:
    return urlsplit(platform.settings["AWS_ENDPOINT_URL"]).port or 0


def test_a_model_in_a_bucket_is_served_and_its_next_version_too(
    platform: PlatformProcess, buckets: Path, client: Platform, http: httpx.Client
) -> None:
    expected = _ask(client, "iris-sklearn")
    with serving_s3(buckets, _port(platform)):
        status = client.register(
            "stored", framework="sklearn", uri=URI, resources={"num_cpus": 0.05}, wait=True, message="first"
        )
        assert (status.version, status.uri) == ("1", URI)
        assert _ask(client, "stored") == expected
        assert client.register("stored", framework="sklearn", uri=URI, resources={"num_cpus": 0.05}).version == "1"
        other = platform.folder / "models" / "breast-cancer" / "model.joblib"
        shutil.copy(other, buckets / "models" / "iris" / "model.joblib")
        status = client.register("stored", framework="sklearn", uri=URI, resources={"num_cpus": 0.05}, wait=True)
        assert status.version == "2"
        assert http.get("/v2/models/stored").json()["inputs"][0]["shape"] == [-1, 30]
        client.rollback("stored", wait=True)
        assert _ask(client, "stored") == expected, "the first version's copy is still here"
    client.unregister("stored", wait=True)


def test_what_cannot_be_served_from_a_store_is_refused(
    platform: PlatformProcess, buckets: Path, client: Platform
) -> None:
    with serving_s3(buckets, _port(platform)):
        with pytest.raises(Forbidden, match=r"security\.model_roots"):
            client.register("refused", framework="sklearn", uri="s3://other/iris")
        with pytest.raises(InvalidConfig, match="the model's location does not exist"):
            client.register("refused", framework="xgboost", uri="s3://other/none")
        with pytest.raises(InvalidConfig, match=r"expected one file ending in \.joblib"):
            client.register("refused", framework="sklearn", uri="s3://models")
    assert "refused" not in {status.name for status in client.list()}
