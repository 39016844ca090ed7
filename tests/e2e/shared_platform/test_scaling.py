# SPDX-License-Identifier: Apache-2.0
"""Models that are scaled to zero, and come back when they are asked."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from platform_process import PlatformProcess, wait_until

from modelyard.admin import ModelState, ModelStatus
from modelyard.client import Platform
from modelyard.scaling import Decision

INPUTS = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}
NAME = "sleepy"


@pytest.fixture(scope="module")
def client(platform: PlatformProcess) -> Iterator[Platform]:
    with Platform.connect(platform.url) as opened:
        opened.register(
            NAME,
            framework="custom",
            uri="models/moody",
            options={"entrypoint": "model:Moody", "settings": {"answer": 7.0}},
            autoscaling={"min_replicas": 0, "max_replicas": 2, "downscale_to_zero_delay_s": 1},
            resources={"num_cpus": 0.02},
            wait=True,
        )
        yield opened
        opened.unregister(NAME, wait=True)


@pytest.fixture
def asleep(client: Platform, platform: PlatformProcess) -> ModelStatus:
    """The model without a replica."""

    def find() -> ModelStatus | None:
        status = client.status(NAME)
        return status if not status.replicas_wanted and not platform.replicas(f"{NAME}@1") else None

    status: ModelStatus = wait_until(find, 60, "its last replica to stop")
    return status


def test_without_a_replica_it_is_ready_and_nothing_is_woken_by_a_look(
    asleep: ModelStatus, platform: PlatformProcess, http: httpx.Client
) -> None:
    assert (asleep.state, asleep.replicas_ready) == (ModelState.READY, 0)
    assert asleep.reason == "scaled to zero: the next request starts a replica, and waits for it"
    assert asleep.inputs[0].name == "x"
    for path in (f"/v2/models/{NAME}", f"/v2/models/{NAME}/ready", f"/v2/models/{NAME}/stats", f"/v1/models/{NAME}"):
        assert http.get(path).status_code == 200, path
    assert not platform.replicas(f"{NAME}@1")


@pytest.mark.usefixtures("asleep")
def test_requests_wait_for_it_and_start_it_once(platform: PlatformProcess, client: Platform) -> None:
    def ask(_: int) -> list[float]:
        with httpx.Client(base_url=platform.url, timeout=60) as http:
            reply = http.post(f"/v2/models/{NAME}/infer", json=INPUTS)
        assert reply.status_code == 200, reply.text
        answer: list[float] = reply.json()["outputs"][0]["data"]
        return answer

    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(ask, range(40))) == [[7.0]] * 40
    assert len(platform.replicas(f"{NAME}@1")) == 1
    assert client.status(NAME).state is ModelState.READY


@pytest.mark.usefixtures("asleep", "client")
def test_it_is_woken_over_grpc_too(platform: PlatformProcess) -> None:
    with tritonclient.grpc.InferenceServerClient(platform.grpc) as grpc:
        assert grpc.is_model_ready(NAME)
        x = tritonclient.grpc.InferInput("x", [1], "FP64")
        x.set_data_from_numpy(np.ones(1))
        assert grpc.infer(NAME, [x]).as_numpy("y").tolist() == [7.0]


@pytest.mark.usefixtures("asleep")
def test_what_was_counted_before_is_still_known(client: Platform, http: httpx.Client) -> None:
    (found,) = http.get(f"/v2/models/{NAME}/stats").json()["model_stats"]
    assert found["inference_stats"]["success"]["count"] >= 41


def _register_deep(client: Platform, name: str, **scaling: Any) -> None:
    client.register(
        name,
        framework="custom",
        uri="models/moody",
        options={"entrypoint": "model:Moody", "settings": {"depth": 9.0}},
        autoscaling={"min_replicas": 1, "max_replicas": 4, "target_metrics": {"depth": 5}, "upscale_delay_s": 0}
        | scaling,
        resources={"num_cpus": 0.01},
        wait=True,
    )


def _find_decision(client: Platform, name: str, reason: str) -> Decision | None:
    found = client.status(name).scaling
    return found if found is not None and reason in found.reason else None


def test_a_model_is_scaled_by_what_it_reports_and_status_says_why(client: Platform, platform: PlatformProcess) -> None:
    _register_deep(client, "deep", max_replicas=2)
    try:
        wait_until(lambda: len(platform.replicas("deep@1")) == 2, 60, "another replica")
        decision = wait_until(lambda: _find_decision(client, "deep", "18 depth"), 30, "both to report")
        assert decision.reason == "at most 2; 18 depth, 5 for each ask for 4"
        assert (decision.replicas, decision.load.replicas, decision.load.own) == (2, 2, {"depth": 18.0})
        assert decision.load.cpus >= 0
    finally:
        client.unregister("deep", wait=True)


def test_a_policy_of_the_platforms_has_the_last_word(client: Platform, platform: PlatformProcess) -> None:
    _register_deep(client, "less", policy="one-less")
    try:
        decision = wait_until(lambda: _find_decision(client, "less", "my_policies:one_less says so"), 30, "the policy")
        assert decision.replicas == 1
        assert len(platform.replicas("less@1")) == 1
    finally:
        client.unregister("less", wait=True)


def test_hours_have_bounds_of_their_own(client: Platform, platform: PlatformProcess) -> None:
    always = {"start": "00:00", "end": "00:00", "min_replicas": 2}
    client.register(
        "hourly",
        framework="custom",
        uri="models/moody",
        options={"entrypoint": "model:Moody"},
        autoscaling={"min_replicas": 0, "max_replicas": 1, "schedule": [always], "upscale_delay_s": 0},
        resources={"num_cpus": 0.01},
        wait=True,
    )
    try:
        wait_until(lambda: len(platform.replicas("hourly@1")) == 2, 60, "the second replica")
        assert _find_decision(client, "hourly", "at least 2 from 00:00 to 00:00") is not None
    finally:
        client.unregister("hourly", wait=True)
