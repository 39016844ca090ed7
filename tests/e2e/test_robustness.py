# SPDX-License-Identifier: Apache-2.0
"""The platform is started again, gets another file, and loses processes, with a client asking all the time."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from conftest import KNOWN_OUTPUT
from load import Load
from made_models import write_constant, write_sleeper
from platform_process import BIN, PlatformProcess, base_document, running, wait_until
from s3_server import keep_port, s3_settings, serving_s3

from modelyard.admin import ModelState
from modelyard.client import Platform
from modelyard.errors import ModelyardError

ROW = [[5.1, 3.5, 1.4, 0.2]]
KEPT = ("iris-sklearn", "iris-lightgbm")


def small_document() -> dict[str, Any]:
    document = base_document()
    arguments = document["applications"][0]["args"]
    arguments["models"] = [model for model in arguments["models"] if model["name"] in KEPT]
    for model in arguments["models"]:
        model["autoscaling"] = {"min_replicas": 1, "max_replicas": 1}
    return document


@pytest.fixture(scope="module")
def second(make_folder: Callable[[], Path]) -> Iterator[PlatformProcess]:
    """A platform of two models and a pipeline, declared before the model that it waits for, to be hurt."""
    document = small_document()
    steps = [{"ensemble": [{"model": "iris-sklearn"}]}]
    panel = {"name": "panel", "framework": "pipeline", "options": {"steps": steps}, "resources": {"num_cpus": 0.1}}
    document["applications"][0]["args"]["models"].insert(0, panel)
    with running(PlatformProcess(make_folder(), document, settings=s3_settings(keep_port()))) as process:
        yield process
        assert process.stop() == 0


def replicas(platform: PlatformProcess) -> dict[str, set[int]]:
    """Process ids of all model replicas, once each application has settled on one."""

    def find() -> dict[str, set[int]]:
        found = platform.all_replicas()
        return found if all(len(pids) == 1 for pids in found.values()) else {}

    found: dict[str, set[int]] = wait_until(find, 30, "one replica of each model")
    return found


def ray_serve(platform: PlatformProcess, command: str, *arguments: str) -> str:
    """What Ray Serve's own command says to this platform's cluster."""
    address = re.findall(r"View the dashboard at \S*?(http://[\d.]+:\d+)", platform.log.read_text())[-1]
    done = subprocess.run(
        [str(BIN / "serve"), command, "--address", address, *arguments],
        cwd=platform.folder,
        env=platform.environment() | {"RAY_AUTH_MODE": "token"},  # the cluster made one; Ray's command does not look
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def deploy(platform: PlatformProcess) -> None:
    """`serve deploy` with the platform's file as it now is."""
    ray_serve(platform, "deploy", str(platform.write_file()))


def serve_status(platform: PlatformProcess) -> str:
    return ray_serve(platform, "status")


def kill(pids: set[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_registered_and_unloaded_models_survive_a_restart_under_plain_serve_run(
    make_folder: Callable[[], Path],
) -> None:
    process = PlatformProcess(make_folder(), small_document(), (str(BIN / "serve"), "run"))
    write_constant(process.folder / "models" / "mine", 3.0)
    with running(process), Platform.connect(process.url) as client:
        client.register("mine", framework="sklearn", uri="models/mine", message="kept", wait=True)
        client.unload("iris-lightgbm", wait=True)
        with tritonclient.grpc.InferenceServerClient(process.grpc) as grpc:
            assert grpc.is_model_ready("mine")
        assert process.stop() == 0
        assert process.unexplained(KNOWN_OUTPUT) == []
        process.start()
        assert client.wait_ready("mine").message == "kept"
        assert client.predict("mine", [[0.0]]).outputs["output-0"].tolist() == [3.0]
        assert client.predict("iris-sklearn", ROW).model_version == "1"
        assert client.status("iris-lightgbm").state is ModelState.UNLOADED
        assert not process.replicas("iris-lightgbm@1")
        assert client.load("iris-lightgbm", wait=True).version == "1"
        assert process.stop() == 0


def test_streams_pass_serves_python_proxy(make_folder: Callable[[], Path]) -> None:
    process = PlatformProcess(make_folder(), small_document(), (str(BIN / "serve"), "run"))
    with running(process), Platform.connect(process.url) as client:
        entrypoint = {"entrypoint": "model:Words"}
        client.register("words", framework="custom", uri="models/words", options=entrypoint, wait=True)
        url = f"{process.url}/v2/models/words/generate_stream"
        with httpx.stream("POST", url, json={"text_input": "to be or not"}, timeout=30) as reply:
            events = [line for line in reply.iter_lines() if line]
        assert [json.loads(event.removeprefix("data: "))["text_output"] for event in events] == [
            "to",
            "be",
            "or",
            "not",
        ]
        with tritonclient.grpc.InferenceServerClient(process.grpc) as grpc:
            assert grpc.get_inference_statistics("words").model_stats[0].inference_count == 1
            answers: queue.Queue[Any] = queue.Queue()
            grpc.start_stream(lambda result, error: answers.put(result or error))
            text = tritonclient.grpc.InferInput("text_input", [1], "BYTES")
            text.set_data_from_numpy(np.array([b"not to be"], dtype=object))
            grpc.async_stream_infer("words", [text], enable_empty_final_response=True)
            found = [answers.get(timeout=30) for _ in range(4)]
            grpc.stop_stream()
        assert [answer.as_numpy("text_output").item() for answer in found[:3]] == [b"not", b"to", b"be"]
        assert found[3].get_response().parameters["triton_final_response"].bool_param
        assert process.stop() == 0
        assert process.unexplained(KNOWN_OUTPUT) == []


def test_deploying_a_file_with_one_changed_model_touches_that_model_only(second: PlatformProcess) -> None:
    before = replicas(second)
    second.models["iris-lightgbm"]["options"] = {"num_threads": 2}
    with Load(second.url, "iris-sklearn", ROW) as untouched, Load(second.url, "iris-lightgbm", ROW, 2) as changed:
        deploy(second)
        wait_until(lambda: second.replicas("iris-lightgbm@2"), 60, "a replica of the changed model")
        wait_until(lambda: not second.replicas("iris-lightgbm@1"), 60, "the old replica to end")
    assert replicas(second)["iris-sklearn@1"] == before["iris-sklearn@1"]
    assert set(untouched.statuses) == {200}, untouched.refusals
    assert set(changed.statuses) == {200}, changed.refusals


def test_deploying_a_wrong_file_touches_nothing(second: PlatformProcess) -> None:
    before, options = replicas(second), second.models["iris-lightgbm"]["options"]
    second.models["iris-lightgbm"]["options"] = {"threads": 2}
    with Load(second.url, "iris-lightgbm", ROW, 2) as load:
        deploy(second)
        wait_until(lambda: "options.threads" in serve_status(second), 30, "Serve to refuse the file", 0.5)
    second.models["iris-lightgbm"]["options"] = options
    assert set(load.statuses) == {200}, load.refusals
    assert replicas(second) == before


def test_deploying_the_same_file_again_touches_nothing(second: PlatformProcess) -> None:
    before, controller = replicas(second), second.replicas("platform", "Controller")
    deploy(second)
    wait_until(lambda: "options.threads" not in serve_status(second), 30, "Serve to take the file", 0.5)
    with Platform.connect(second.url) as client:
        assert {status.state for status in client.list()} == {ModelState.READY}
    assert replicas(second) == before
    assert second.replicas("platform", "Controller") == controller


def test_a_model_without_replicas_is_woken_while_the_controller_is_new(second: PlatformProcess) -> None:
    write_constant(second.folder / "models" / "sleepy", 4.0)
    scaling = {"min_replicas": 0, "downscale_to_zero_delay_s": 1}
    with Platform.connect(second.url) as client:
        client.register("sleepy", framework="sklearn", uri="models/sleepy", autoscaling=scaling, wait=True)
        wait_until(lambda: not second.replicas("sleepy@1"), 60, "it to be scaled to zero")
        killed = second.replicas("platform", "Controller")
        kill(killed)
        assert client.predict("sleepy", [[0.0]]).outputs["output-0"].tolist() == [4.0]
        wait_until(lambda: second.replicas("platform", "Controller") - killed, 60, "another controller")
        wait_until(lambda: not second.replicas("sleepy@1"), 60, "it to be scaled to zero again")
        killed = second.replicas("platform", "Controller")
        kill(killed)
        wait_until(lambda: second.replicas("platform", "Controller") - killed, 60, "another controller")

        def is_known() -> bool:
            with suppress(ModelyardError):
                return client.status("sleepy").state is ModelState.READY
            return False

        wait_until(is_known, 60, "the controller to know it")
        assert not second.replicas("sleepy@1")
        assert client.predict("sleepy", [[0.0]]).outputs["output-0"].tolist() == [4.0]
        client.unregister("sleepy", wait=True)


def test_a_killed_controller_stops_no_request_and_comes_back(second: PlatformProcess) -> None:
    before, killed = replicas(second), second.replicas("platform", "Controller")
    write_constant(second.folder / "models" / "late", 5.0)
    with Load(second.url, "iris-sklearn", ROW) as load, Platform.connect(second.url, timeout_s=10) as client:
        kill(killed)

        def registers() -> bool:
            try:
                client.register("late", framework="sklearn", uri="models/late", wait=True, timeout_s=30)
            except ModelyardError:
                return False
            return True

        wait_until(registers, 60, "the controller to take a registration", 0.5)
        assert client.predict("late", [[0.0]]).outputs["output-0"].tolist() == [5.0]
        client.unregister("late", wait=True)
    assert set(load.statuses) == {200}, load.refusals
    assert replicas(second) == before
    assert len(second.replicas("platform", "Controller") - killed) == 1


def test_an_unload_survives_the_controller(second: PlatformProcess) -> None:
    killed = second.replicas("platform", "Controller")
    with Load(second.url, "iris-sklearn", ROW) as load, Platform.connect(second.url, timeout_s=10) as client:
        (version,) = {name for name in second.all_replicas() if name.startswith("iris-lightgbm@")}
        client.unload("iris-lightgbm")
        kill(killed)
        wait_until(lambda: not second.replicas(version), 60, "the model's process to end")
        wait_until(lambda: second.replicas("platform", "Controller") - killed, 60, "another controller")

        def state() -> ModelState | None:
            with suppress(ModelyardError):
                return client.status("iris-lightgbm").state
            return None

        wait_until(lambda: state() is ModelState.UNLOADED, 60, "the controller to say so", 0.5)
        with tritonclient.http.InferenceServerClient(second.host) as triton:
            assert not triton.is_model_ready("iris-lightgbm")
            triton.load_model("iris-lightgbm")
            assert triton.is_model_ready("iris-lightgbm")
    assert set(load.statuses) == {200}, load.refusals


def test_requests_wait_while_the_only_replica_of_a_model_is_replaced(second: PlatformProcess) -> None:
    killed = second.replicas("iris-sklearn@1")
    assert len(killed) == 1
    with (
        Load(second.url, "iris-sklearn", ROW) as load,
        Load(second.url, "panel", ROW, 2) as panel,
        Load(second.url, "iris-lightgbm", ROW, 1) as other,
    ):
        wait_until(lambda: min(load.answered, panel.answered) > 100, 30, "requests to be answered")
        kill(killed)
        wait_until(lambda: second.replicas("iris-sklearn@1") - killed, 60, "another replica")
        with Platform.connect(second.url) as client:
            client.wait_ready("iris-sklearn")
        now = (load.answered, panel.answered)
        wait_until(lambda: load.answered > now[0] + 100 and panel.answered > now[1] + 100, 30, "more answers")
    for asked in (load, panel):
        assert set(asked.statuses) == {200}, asked.refusals
    assert set(other.statuses) == {200}


def test_a_replica_that_comes_back_does_not_serve_other_files_as_the_same_version(second: PlatformProcess) -> None:
    folder = second.folder / "models" / "changed"
    write_constant(folder, 1.0)
    with Platform.connect(second.url) as client:
        client.register("changed", framework="sklearn", uri="models/changed", wait=True)
        write_constant(folder, 2.0)
        kill(second.replicas("changed@1"))
        wait_until(lambda: client.status("changed").state is ModelState.FAILED, 60, "the model to fail", 0.25)
        assert "have changed since this revision was registered" in client.status("changed").reason
        assert client.load("changed", wait=True).version == "2"
        assert client.predict("changed", [[0.0]]).outputs["output-0"].tolist() == [2.0]
        client.unregister("changed", wait=True)


def test_a_model_in_a_store_is_served_on_while_that_is_away(second: PlatformProcess) -> None:
    pytest.importorskip("s3fs", reason="pip install modelyard[s3]")
    shutil.copytree(second.folder / "models" / "iris-xgboost", second.folder / "buckets" / "models" / "iris")
    port = urlsplit(second.settings["AWS_ENDPOINT_URL"]).port
    with Platform.connect(second.url, timeout_s=60) as client:
        with serving_s3(second.folder / "buckets", port or 0):
            client.register(
                "stored", framework="xgboost", uri="s3://models/iris", resources={"num_cpus": 0.1}, wait=True
            )
        (expected,) = client.predict("stored", ROW).outputs.values()
        (replica,) = second.replicas("stored@1")
        (controller,) = second.replicas("platform", "Controller")
        kill({controller, replica})
        wait_until(lambda: second.replicas("stored@1") - {replica}, 60, "the next replica")
        wait_until(lambda: _is_ready(client, "stored"), 60, "it to be ready")
        (answer,) = client.predict("stored", ROW).outputs.values()
        assert answer.tolist() == expected.tolist()
        client.unregister("stored", wait=True)


def _is_ready(client: Platform, name: str) -> bool:
    try:
        return client.status(name).replicas_ready > 0
    except ModelyardError:  # the controller is new
        return False


def test_a_request_that_kills_its_replica_does_not_kill_the_platform(second: PlatformProcess) -> None:
    write_sleeper(second.folder / "models" / "sleeper")
    with Platform.connect(second.url) as client, Load(second.url, "iris-sklearn", ROW, 2) as load:
        client.register("sleeper", framework="sklearn", uri="models/sleeper", wait=True)
        killed = second.replicas("sleeper@1")
        with Load(second.url, "sleeper", [[0.5]], 2) as hurt:
            wait_until(lambda: hurt.answered, 30, "an answer")
            kill(killed)
            wait_until(lambda: second.replicas("sleeper@1") - killed, 60, "another replica")
            answered = hurt.answered
            wait_until(lambda: hurt.answered > answered, 60, "an answer of it")
        assert set(hurt.statuses) <= {200, 503}, hurt.refusals
        client.unregister("sleeper", wait=True)
    assert set(load.statuses) == {200}
