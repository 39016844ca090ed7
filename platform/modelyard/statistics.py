# SPDX-License-Identifier: Apache-2.0
"""What a model's replicas count, and how the counts of several become one.

Source: Triton "Statistics Extension"; the words are its own, so that tools written for Triton can measure us. Times are
nanoseconds, and sums over requests: a request that shared a batch counts the whole batch's time as its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self


@dataclass(slots=True)
class Total:
    """How often something happened and how long it took altogether, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        """Counts more of it."""
        self.count += count
        self.ns += ns

    def merge(self, other: Self) -> None:
        """Counts what somebody else counted."""
        self.add(other.count, other.ns)


@dataclass(slots=True)
class BatchTotals:
    """All calls of the model with one number of rows."""

    compute_input: Total = field(default_factory=Total)
    compute_infer: Total = field(default_factory=Total)
    compute_output: Total = field(default_factory=Total)

    def merge(self, other: Self) -> None:
        """Counts what somebody else counted."""
        self.compute_input.merge(other.compute_input)
        self.compute_infer.merge(other.compute_infer)
        self.compute_output.merge(other.compute_output)


@dataclass(slots=True)
class ResponseTotals:
    """All answers at one place in the streams of a decoupled model: the first, the second and so on."""

    compute_infer: Total = field(default_factory=Total)
    compute_output: Total = field(default_factory=Total)
    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    empty_response: Total = field(default_factory=Total)
    cancel: Total = field(default_factory=Total)

    def merge(self, other: Self) -> None:
        """Counts what somebody else counted."""
        for name in self.__slots__:
            getattr(self, name).merge(getattr(other, name))


@dataclass(slots=True)
class Statistics:
    """Everything counted for one revision.

    Attributes:
        last_inference_ms: When the model was last called, in milliseconds since 1970; 0 when never.
        inference_count: Rows inferred; a request of a model without rows counts as one.
        execution_count: Calls of the model.
        success: Requests answered, and their whole time, waiting included.
        fail: Requests that ended in an error.
        queue: Time requests waited, in the ingress and in the replica.
        compute_input: Time spent on merging inputs.
        compute_infer: Time inside the model.
        compute_output: Time spent on checking and splitting outputs.
        batches: Calls by their number of rows; beyond 1024 by the next power of two, so that there is an end to them.
        responses: Answers of a decoupled model by their place in the stream.
    """

    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    compute_input: Total = field(default_factory=Total)
    compute_infer: Total = field(default_factory=Total)
    compute_output: Total = field(default_factory=Total)
    batches: defaultdict[int, BatchTotals] = field(default_factory=lambda: defaultdict(BatchTotals))
    responses: defaultdict[int, ResponseTotals] = field(default_factory=lambda: defaultdict(ResponseTotals))

    def merge(self, other: Self) -> None:
        """Counts what another replica counted."""
        self.last_inference_ms = max(self.last_inference_ms, other.last_inference_ms)
        self.inference_count += other.inference_count
        self.execution_count += other.execution_count
        for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
            getattr(self, name).merge(getattr(other, name))
        for size, batch in other.batches.items():
            self.batches[size].merge(batch)
        for place, response in other.responses.items():
            self.responses[place].merge(response)


def merge_statistics(parts: Iterable[Statistics]) -> Statistics:
    """One count of all."""
    total = Statistics()
    for part in parts:
        total.merge(part)
    return total
