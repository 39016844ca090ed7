# SPDX-License-Identifier: Apache-2.0
"""How long a changed weight takes to hold in all ingress replicas: ``python -m load_tests.switch``.

Starts a platform of its own in a folder of its own, with two revisions of a model that answer different numbers. All
traffic goes from one to the other and back under constant load; what counts is when the last request began that the old
one still answered, after the change was asked for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx

from load_tests.pool import running, write_models
from modelyard import Platform

_MODEL = "switched"
_PATH = f"/v1/models/{_MODEL}:predict"


class _Client(threading.Thread):
    """Asks again and again; ``answers`` has when each request began, and which number came back."""

    def __init__(self, url: str, ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self.answers: list[tuple[float, float]] = []
        self.failures: list[str] = []
        self._url = url
        self._ended = ended

    def run(self) -> None:
        """Until it is ended."""
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._ended.is_set():
                began = time.perf_counter()
                reply = client.post(_PATH, json={"instances": [[0.0] * 4]})
                if reply.status_code == 200:
                    self.answers.append((began, reply.json()["predictions"][0]))
                else:
                    self.failures.append(reply.text)


def main() -> None:
    """Registers both revisions, moves the traffic, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--ingress-replicas", type=int, default=2)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="my-"))
    names = write_models(folder / "models", 2)
    ended = threading.Event()
    lasts: list[float] = []
    with (
        running(folder, 400, {"num_replicas": options.ingress_replicas}) as url,
        Platform.connect(url, timeout_s=60) as platform,
    ):
        for name in names:
            platform.register(
                _MODEL, framework="sklearn", uri=f"models/{name}", rollout={"steps": []}, resources={"num_cpus": 0.1}
            )
            platform.wait_ready(_MODEL)
        _wait_both(platform)
        platform.set_traffic(_MODEL, {1: 100, 2: 0})
        clients = [_Client(url, ended) for _ in range(options.clients)]
        for client in clients:
            client.start()
        for number in range(options.times):
            time.sleep(1.5)
            asked = time.perf_counter()
            old = number % 2
            platform.set_traffic(_MODEL, {2 - old: 100, 1 + old: 0})
            time.sleep(1.5)
            began = [begun - asked for client in clients for begun, answer in client.answers if answer == old]
            lasts.append(max(began))
        ended.set()
        for client in clients:
            client.join()
    count = sum(len(client.answers) for client in clients)
    failures = [failure for client in clients for failure in client.failures]
    print(f"{options.times} changes, {options.ingress_replicas} ingress replicas, {options.clients} clients")
    print(f"{count} answers, {len(failures)} failures {failures[:1]}")
    print(f"the last request to the old revision began {statistics.median(lasts):.3f} s after the change was asked for")
    print(f"in the median, {max(lasts):.3f} s at most")


def _wait_both(platform: Platform) -> None:
    """Returns when both revisions answer."""
    while {one.state for one in platform.revisions(_MODEL)} != {"ready"}:
        time.sleep(0.2)


if __name__ == "__main__":
    main()
