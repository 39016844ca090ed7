# SPDX-License-Identifier: Apache-2.0
"""What became of the requests to one revision, counted where their answers leave the platform.

Counts of several ingress replicas add up, and the difference of two is what happened between them. How long requests
took is kept in buckets that are a tenth wide, which is how exact a percentile is.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from modelyard.errors import ModelyardError, Unsupported

_PER_E: Final = 10
"""Buckets for each factor of e: the next one begins 10.5 % higher."""
_LEAST_S: Final = 1e-6


@dataclass(slots=True)
class Outcomes:
    """Counts of one revision.

    Attributes:
        requests: Answered ones, whatever the answer.
        errors: Those of them that were answered with a fault of the server.
        same: Shadow copies with the caller's answer.
        different: Shadow copies with another one, or an error where the caller had an answer.
        dropped: Shadow copies that were not sent, for too many were on their way.
        seconds: How many requests took how long, by bucket.
    """

    requests: int = 0
    errors: int = 0
    same: int = 0
    different: int = 0
    dropped: int = 0
    seconds: Counter[int] = field(default_factory=Counter)

    def record(self, seconds: float, error: BaseException | None) -> None:
        """Counts one request.

        Args:
            seconds: How long it took.
            error: What it was answered with; None for an answer. The client's own mistakes are answers.
        """
        self.requests += 1
        self.errors += error is not None and is_fault(error)
        self.seconds[math.floor(math.log(max(seconds, _LEAST_S)) * _PER_E)] += 1

    @property
    def compared(self) -> int:
        """Shadow copies that were compared."""
        return self.same + self.different

    @property
    def error_rate(self) -> float:
        """Errors among the requests, from 0 to 1; 0 without requests."""
        return self.errors / self.requests if self.requests else 0.0

    @property
    def mismatch_rate(self) -> float:
        """Different answers among the shadow copies, from 0 to 1; 0 without copies."""
        return self.different / self.compared if self.compared else 0.0

    def percentile_s(self, share: float) -> float:
        """Seconds that this share of the requests took at most, up to a tenth more; 0 without requests."""
        left = math.ceil(share * self.seconds.total())
        for bucket in sorted(self.seconds):
            left -= self.seconds[bucket]
            if left <= 0:
                return math.exp((bucket + 1) / _PER_E)
        return 0.0

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(
            self.requests + other.requests,
            self.errors + other.errors,
            self.same + other.same,
            self.different + other.different,
            self.dropped + other.dropped,
            self.seconds + other.seconds,
        )

    def __sub__(self, earlier: Outcomes) -> Outcomes:
        """What came since ``earlier``, which these counts have grown from."""
        return Outcomes(
            self.requests - earlier.requests,
            self.errors - earlier.errors,
            self.same - earlier.same,
            self.different - earlier.different,
            self.dropped - earlier.dropped,
            self.seconds - earlier.seconds,
        )


def is_fault(error: BaseException) -> bool:
    """The server's fault, which speaks against a revision; not the client's mistake, nor its going away."""
    if isinstance(error, ModelyardError):
        return error.http_status >= 500 and not isinstance(error, Unsupported)  # HTTP's server errors
    return isinstance(error, Exception)
