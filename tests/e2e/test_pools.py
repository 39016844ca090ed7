# SPDX-License-Identifier: Apache-2.0
"""A thousand models in one process: each answers for itself, and memory stays within its budget."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from conftest import KNOWN_OUTPUT
from load_tests.pool import ask_all, register_all, write_models
from platform_process import PlatformProcess, base_document, running, wait_until

from modelyard.admin import ModelState, PoolProcess
from modelyard.client import Platform

COUNT = 1000
MEMORY_MB = 400
POOL = "pool@sklearn"
KILLED = {r"\(raylet\) A worker died or was killed while executing a task": "a test kills processes"}


@pytest.fixture(scope="module")
def pooled(make_folder: Any) -> Iterator[PlatformProcess]:
    """A platform for these models alone."""
    document = base_document()
    args = document["applications"][0]["args"]
    args["models"] = []
    args["pools"] = {"memory_mb": MEMORY_MB, "resources": {"num_cpus": 0.1}}
    process = PlatformProcess(make_folder(), document)
    with running(process):
        yield process
        assert process.stop() == 0
        assert process.unexplained(KNOWN_OUTPUT | KILLED) == []


@pytest.fixture(scope="module")
def client(pooled: PlatformProcess) -> Iterator[Platform]:
    with Platform.connect(pooled.url, timeout_s=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def names(pooled: PlatformProcess, client: Platform) -> list[str]:
    made = write_models(pooled.folder / "models", COUNT)
    register_all(client, made)
    return made


def _process(client: Platform) -> PoolProcess:
    (pool,) = client.pools()
    (process,) = pool.replicas
    return process


def test_all_of_them_answer_within_their_memory(pooled: PlatformProcess, client: Platform, names: list[str]) -> None:
    assert client.pools()[0].revisions == COUNT
    assert len(pooled.replicas(POOL)) == 1
    ask_all(pooled.url, names, clients=8, requests=1500)
    process = _process(client)
    assert process.hits
    assert process.loads > process.evictions > 0
    assert process.loaded < COUNT
    assert process.memory_mb <= process.memory_limit_mb == MEMORY_MB
    assert len(pooled.replicas(POOL)) == 1


def test_they_are_models_like_others(pooled: PlatformProcess, client: Platform, names: list[str]) -> None:
    name = names[COUNT // 2]
    with httpx.Client(base_url=pooled.url, timeout=60) as http:
        assert http.get(f"/v2/models/{name}").json()["inputs"][0]["shape"] == [-1, 4]
        for _ in range(3):
            body = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 4], "data": [COUNT / 2] * 4}]}
            reply = http.post(f"/v2/models/{name}/infer", json=body)
            assert reply.json()["outputs"][0]["data"] == [COUNT // 2]
        counted = http.get(f"/v2/models/{name}/stats").json()["model_stats"][0]
        assert counted["inference_stats"]["success"]["count"] >= 3
        wrong = http.post(f"/v1/models/{name}:predict", json={"instances": [[1, 2]]})
        assert wrong.status_code == 400, wrong.text
    assert client.status(name).replicas_ready == 1


def test_one_that_cannot_be_loaded_fails_alone(pooled: PlatformProcess, client: Platform, names: list[str]) -> None:
    folder = pooled.folder / "models" / "torn"
    shutil.copytree(pooled.folder / "models" / names[0], folder)
    whole = (folder / "model.joblib").read_bytes()
    (folder / "model.joblib").write_bytes(whole[:1000])
    client.register("torn", framework="sklearn", uri="models/torn", shared=True)
    status = wait_until(lambda: _find(client, "torn", ModelState.FAILED), 60, "the torn model to fail")
    assert status.reason
    assert str(pooled.folder) not in status.reason
    ask_all(pooled.url, names, clients=4, requests=50)
    (folder / "model.joblib").write_bytes(whole)
    client.register("torn", framework="sklearn", uri="models/torn", shared=True, wait=True)
    assert client.predict("torn", [[0.0] * 4]) is not None
    client.unregister("torn", wait=True)
    assert client.pools()[0].revisions == COUNT


def _find(client: Platform, name: str, state: ModelState) -> Any:
    status = client.status(name)
    return status if status.state is state else None


def test_killed_in_the_middle_it_is_started_again_and_clients_who_try_again_lose_nothing(
    pooled: PlatformProcess, names: list[str]
) -> None:
    def ask(number: int) -> None:
        def answered() -> bool:
            reply = http.post(f"/v1/models/{names[number]}:predict", json={"instances": [[float(number)] * 4]})
            assert reply.status_code in (200, 500, 503), reply.text  # 500 for what was sent to the next one, too
            return reply.status_code == 200 and reply.json()["predictions"] == [number]

        wait_until(answered, 60, f"{names[number]} to answer")

    (victim,) = pooled.replicas(POOL)
    with httpx.Client(base_url=pooled.url, timeout=60) as http, ThreadPoolExecutor(8) as workers:
        asking = [workers.submit(ask, number) for number in range(60)]
        os.kill(victim, signal.SIGKILL)
        for one in asking:
            one.result()
    assert pooled.replicas(POOL) != {victim}


def test_a_controller_that_starts_anew_loads_none_of_them_again(
    pooled: PlatformProcess, client: Platform, names: list[str]
) -> None:
    ask_all(pooled.url, names[:20], clients=4, requests=40)
    before = _process(client)
    (controller,) = pooled.replicas("platform", "Controller")
    os.kill(controller, signal.SIGKILL)
    wait_until(lambda: pooled.replicas("platform", "Controller") - {controller}, 60, "the next controller")
    ask_all(pooled.url, names[:20], clients=4, requests=40)
    wait_until(lambda: _is_answering(client), 60, "the next controller to answer")
    ask_all(pooled.url, names[:20], clients=4, requests=40)
    after = _process(client)
    assert after.loads == before.loads
    assert all(status.state is ModelState.READY for status in client.list())


def _is_answering(client: Platform) -> bool:
    try:
        return len(client.list()) >= COUNT
    except Exception:  # noqa: BLE001  # it is away in one of many ways
        return False


def test_a_model_that_sleeps_is_answered_for_until_its_own_process_is_there(
    pooled: PlatformProcess, client: Platform
) -> None:
    (name,) = write_models(pooled.folder / "asleep", 1)
    application = f"{name}-own@1"
    scaling = {"min_replicas": 0, "standby": True, "downscale_to_zero_delay_s": 5}
    client.register(
        f"{name}-own",
        framework="sklearn",
        uri=f"asleep/{name}",
        autoscaling=scaling,
        resources={"num_cpus": 0.1},
        wait=True,
    )
    wait_until(lambda: not pooled.replicas(application), 60, "the model to sleep")
    before = _process(client)

    def ask(number: int) -> bool:
        (answer,) = client.predict(f"{name}-own", [[float(number)] * 4]).outputs.values()
        assert answer.tolist() == [0]
        return not pooled.replicas(application)

    with ThreadPoolExecutor(8) as workers:
        assert any(list(workers.map(ask, range(16)))), "all answers waited for the model's own process"
    after = _process(client)
    assert after.hits + after.misses > before.hits + before.misses
    wait_until(lambda: len(pooled.replicas(application)) == 1, 60, "the model's own process")
    wait_until(lambda: client.status(f"{name}-own").replicas_ready, 60, "the model's own replica")
    ask(0)
    with httpx.Client(base_url=pooled.url, timeout=60) as http:
        counted = http.get(f"/v2/models/{name}-own/stats").json()["model_stats"][0]
    assert counted["inference_stats"]["success"]["count"] == 17
    client.unregister(f"{name}-own", wait=True)
