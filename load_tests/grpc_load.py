# SPDX-License-Identifier: Apache-2.0
"""gRPC load by the published tritonclient, raw tensors, a fixed number of calls in flight.

`measure` starts this module as a process of its own, so that the load generator shares no interpreter with anything
else: `python -m load_tests.grpc_load` reads a plan from standard input and prints the counts.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from load_tests.measurement import Measurement, percentile
from load_tests.workloads import Question, check_answers


@dataclass(frozen=True, slots=True)
class Plan:
    """What the process is told: whom to ask what, and how hard."""

    address: str
    model: str
    input_name: str
    datatype: str
    rows: list[list[float]]
    answers: list[Any]
    in_flight: int
    seconds: float
    warmup_s: float


def measure(address: str, question: Question, in_flight: int, seconds: float, warmup_s: float) -> Measurement:
    """Measure in a process of its own.

    Raises:
        RuntimeError: when the process fails; the message has its last lines.
    """
    model = question.model
    rows = model.rows.tolist()
    plan = Plan(
        address, model.name, question.input_name, question.datatype, rows, model.answers, in_flight, seconds, warmup_s
    )
    command = [sys.executable, "-m", "load_tests.grpc_load"]
    done = subprocess.run(command, input=json.dumps(asdict(plan)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"gRPC load on {address}: {' '.join(done.stderr.strip().splitlines()[-2:])}")
    return Measurement(**json.loads(done.stdout))


class Caller:
    """One channel, one request prepared once, many loops that send it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._client = triton.InferenceServerClient(plan.address)
        tensor = np.asarray(plan.rows, triton_to_np_dtype(plan.datatype))
        self._input = triton.InferInput(plan.input_name, tensor.shape, plan.datatype)
        self._input.set_data_from_numpy(tensor)
        self.latencies_s: list[float] = []
        self.errors = 0

    async def check(self) -> None:
        """Ask once and check the content."""
        result = await self._client.infer(self._plan.model, [self._input])
        name = result.get_response().outputs[0].name
        check_answers(result.as_numpy(name), self._plan.answers, self._plan.address)

    async def load(self, seconds: float) -> None:
        """Keep the planned number of calls in flight for `seconds`."""
        until = time.perf_counter() + seconds
        await asyncio.gather(*(self._loop(until) for _ in range(self._plan.in_flight)))

    async def _loop(self, until: float) -> None:
        while (begun := time.perf_counter()) < until:
            try:
                await self._client.infer(self._plan.model, [self._input])
            except InferenceServerException:
                self.errors += 1
            self.latencies_s.append(time.perf_counter() - begun)

    async def close(self) -> None:
        await self._client.close()


async def run(plan: Plan) -> Measurement:
    """Check, warm up, measure, check again."""
    caller = Caller(plan)
    await caller.check()
    await caller.load(plan.warmup_s)
    caller.latencies_s, caller.errors = [], 0
    begun, cpu = time.perf_counter(), time.process_time()
    await caller.load(plan.seconds)
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    await caller.check()
    await caller.close()
    ordered = sorted(caller.latencies_s)
    p50_ms, p99_ms = percentile(ordered, 0.50) * 1e3, percentile(ordered, 0.99) * 1e3
    return Measurement(len(ordered), took, p50_ms, p99_ms, caller.errors, cpu / took)


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(run(Plan(**json.load(sys.stdin)))))))
