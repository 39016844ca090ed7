# SPDX-License-Identifier: Apache-2.0
"""How long the first request to a model takes that is scaled to zero: ``python -m load_tests.wake``.

Starts a platform of its own in a folder of its own. Prints medians of the whole and of its parts, as the replica's log
has them, and what the same request takes when the model is awake. Then the same of models with a standby, each asked
for the first time since it sleeps.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from load_tests.pool import running, write_models
from modelyard import Platform
from modelyard.admin import ModelState

_ROW: Final = [[0.0] * 4]
_READY: Final = re.compile(r"ready after [\d.]+ s: process ([\d.]+) s, load ([\d.]+) s, warm-up ([\d.]+) s")
_PARTS: Final = ("until its process begins, and the answer's way", "process: Python, Ray, imports", "load", "warm-up")


def main() -> None:
    """Registers a model, wakes it again and again, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=9)
    times: int = parser.parse_args().times
    folder = Path(tempfile.mkdtemp(prefix="my-"))
    (name,) = write_models(folder / "models", 1)
    scaling = {"min_replicas": 0, "downscale_to_zero_delay_s": 1}
    wakes, awake, standby = [], [], []
    names = [f"{name}-{number}" for number in range(times)]
    with running(folder, 400) as url, Platform.connect(url, timeout_s=60) as platform:
        platform.register(
            name, framework="sklearn", uri=f"models/{name}", autoscaling=scaling, resources={"num_cpus": 0.1}, wait=True
        )
        for _ in range(times):
            _wait_asleep(platform, name)
            woken_s = _ask(platform, name)
            parts = _find_parts(folder, name)
            wakes.append((woken_s - sum(parts), *parts))
            awake.append(_ask(platform, name))
        platform.unregister(name, wait=True)
        for one in names:
            platform.register(
                one,
                framework="sklearn",
                uri=f"models/{name}",
                autoscaling=scaling | {"standby": True},
                resources={"num_cpus": 0.1},
                wait=True,
            )
            _wait_asleep(platform, one)
        for one in names:
            standby.append(_ask(platform, one))
            _wait_awake(platform, one)
    _show("woken", [sum(parts) for parts in wakes])
    for what, seconds in zip(_PARTS, zip(*wakes, strict=True), strict=True):
        _show(f"  {what}", seconds)
    _show("awake", awake)
    _show("woken, with a standby", standby)


def _wait_asleep(platform: Platform, name: str) -> None:
    """Returns when the model has no replica, and Serve has had time to end the last one."""
    while (status := platform.status(name)).replicas_wanted or status.state is not ModelState.READY:
        time.sleep(0.2)
    time.sleep(3)


def _wait_awake(platform: Platform, name: str) -> None:
    """Returns when it has started, so that the next one is not measured beside that."""
    while not platform.status(name).replicas_ready:
        time.sleep(0.2)


def _ask(platform: Platform, name: str) -> float:
    began = time.perf_counter()
    platform.predict(name, _ROW)
    return time.perf_counter() - began


def _find_parts(folder: Path, name: str) -> tuple[float, ...]:
    """Of the start that ended last."""
    logs = folder.glob(f"ray/session_latest/logs/serve/replica_{name}*")
    newest = max(logs, key=lambda log: log.stat().st_mtime)
    return tuple(map(float, _READY.findall(newest.read_text())[-1]))


def _show(what: str, seconds: Sequence[float]) -> None:
    print(f"{what}: median {statistics.median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f} s")


if __name__ == "__main__":
    main()
