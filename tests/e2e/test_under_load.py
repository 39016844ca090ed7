# SPDX-License-Identifier: Apache-2.0
"""Sixteen clients ask all the time while everything that can change does, and processes are killed."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3
from platform_process import PlatformProcess, base_document, running, wait_until
from test_robustness import deploy

from modelyard.admin import ModelState
from modelyard.client import Platform
from modelyard.errors import ModelyardError
from modelyard.rollout import RolloutState

BODY = json.dumps({"instances": [1.0]}).encode()
CLIENTS = 16
SLEEPING = {"min_replicas": 0, "downscale_to_zero_delay_s": 2}


class Asking:
    """Asks the model from several threads, each once for each answer, until it is left; keeps what came."""

    def __init__(self, url: str, model: str) -> None:
        self._url = f"{url}/v1/models/{model}:predict"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(CLIENTS)]
        self.answers: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    def _ask_on(self) -> None:
        with urllib3.PoolManager(timeout=60) as pool:
            while not self._stop.is_set():
                try:
                    reply = pool.request("POST", self._url, body=BODY, retries=False)
                    text, is_answer = reply.data.decode(), reply.status == 200
                except urllib3.exceptions.HTTPError as exc:
                    text, is_answer = repr(exc), False
                with self._lock:
                    (self.answers if is_answer else self.failures)[text] += 1

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self, what: str) -> None:
        """After each change many more are answered, and none has failed."""
        before = self.answers.total()
        wait_until(lambda: self.answers.total() > before + 5 * CLIENTS, 60, f"requests after: {what}")
        assert not self.failures, what


def steady(answer: float, **more: Any) -> dict[str, Any]:
    return {
        "framework": "custom",
        "uri": "models/moody",
        "options": {"entrypoint": "model:Moody", "settings": {"answer": answer}},
        "autoscaling": {"min_replicas": 2, "max_replicas": 2},
        "resources": {"num_cpus": 0.02},
        **more,
    }


@pytest.fixture(scope="module")
def busy(make_folder: Callable[[], Any]) -> Iterator[PlatformProcess]:
    """A platform with two ingress replicas and one declared model beside those that are registered."""
    document = base_document()
    arguments = document["applications"][0]["args"]
    arguments["models"] = [model for model in arguments["models"] if model["name"] == "iris-sklearn"]
    arguments["ingress"] = {"num_replicas": 2}
    with running(PlatformProcess(make_folder(), document)) as process:
        yield process
        assert process.stop() == 0


def kill_one(platform: PlatformProcess, application: str, deployment: str = "Model") -> None:
    """Kills one of its replicas, and waits until there are as many as before."""
    before = set(platform.replicas(application, deployment))
    os.kill(min(before), signal.SIGKILL)

    def is_whole() -> bool:
        now = set(platform.replicas(application, deployment))
        return len(now) == len(before) and now != before

    wait_until(is_whole, 120, f"another {deployment} of {application}")


def until_known(client: Platform, name: str) -> Any:
    """A status, as soon as there is a controller that gives one."""

    def ask() -> Any:
        try:
            return client.status(name)
        except ModelyardError:
            return None

    return wait_until(ask, 60, "the controller")


def ready_with_traffic(client: Platform, name: str) -> set[int]:
    return {one.number for one in client.revisions(name) if one.traffic and one.state == ModelState.READY.value}


def test_no_request_fails_whatever_changes(busy: PlatformProcess) -> None:
    with Platform.connect(busy.url, timeout_s=60) as client:
        client.register("steady", **steady(1.0), wait=True)
        with Asking(busy.url, "steady") as load:
            load.goes_on("the start")
            client.register("other", **steady(0.0, autoscaling=SLEEPING), wait=True)
            load.goes_on("another model is registered")
            wait_until(lambda: not busy.replicas("other@1"), 60, "the other model to sleep")
            load.goes_on("the other model sleeps")
            with Asking(busy.url, "other") as woken:
                woken.goes_on("all ask it at once")
            assert not woken.failures
            load.goes_on("the other model has woken")
            client.register("steady", **steady(2.0), wait=True)
            load.goes_on("an update")
            client.register("steady", **steady(3.0, rollout={"steps": [1, 10, 50, 100], "interval_s": 1}))
            wait_until(lambda: client.status("steady").rollout.state is RolloutState.PROMOTED, 120, "the canary")
            load.goes_on("a canary from 1 % to 100 %")
            client.rollback("steady", wait=True)
            load.goes_on("a rollback")
            client.set_traffic("steady", {"2": 50, "3": 50})
            wait_until(lambda: ready_with_traffic(client, "steady") == {2, 3}, 60, "both revisions")
            load.goes_on("weights set by hand")
            client.set_traffic("steady", {"2": 100})
            wait_until(lambda: not busy.replicas("steady@3"), 60, "the other revision to go")
            load.goes_on("weights taken back")
            client.register("steady", **steady(3.0, autoscaling={"min_replicas": 3}))
            wait_until(lambda: client.status("steady").replicas_ready == 3, 60, "a third replica")
            load.goes_on("more replicas")
            client.unregister("other", wait=True)
            load.goes_on("the other model is gone")
            kill_one(busy, "steady@2")
            load.goes_on("a killed replica")
            kill_one(busy, "platform", "Controller")
            until_known(client, "steady")
            load.goes_on("a killed controller")
            client.register("alone", **steady(4.0, autoscaling={"min_replicas": 1}), wait=True)
            with Asking(busy.url, "alone") as alone:
                alone.goes_on("a model of one replica")
                kill_one(busy, "alone@1")
                alone.goes_on("its only replica killed")
            assert not alone.failures
            client.unregister("alone", wait=True)
            kill_one(busy, "platform", "Ingress")
            load.goes_on("a killed ingress replica")
            busy.document["applications"][0]["args"]["ingress"]["max_body_bytes"] = 1_000_000
            before = set(busy.replicas("platform", "Ingress"))
            deploy(busy)
            wait_until(
                lambda: len(set(busy.replicas("platform", "Ingress")) - before) == 2, 120, "new ingress replicas"
            )
            load.goes_on("the platform's application deployed anew")
            assert until_known(client, "steady").state is ModelState.READY
    assert not load.failures
    assert set(load.answers) == {'{"predictions":[1.0]}', '{"predictions":[2.0]}', '{"predictions":[3.0]}'}
