# SPDX-License-Identifier: Apache-2.0
"""Managing models while the platform runs: command line, Python, and what clients see meanwhile."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from answers import Answers
from load import Load
from made_models import write_broken, write_constant, write_flagged, write_sleeper
from platform_process import BIN, PlatformProcess, wait_until

from modelyard.admin import ModelState, ModelStatus
from modelyard.client import AsyncPlatform, Platform
from modelyard.errors import Conflict, ModelNotFound, ModelNotReady


@pytest.fixture
def client(platform: PlatformProcess) -> Iterator[Platform]:
    with Platform.connect(platform.url) as opened:
        yield opened


@pytest.fixture
def folder(platform: PlatformProcess, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A place for the test's own artifacts, below the platform's working directory."""
    path = platform.folder / "models" / request.node.name
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def name(client: Platform) -> Iterator[str]:
    """The name of a model that the test registers; afterwards it is gone."""
    yield "made"
    try:
        client.unregister("made", wait=True)
    except ModelNotFound:
        return


def modelyard(platform: PlatformProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "modelyard"), "--url", platform.url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def from_json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_a_models_life_by_command_line(platform: PlatformProcess, name: str, folder: Path) -> None:
    write_constant(folder / "a", 1.5)
    arguments = ("--framework", "sklearn", "--uri", str(folder / "a"), "--wait", "--json")
    registered = from_json(modelyard(platform, "register", name, *arguments, "-m", "first"))
    assert (registered["state"], registered["version"], registered["message"]) == ("ready", "1", "first")
    assert from_json(modelyard(platform, "status", name, "--json"))["owner"] == "registered"
    listed = from_json(modelyard(platform, "list", "--json"))["models"]
    assert {model["name"]: model["state"] for model in listed} == dict.fromkeys([*platform.models, name], "ready")
    predicted = from_json(modelyard(platform, "predict", name, "-d", "[[0], [0]]", "--json"))
    assert predicted == {"model_name": name, "model_version": "1", "outputs": {"output-0": [1.5, 1.5]}}
    assert from_json(modelyard(platform, "unregister", name, "--wait", "--json"))["state"] == "removing"
    gone = modelyard(platform, "status", name)
    assert (gone.returncode, gone.stdout, gone.stderr) == (1, "", 'modelyard: model "made" is not found\n')


def test_the_command_line_shows_tables(platform: PlatformProcess) -> None:
    lines = modelyard(platform, "list").stdout.splitlines()
    assert lines[0].split()[:4] == ["name", "framework", "version", "state"]
    assert [line.split()[0] for line in lines[1:]] == sorted(platform.models)


def test_predict_by_python_is_the_librarys(client: Platform, answers: dict[str, Answers]) -> None:
    for model, known in answers.items():
        found = client.predict(model, known.inputs).outputs["output-0"]
        np.testing.assert_allclose(found, known.default, rtol=1e-6)


async def test_a_models_life_by_async_python(platform: PlatformProcess, name: str, folder: Path) -> None:
    write_constant(folder / "a", 2.5)
    async with AsyncPlatform.connect(platform.url) as client:
        status = await client.register(name, framework="sklearn", uri=str(folder / "a"), wait=True)
        assert (status.state, status.version, status.replicas_ready) == (ModelState.READY, "1", 1)
        assert name in {model.name for model in await client.list()}
        answer = await client.predict(name, [[0.0]])
        assert answer.outputs["output-0"].tolist() == [2.5]
        await client.unregister(name, wait=True)
        with pytest.raises(ModelNotFound):
            await client.status(name)


def test_a_declared_model_is_left_to_its_file(client: Platform) -> None:
    with pytest.raises(Conflict):
        client.unregister("housing")
    with pytest.raises(Conflict):
        client.register("housing", framework="sklearn", uri="models/iris-sklearn")
    assert client.status("housing").state is ModelState.READY


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"uri": "models/nowhere"}, "uri: the model's location does not exist"),
        ({"uri": "/usr"}, "security.model_roots"),
        ({"framework": "sk"}, "framework: "),
        ({"options": {"threads": 2}}, "options.threads"),
        ({"autoscaling": {"min_replicas": 3, "max_replicas": 1}}, "autoscaling"),
    ],
)
def test_a_wrong_registration_is_refused_at_once(
    platform: PlatformProcess, change: dict[str, Any], problem: str
) -> None:
    spec = {"name": "wrong", "framework": "sklearn", "uri": "models/iris-sklearn", **change}
    reply = httpx.post(f"{platform.url}/platform/v1/models", json=spec)
    assert reply.status_code in (400, 403)
    assert problem in reply.json()["error"]
    assert str(platform.folder) not in reply.text
    assert httpx.get(f"{platform.url}/platform/v1/models/wrong").status_code == 404


def test_a_broken_model_fails_alone_and_can_be_repaired(
    platform: PlatformProcess, client: Platform, http: httpx.Client, name: str, folder: Path
) -> None:
    write_broken(folder / "a")
    with Load(platform.url, "iris-sklearn", [[5.1, 3.5, 1.4, 0.2]]) as load:
        assert client.register(name, framework="sklearn", uri=str(folder / "a")).state is ModelState.PENDING
        with pytest.raises(ModelNotReady, match="no complete joblib or pickle file"):
            client.wait_ready(name)
        failed = client.status(name)
        assert failed.state is ModelState.FAILED
        assert "no complete joblib" in failed.reason
        assert failed.reason in http.get(f"/v2/models/{name}/ready").json()["error"]
        write_constant(folder / "a", 4.0)
        assert client.register(name, framework="sklearn", uri=str(folder / "a"), wait=True).version == "2"
    assert client.predict(name, [[0.0]]).outputs["output-0"].tolist() == [4.0]
    assert set(load.statuses) == {200}


def test_a_model_that_failed_is_loaded_again_however_far_its_last_attempts_are(
    client: Platform, name: str, folder: Path
) -> None:
    flag = folder / "flag"
    write_flagged(folder / "model", flag)
    for seconds in (1.5, 3):  # Serve tries a second time meanwhile, and gives up
        client.register(name, framework="sklearn", uri=str(folder / "model"), resources={"num_cpus": 0.05})
        wait_until(lambda: client.status(name).state is ModelState.FAILED, 60, "it to fail")
        time.sleep(seconds)
        flag.touch()
        client.load(name)
        assert client.wait_ready(name, timeout_s=60).state is ModelState.READY
        client.unregister(name, wait=True)
        flag.unlink()


def test_a_changed_artifact_is_version_2_and_no_request_fails(
    platform: PlatformProcess, client: Platform, name: str, folder: Path
) -> None:
    write_constant(folder / "a", 1.0)
    client.register(name, framework="sklearn", uri=str(folder / "a"), wait=True)
    with Load(platform.url, name, [[0.0]]) as load:
        write_constant(folder / "a", 2.0)
        client.register(name, framework="sklearn", uri=str(folder / "a"))
        status: ModelStatus = client.wait_ready(name)
        assert status.version == "2"
        wait_until(lambda: load.answers['{"predictions":[2.0]}'], 30, "an answer of version 2")
        wait_until(lambda: not platform.replicas(f"{name}@1"), 30, "version 1 to end")
    assert set(load.statuses) == {200}
    assert set(load.answers) == {'{"predictions":[1.0]}', '{"predictions":[2.0]}'}


def test_a_broken_change_leaves_the_old_version_answering(
    platform: PlatformProcess, client: Platform, name: str, folder: Path
) -> None:
    write_constant(folder / "a", 1.0)
    write_broken(folder / "b")
    client.register(name, framework="sklearn", uri=str(folder / "a"), wait=True)
    with Load(platform.url, name, [[0.0]]) as load:
        client.register(name, framework="sklearn", uri=str(folder / "b"))
        wait_until(lambda: "revision 2 failed" in client.status(name).reason, 30, "revision 2 to fail")
        assert client.status(name).version == "1"
    assert set(load.statuses) == {200}


def test_unregistering_loses_no_accepted_request(
    platform: PlatformProcess, client: Platform, name: str, folder: Path
) -> None:
    write_sleeper(folder / "a")
    client.register(name, framework="sklearn", uri=str(folder / "a"), wait=True)

    def ask(_index: int) -> int:
        reply = httpx.post(f"{platform.url}/v1/models/{name}:predict", json={"instances": [[2.0]]}, timeout=60)
        return reply.status_code

    with ThreadPoolExecutor(6) as threads, Load(platform.url, "iris-sklearn", [[5.1, 3.5, 1.4, 0.2]]) as others:
        accepted = threads.map(ask, range(6))
        time.sleep(0.5)  # the requests are at the model: that they are is nowhere to be seen from outside
        assert client.unregister(name).state is ModelState.REMOVING
        refused = httpx.post(f"{platform.url}/v1/models/{name}:predict", json={"instances": [[0.0]]})
        client.unregister(name, wait=True)
        assert list(accepted) == [200] * 6
    assert refused.status_code in (200, 404, 503)
    assert set(others.statuses) == {200}
    wait_until(lambda: httpx.get(f"{platform.url}/v1/models/{name}").status_code == 404, 30, "the ingress to forget it")
