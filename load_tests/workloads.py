# SPDX-License-Identifier: Apache-2.0
"""What is asked: the workloads, their request bodies, and the check that an answer is the right one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import orjson

from load_tests.artifacts import BREAST_CANCER, IRIS, BenchModel
from load_tests.servers import Protocol, Server

NUMPY = {"FP64": np.float64, "FP32": np.float32}


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of the table.

    `min_rate_ratio` is the goal against the better peer's rate, `max_p50_ratio` against the better peer's p50; None: no
    goal.
    """

    title: str
    protocol: Protocol
    model: str
    concurrency: int
    min_rate_ratio: float | None = None
    max_p50_ratio: float | None = None


WORKLOADS = (
    Workload("v1 JSON, 1 row", "v1", IRIS, 1, max_p50_ratio=2.5),
    Workload("v1 JSON, 1 row", "v1", IRIS, 32, min_rate_ratio=2.0),
    Workload("v2 JSON, 1 row", "v2", IRIS, 1, max_p50_ratio=2.5),
    Workload("v2 JSON, 1 row", "v2", IRIS, 32, min_rate_ratio=2.0),
    Workload("v2 JSON, 256x30", "v2", BREAST_CANCER, 1, max_p50_ratio=2.5),
    Workload("v2 JSON, 256x30", "v2", BREAST_CANCER, 32, min_rate_ratio=1.3),
    Workload("gRPC raw, 1 row", "grpc", IRIS, 1, max_p50_ratio=2.5),
    Workload("gRPC raw, 1 row", "grpc", IRIS, 16, min_rate_ratio=1.3),
    Workload("gRPC raw, 256x30", "grpc", BREAST_CANCER, 1, max_p50_ratio=2.5),
    Workload("gRPC raw, 256x30", "grpc", BREAST_CANCER, 16, min_rate_ratio=1.3),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A model's rows as every server is sent them: one tensor of this name and datatype."""

    model: BenchModel
    input_name: str = "input-0"
    datatype: str = "FP64"

    @property
    def tensor(self) -> np.ndarray:
        return np.ascontiguousarray(self.model.rows, NUMPY[self.datatype])

    def body(self, protocol: Protocol) -> bytes:
        """Return the JSON body: v1 with the rows as instances, v2 with the data flat."""
        if protocol == "v1":
            return orjson.dumps({"instances": self.model.rows.tolist()})
        tensor = {"name": self.input_name, "shape": list(self.model.rows.shape), "datatype": self.datatype}
        return orjson.dumps({"inputs": [{**tensor, "data": self.model.rows.ravel().tolist()}]})


def check_answers(got: Any, expected: list[Any], source: str) -> None:
    """Raise ValueError unless the flattened answers are the expected ones."""
    values = np.asarray(got).ravel().tolist()
    if values != expected:
        raise ValueError(f"{source}: expected {expected[:5]}…, got {values[:5]}…")


def check_http(server: Server, protocol: Protocol, question: Question) -> None:
    """Ask once and check status and content.

    Raises:
        ValueError: when the status is not 200 or the answer is not the model's own.
    """
    url = server.infer_url(protocol, question.model.name)
    headers = {"content-type": "application/json"}
    response = httpx.post(url, content=question.body(protocol), headers=headers, timeout=30)
    if response.status_code != httpx.codes.OK:
        raise ValueError(f"{url}: expected 200, got {response.status_code}: {response.text[:300]}")
    answer = response.json()
    got = answer["predictions"] if protocol == "v1" else answer["outputs"][0]["data"]
    check_answers(got, question.model.answers, url)
