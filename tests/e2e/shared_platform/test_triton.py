# SPDX-License-Identifier: Apache-2.0
"""A Triton model repository on the platform: its models under their own names, its server's life and death."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import triton_server
import tritonclient.grpc
from platform_process import PlatformProcess, wait_until

from modelyard.admin import ModelState, ModelStatus
from modelyard.client import Platform
from modelyard_deployments.examples import make_examples

NAME = "repository"
FLOWERS = [[5.1, 3.5, 1.4, 0.2], [5.6, 2.8, 4.1, 1.3]]
INPUTS = {"inputs": [{"name": "measurements", "datatype": "FP32", "shape": [2, 4], "data": FLOWERS}]}


def triton_processes(platform: PlatformProcess) -> dict[int, str]:
    """What a replica starts: the server, its guard, its models."""
    marks = ("/tritonserver ", "_triton_guard", "triton_python_backend_stub")
    return {pid: found for pid, found in platform.processes().items() if any(mark in found for mark in marks)}


def regions() -> set[str]:
    """Names of the shared memory of all servers that replicas have started."""
    return {path.name for path in Path("/dev/shm").glob("modelyard_triton_*")}


def server_pid(platform: PlatformProcess) -> int:
    (pid,) = [pid for pid, found in triton_processes(platform).items() if "/bin/tritonserver " in found]
    return pid


@pytest.fixture(scope="module", autouse=True)
def repository(platform: PlatformProcess) -> Iterator[None]:
    """The example's, with a model that fails to load."""
    if not triton_server.INSTALLED.is_installed:
        pytest.skip(triton_server.NOT_INSTALLED)
    others = regions()  # whose servers were killed together with their guards, or still run
    make_examples(platform.folder / "models", ["triton-demo"])
    folder = platform.folder / "models" / "triton-demo"
    shutil.copytree(triton_server.REPOSITORY / "unloadable", folder / "unloadable")
    with Platform.connect(platform.url) as client:
        client.register(NAME, framework="triton", uri="models/triton-demo", resources={"num_cpus": 0.05})
        client.wait_ready(NAME, timeout_s=90)
        yield
        client.unregister(NAME, wait=True)
    wait_until(lambda: not triton_processes(platform), 30, "the server to end")
    wait_until(lambda: not regions() - others, 30, "its shared memory to be removed")
    shutil.rmtree(folder)


def closeness(http: httpx.Client) -> Any:
    reply = http.post("/v2/models/triton-iris/infer", json=INPUTS)
    assert reply.status_code == 200, reply.text
    return np.reshape(reply.json()["outputs"][0]["data"], (2, 3))


def test_its_models_have_metadata_and_configuration_of_their_own(http: httpx.Client) -> None:
    metadata = http.get("/v2/models/triton-iris").json()
    assert metadata["inputs"] == [{"name": "measurements", "datatype": "FP32", "shape": [-1, 4]}]
    assert metadata["platform"] == "triton"
    assert http.get("/v2/models/triton-spell/config").json()["model_transaction_policy"] == {"decoupled": True}
    index = {entry["name"]: entry["state"] for entry in http.post("/v2/repository/index").json()}
    assert {index[name] for name in ("triton-iris", "triton-scale", "triton-nearest", "triton-spell")} == {"READY"}
    assert "unloadable" not in index


def test_the_repository_says_what_it_has_and_what_failed(http: httpx.Client) -> None:
    reply = http.post(f"/v2/models/{NAME}/infer", json={"inputs": []})
    assert reply.status_code == 400
    assert '"triton-iris"' in reply.json()["error"]
    assert '"unloadable" failed: Internal: ValueError: cannot be loaded' in reply.json()["error"]
    with Platform.connect(str(http.base_url)) as client:
        assert "triton-iris" in client.status(NAME).members


def test_an_ensemble_answers_over_every_protocol(platform: PlatformProcess, http: httpx.Client) -> None:
    expected = closeness(http)
    assert expected.argmax(axis=1).tolist() == [0, 1]
    rows = http.post("/v1/models/triton-iris:predict", json={"instances": FLOWERS}).json()["predictions"]
    assert np.allclose(rows, expected)
    with tritonclient.grpc.InferenceServerClient(platform.grpc) as client:
        one = tritonclient.grpc.InferInput("measurements", [2, 4], "FP32")
        one.set_data_from_numpy(np.float32(FLOWERS))
        assert np.allclose(client.infer("triton-iris", [one]).as_numpy("closeness"), expected)


def test_classes_have_the_names_of_the_label_file(http: httpx.Client) -> None:
    asked = INPUTS | {"outputs": [{"name": "closeness", "parameters": {"classification": 1}}]}
    best = http.post("/v2/models/triton-iris/infer", json=asked).json()["outputs"][0]["data"]
    assert [one.split(":")[2] for one in best] == ["setosa", "versicolor"]


def test_a_decoupled_model_streams(http: httpx.Client) -> None:
    with http.stream("POST", "/v2/models/triton-spell/generate_stream", json={"text_input": "hä!"}) as reply:
        events = [line for line in reply.iter_lines() if line]
    assert [event.split('"text_output":"')[1][0] for event in events] == ["h", "ä", "!"]


def test_each_model_is_counted_for_itself(http: httpx.Client) -> None:
    def count(name: str) -> int:
        (found,) = http.get(f"/v2/models/{name}/stats").json()["model_stats"]
        return int(found["inference_stats"]["success"]["count"])

    before = count("triton-iris"), count("triton-scale")
    closeness(http)
    assert (count("triton-iris"), count("triton-scale")) == (before[0] + 1, before[1])


def test_wrong_input_is_the_clients_mistake(http: httpx.Client) -> None:
    wide = {"inputs": [{"name": "measurements", "datatype": "FP32", "shape": [1, 5], "data": [1, 2, 3, 4, 5]}]}
    reply = http.post("/v2/models/triton-iris/infer", json=wide)
    assert reply.status_code == 400
    assert "expected FP32 [-1,4], got" in reply.json()["error"]


def test_documentation_is_there(http: httpx.Client) -> None:
    for name in (NAME, "triton-iris", "triton-spell"):
        assert http.get(f"/v2/models/{name}/openapi.json").status_code == 200


def test_a_killed_server_comes_back_and_meanwhile_503(platform: PlatformProcess, http: httpx.Client) -> None:
    expected = closeness(http)
    os.kill(server_pid(platform), signal.SIGKILL)
    reply = wait_until(lambda: _unavailable(http, "its Triton has ended and is being started"), 30, "its end", 0.01)
    assert "retry-after" in reply.headers
    wait_until(lambda: not _unavailable(http), 60, "the server")
    assert np.allclose(closeness(http), expected)


def _unavailable(http: httpx.Client, reason: str = "") -> httpx.Response | None:
    """A refusal, for that reason: a call that was there when the server died has another one."""
    reply = http.post("/v2/models/triton-iris/infer", json=INPUTS)
    assert reply.status_code in (200, 503), reply.text
    return reply if reply.status_code == 503 and reason in reply.json()["error"] else None


def test_a_triton_elsewhere_is_reached_through_the_platform(platform: PlatformProcess, http: httpx.Client) -> None:
    theirs = triton_server.TritonServer(triton_server.REPOSITORY, ("sums",))
    row = {"inputs": [{"name": "INPUT", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    with triton_server.running(theirs), Platform.connect(platform.url) as client:
        client.register("remote", framework="triton", uri=f"grpc://{theirs.grpc}", resources={"num_cpus": 0.05})
        client.wait_ready("remote", timeout_s=60)
        for name in ("sums", "remote"):  # its only model answers for it too
            reply = http.post(f"/v2/models/{name}/infer", json=row | {"outputs": [{"name": "SUM"}]})
            assert reply.json()["outputs"][0]["data"] == [10.0]
        client.unregister("remote", wait=True)
        assert theirs.is_ready()


def test_nobody_at_the_url_is_said_in_the_status(platform: PlatformProcess) -> None:
    with Platform.connect(platform.url) as client:
        client.register("nobody", framework="triton", uri="grpc://127.0.0.1:1", resources={"num_cpus": 0.05})
        status = wait_until(lambda: _find_failed(client, "nobody"), 60, "it to fail")
        assert "Triton at 127.0.0.1:1 does not answer: UNAVAILABLE" in status.reason
        client.unregister("nobody", wait=True)


def _find_failed(client: Platform, name: str) -> ModelStatus | None:
    status = client.status(name)
    return status if status.state is ModelState.FAILED else None
