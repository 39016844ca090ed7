# SPDX-License-Identifier: Apache-2.0
"""What batching on the replica is worth: one slow model, registered twice, with and without batches.

The model costs the same time a call whatever the rows. Goal: 32 connections reach ten times the unbatched rate.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson

from load_tests import wrk
from load_tests.measurement import Measurement
from load_tests.processes import wait_until
from load_tests.servers import Server, is_ok

GOAL = 10.0
CONNECTIONS = 32
BODY = orjson.dumps({"instances": [[1.0, 2.0, 3.0, 4.0]]})


@dataclass(frozen=True, slots=True)
class SlowModel:
    """The framework that provides the slow model, where its artifact is, and the two names it is registered under."""

    framework: str
    uri: str
    batched: str = "bench-slow-batched"
    unbatched: str = "bench-slow-unbatched"
    max_batch_size: int = 32


def make_slow_model(folder: Path, cost_s: float = 0.005) -> SlowModel:
    """Write the model that costs ``cost_s`` a call, as a pickle that carries its own class, and return where it is."""
    import numpy as np
    from ray import cloudpickle

    class Slow:
        n_features_in_ = 4

        def predict(self, rows: Any) -> Any:
            time.sleep(cost_s)
            return np.zeros(len(rows))

    folder.mkdir(parents=True, exist_ok=True)
    Slow.__module__ = "__main__"  # so that the class travels in the pickle, by value
    (folder / "model.pkl").write_bytes(cloudpickle.dumps(Slow()))
    return SlowModel("sklearn", str(folder))


def registration(model: SlowModel, name: str, max_batch_size: int) -> dict[str, Any]:
    """Return the body of POST /platform/v1/models: the one place that knows its form."""
    batching = {"max_batch_size": max_batch_size, "batch_wait_timeout_s": 0.0}
    return {"name": name, "framework": model.framework, "uri": model.uri, "batching": batching}


def register(server: Server, model: SlowModel, timeout_s: float = 60) -> None:
    """Register both and wait until both are ready.

    Raises:
        ValueError: when the platform refuses one.
        TimeoutError: when one is not ready in time.
    """
    for name, size in ((model.batched, model.max_batch_size), (model.unbatched, 1)):
        response = httpx.post(f"{server.url}/platform/v1/models", json=registration(model, name, size), timeout=30)
        if response.is_error and response.status_code != httpx.codes.CONFLICT:
            raise ValueError(f"register {name}: {response.status_code} {response.text[:300]}")
    for name in (model.batched, model.unbatched):
        ready = f"{server.url}/v2/models/{name}/ready"
        if not wait_until(partial(is_ok, ready), timeout_s):
            raise TimeoutError(f"{name} is not ready after {timeout_s:g} s")


def unregister(server: Server, model: SlowModel) -> None:
    for name in (model.batched, model.unbatched):
        httpx.delete(f"{server.url}/platform/v1/models/{name}", timeout=60)


def measure(server: Server, model: SlowModel, seconds: float, warmup_s: float) -> dict[str, Measurement]:
    """Return the measurement of each name."""
    found = {}
    for name in (model.unbatched, model.batched):
        url = server.infer_url("v1", name)
        httpx.post(url, content=BODY, headers={"content-type": "application/json"}, timeout=30).raise_for_status()
        found[name] = wrk.measure(url, BODY, CONNECTIONS, seconds, warmup_s)
    return found


def describe(model: SlowModel, found: dict[str, Measurement]) -> str:
    """Return one sentence for the report."""
    batched, unbatched = found[model.batched], found[model.unbatched]
    ratio = batched.rate / unbatched.rate
    verdict = "reached" if ratio >= GOAL else "missed"
    return (
        f"batching at {CONNECTIONS} connections: {batched.rate:,.0f} req/s (p50 {batched.p50_ms:.1f} ms) with batches, "
        f"{unbatched.rate:,.0f} (p50 {unbatched.p50_ms:.1f} ms) without: {ratio:.1f}x, goal {GOAL:g}x, {verdict}; "
        f"errors {batched.errors} and {unbatched.errors}"
    )


def run(server: Server, model: SlowModel, seconds: float, warmup_s: float) -> str:
    """Register, measure, unregister; return the sentence."""
    register(server, model)
    try:
        return describe(model, measure(server, model, seconds, warmup_s))
    finally:
        unregister(server, model)
