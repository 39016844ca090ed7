# SPDX-License-Identifier: Apache-2.0
"""Loading and unloading with Triton's own clients: processes come and go, and no accepted request is lost."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from load import Load
from made_models import write_broken, write_constant, write_sleeper
from platform_process import PlatformProcess, wait_until
from tritonclient.utils import InferenceServerException

from modelyard.admin import ModelState
from modelyard.client import Platform
from modelyard.errors import ModelNotFound

NAME = "kept"


@pytest.fixture
def client(platform: PlatformProcess) -> Iterator[Platform]:
    with Platform.connect(platform.url) as opened:
        yield opened


@pytest.fixture
def triton(platform: PlatformProcess) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(platform.host, network_timeout=120, connection_timeout=120) as opened:
        yield opened


@pytest.fixture
def folder(platform: PlatformProcess, client: Platform, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where the test's model is to be; the model, registered under ``NAME``, is gone afterwards."""
    path = platform.folder / "models" / request.node.name
    path.mkdir()
    yield path
    with contextlib.suppress(ModelNotFound):
        client.unregister(NAME, wait=True)
    shutil.rmtree(path)


def index_of(triton: Any, name: str = NAME) -> list[dict[str, str]]:
    return [entry for entry in triton.get_model_repository_index() if entry["name"] == name]


def ask(triton: Any, value: float = 0.0) -> Any:
    rows = tritonclient.http.InferInput("input-0", [1, 1], "FP64")
    rows.set_data_from_numpy(np.array([[value]]))
    return triton.infer(NAME, [rows])


def test_the_index_has_every_model_of_the_file(platform: PlatformProcess, triton: Any) -> None:
    index = triton.get_model_repository_index()
    assert {entry["name"] for entry in index} >= set(platform.models)
    assert all(entry["state"] == "READY" for entry in index if entry["name"] in platform.models)
    extensions = triton.get_server_metadata()["extensions"]
    assert {"model_repository", "model_repository(unload_dependents)"} <= set(extensions)


def test_an_unloaded_models_process_ends_and_a_loaded_ones_is_another(
    platform: PlatformProcess, client: Platform, triton: Any, folder: Path
) -> None:
    write_constant(folder, 7.0)
    client.register(NAME, framework="sklearn", uri=str(folder), wait=True)
    before = platform.replicas(f"{NAME}@1")
    triton.unload_model(NAME)
    assert not triton.is_model_ready(NAME)
    with pytest.raises(InferenceServerException, match="unloaded"):
        ask(triton)
    wait_until(lambda: not platform.replicas(f"{NAME}@1"), 20, "the process to end")
    wait_until(lambda: index_of(triton)[0]["state"] == "UNAVAILABLE", 30, "the index to say so")
    assert index_of(triton) == [{"name": NAME, "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}]
    triton.load_model(NAME)
    assert triton.is_model_ready(NAME)
    answer = ask(triton)
    assert answer.as_numpy("output-0").tolist() == [7.0]
    assert answer.get_response()["model_version"] == "1"
    after = platform.replicas(f"{NAME}@1")
    assert len(before) == len(after) == 1
    assert not before & after


def test_unloading_loses_no_accepted_request(
    platform: PlatformProcess, client: Platform, triton: Any, folder: Path
) -> None:
    write_sleeper(folder / "a")
    client.register(NAME, framework="sklearn", uri=str(folder / "a"), wait=True)

    def post(seconds: float) -> int:
        body = {"instances": [[seconds]]}
        return httpx.post(f"{platform.url}/v1/models/{NAME}:predict", json=body, timeout=60).status_code

    with ThreadPoolExecutor(6) as threads:
        accepted = threads.map(post, [2.0] * 6)
        time.sleep(0.5)  # the requests are at the model: that they are is nowhere to be seen from outside
        began = time.monotonic()
        triton.unload_model(NAME)
        took_s = time.monotonic() - began
        assert index_of(triton)[0]["state"] == "UNLOADING"
        assert post(0.0) == 503
        assert list(accepted) == [200] * 6
    assert took_s < 1.5  # it does not wait for those requests
    assert client.unload(NAME, wait=True).state is ModelState.UNLOADED


def test_one_loaded_while_its_last_requests_are_answered_comes_back(
    platform: PlatformProcess, client: Platform, triton: Any, folder: Path
) -> None:
    write_sleeper(folder / "a")
    client.register(NAME, framework="sklearn", uri=str(folder / "a"), wait=True)
    with ThreadPoolExecutor(1) as threads:
        body = {"instances": [[6.0]]}
        url = f"{platform.url}/v1/models/{NAME}:predict"
        accepted = threads.submit(lambda: httpx.post(url, json=body, timeout=60).status_code)
        time.sleep(0.5)
        triton.unload_model(NAME)
        time.sleep(2.0)  # Serve has been told to delete the application, whose replica is still busy
        triton.load_model(NAME)
        assert ask(triton, 0.25).as_numpy("output-0").tolist() == [0.25]
        assert accepted.result() == 200
    assert ask(triton, 0.5).as_numpy("output-0").tolist() == [0.5]


def test_requests_during_loads_and_unloads_are_answered_or_refused(
    platform: PlatformProcess, client: Platform, triton: Any, folder: Path
) -> None:
    write_constant(folder, 7.0)
    client.register(NAME, framework="sklearn", uri=str(folder), wait=True)
    with Load(platform.url, NAME, [[0.0]]) as load, Load(platform.url, "iris-sklearn", [[5.1, 3.5, 1.4, 0.2]]) as other:
        for round_number in range(3):
            answered, refused = load.answered, load.statuses[503]
            triton.unload_model(NAME)
            wait_until(lambda known=refused: load.statuses[503] > known, 30, "a refusal")  # type: ignore[misc]
            if round_number % 2:
                wait_until(lambda: not platform.replicas(f"{NAME}@1"), 20, "the process to end")
            triton.load_model(NAME)
            wait_until(lambda known=answered: load.answered > known, 30, "an answer")  # type: ignore[misc]
    assert set(load.statuses) == {200, 503}, load.refusals
    assert all("unloaded" in text or "replicas are" in text for text in load.refusals), load.refusals
    assert set(load.answers) == {'{"predictions":[7.0]}'}
    assert set(other.statuses) == {200}, other.refusals


def test_loads_and_unloads_at_once_end_in_the_state_asked_for_last(
    client: Platform, platform: PlatformProcess, folder: Path
) -> None:
    write_constant(folder, 7.0)
    client.register(NAME, framework="sklearn", uri=str(folder), wait=True)
    gate = threading.Barrier(6)

    def change(number: int) -> int:
        gate.wait()
        verb = "load" if number % 2 else "unload"
        reply = httpx.post(f"{platform.url}/v2/repository/models/{NAME}/{verb}", timeout=60)
        return reply.status_code

    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(change, range(6))) <= {200, 409, 503}  # 503: unloaded again while it was loaded
    assert client.load(NAME, wait=True).state is ModelState.READY
    assert client.predict(NAME, [[0.0]]).outputs["output-0"].tolist() == [7.0]


def test_loading_reads_the_artifact_again_and_no_request_fails(
    platform: PlatformProcess, client: Platform, triton: Any, folder: Path
) -> None:
    write_constant(folder, 1.0)
    client.register(NAME, framework="sklearn", uri=str(folder), wait=True)
    with Load(platform.url, NAME, [[0.0]]) as load:
        triton.load_model(NAME)
        assert client.status(NAME).version == "1"
        write_constant(folder, 2.0)
        triton.load_model(NAME)
        assert ask(triton).get_response()["model_version"] == "2"
        wait_until(lambda: not platform.replicas(f"{NAME}@1"), 30, "version 1 to end")
    assert set(load.statuses) == {200}, load.refusals
    assert set(load.answers) == {'{"predictions":[1.0]}', '{"predictions":[2.0]}'}


def test_a_load_that_fails_says_why_and_leaves_the_old_version_answering(
    platform: PlatformProcess, client: Platform, triton: Any, folder: Path
) -> None:
    write_constant(folder, 1.0)
    client.register(NAME, framework="sklearn", uri=str(folder), wait=True)
    with Load(platform.url, NAME, [[0.0]]) as load:
        write_broken(folder)
        with pytest.raises(InferenceServerException, match=f'model "{NAME}" cannot be loaded: .*joblib') as caught:
            triton.load_model(NAME)
        assert caught.value.status() == "503"
        assert [(entry["version"], entry["state"]) for entry in index_of(triton)] == [
            ("1", "READY"),
            ("2", "UNAVAILABLE"),
        ]
        write_constant(folder, 3.0)
        triton.load_model(NAME)
    assert ask(triton).as_numpy("output-0").tolist() == [3.0]
    assert set(load.statuses) == {200}, load.refusals


@pytest.fixture
def grpc(platform: PlatformProcess) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(platform.grpc) as opened:
        yield opened


def test_over_grpc_a_model_is_unloaded_and_loaded(
    platform: PlatformProcess, client: Platform, grpc: Any, folder: Path
) -> None:
    write_constant(folder, 7.0)
    client.register(NAME, framework="sklearn", uri=str(folder), wait=True)
    assert {entry.name for entry in grpc.get_model_repository_index().models} >= {*platform.models, NAME}
    grpc.unload_model(NAME, unload_dependents=True)
    assert not grpc.is_model_ready(NAME)
    wait_until(lambda: not platform.replicas(f"{NAME}@1"), 20, "the process to end")
    client.unload(NAME, wait=True)
    (entry,) = [entry for entry in grpc.get_model_repository_index().models if entry.name == NAME]
    assert (entry.version, entry.state, entry.reason) == ("1", "UNAVAILABLE", "unloaded")
    grpc.load_model(NAME)
    assert grpc.is_model_ready(NAME)
    rows = tritonclient.grpc.InferInput("input-0", [1, 1], "FP64")
    rows.set_data_from_numpy(np.zeros((1, 1)))
    assert grpc.infer(NAME, [rows]).as_numpy("output-0").tolist() == [7.0]


def test_over_grpc_a_load_that_fails_says_why(
    platform: PlatformProcess, client: Platform, grpc: Any, folder: Path
) -> None:
    write_constant(folder, 1.0)
    client.register(NAME, framework="sklearn", uri=str(folder), wait=True)
    write_broken(folder)
    with pytest.raises(InferenceServerException, match=f'model "{NAME}" cannot be loaded: .*joblib') as caught:
        grpc.load_model(NAME)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert grpc.is_model_ready(NAME)


@pytest.mark.parametrize(
    ("name", "arguments", "status"),
    [
        ("none", {}, "NOT_FOUND"),
        ("iris-sklearn", {"config": "{}"}, "UNIMPLEMENTED"),
        ("iris-sklearn", {"config": "{}", "files": {"file:1/model.joblib": b"x"}}, "UNIMPLEMENTED"),
    ],
    ids=["unknown", "config", "files"],
)
def test_over_grpc_a_wrong_load_is_refused(grpc: Any, name: str, arguments: dict[str, Any], status: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        grpc.load_model(name, **arguments)
    assert caught.value.status() == f"StatusCode.{status}"
    assert caught.value.message() != "Method not found!"
    assert grpc.is_model_ready("iris-sklearn")


def test_a_configuration_or_files_in_the_request_are_not_supported(triton: Any) -> None:
    for arguments in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.joblib": b"x"}}):
        with pytest.raises(InferenceServerException, match="register a model") as caught:
            triton.load_model("iris-sklearn", **arguments)
        assert caught.value.status() == "501"
    assert triton.is_model_ready("iris-sklearn")


def test_an_unknown_model_is_neither_loaded_nor_unloaded(triton: Any) -> None:
    for verb in (triton.load_model, triton.unload_model):
        with pytest.raises(InferenceServerException, match='model "none" is not found'):
            verb("none")


def test_a_model_of_the_file_is_unloaded_and_loaded_by_command_line_and_python(
    platform: PlatformProcess, client: Platform
) -> None:
    status = client.unload("iris-lightgbm", message="night", wait=True)
    assert (status.state, status.owner, status.replicas_ready) == (ModelState.UNLOADED, "declared", 0)
    assert not platform.replicas("iris-lightgbm@1")
    status = client.load("iris-lightgbm", wait=True)
    assert (status.state, status.version) == (ModelState.READY, "1")
