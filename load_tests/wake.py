# SPDX-License-Identifier: Apache-2.0
"""How long the first request to a model takes that is scaled to zero: ``python -m load_tests.wake``.

Against a platform that runs (``make run``), with its model ``models/iris-sklearn``. Prints the median, the least
and the most of some wakes, and what the same request takes when the model is awake.
"""

from __future__ import annotations

import argparse
import statistics
import time

from modelyard import Platform
from modelyard.admin import ModelState

NAME = "wake-test"
ROW = [[5.1, 3.5, 1.4, 0.2]]


def wait_asleep(platform: Platform) -> None:
    """Returns when the model has no replica, and Serve has had time to end the last one."""
    while (status := platform.status(NAME)).replicas_wanted or status.state is not ModelState.READY:
        time.sleep(0.2)
    time.sleep(3)


def main() -> None:
    """Registers the model, wakes it again and again, takes it away."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--times", type=int, default=9)
    options = parser.parse_args()
    scaling = {"min_replicas": 0, "downscale_to_zero_delay_s": 1}
    with Platform.connect(options.url, timeout_s=60) as platform:
        platform.register(
            NAME, framework="sklearn", uri="models/iris-sklearn", autoscaling=scaling, resources={"num_cpus": 0.1}
        )
        platform.wait_ready(NAME)
        woken, awake = [], []
        for _ in range(options.times):
            wait_asleep(platform)
            for seconds in (woken, awake):
                began = time.perf_counter()
                platform.predict(NAME, ROW)
                seconds.append(time.perf_counter() - began)
        platform.unregister(NAME, wait=True)
    for what, seconds in (("woken", woken), ("awake", awake)):
        print(f"{what}: median {statistics.median(seconds):.3f} s, {min(seconds):.3f} to {max(seconds):.3f} s")


if __name__ == "__main__":
    main()
