# SPDX-License-Identifier: Apache-2.0
"""Constant load as behind a Kubernetes Service: connections are kept, and one that breaks is tried again elsewhere."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

_TRIES: Final = 10
_PAUSE_S: Final = 0.1
_PROBE_S: Final = 2.0
_TIMEOUT_S: Final = 30.0


@dataclass
class Report:
    """What became of the requests of one drill.

    Attributes:
        requests: How many there were.
        resent: Times that a connection broke, or could not be made, and the request was sent once more, as the
            retries of any client library do.
        failures: Answers that were none, by what they said.
        worst_s: The longest that any request took, sent again or not.
    """

    requests: int = 0
    resent: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    worst_s: float = 0.0


class Load:
    """Clients that ask one model, each with one request in flight.

    Half of them ask whatever endpoint is next. The others stay with the connection that they have as long as it works,
    also where it leads to an endpoint that is none any more: so does whoever keeps connections to a Service.

    Args:
        find_ports: Those that answer, as the probes of a Service's endpoints find them; asked every two seconds.
        model: What to ask.
        row: One instance.
        clients: How many.
        pause_s: Between two requests of one client.
    """

    def __init__(
        self, find_ports: Callable[[], list[int]], model: str, row: list[float], clients: int = 4, pause_s: float = 0.02
    ) -> None:
        self._find_ports = find_ports
        self._ports = find_ports()
        self._path = f"/v1/models/{model}:predict"
        self._body = json.dumps({"instances": [row]})
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._report = Report()
        self._threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(clients)]
        self._threads.append(threading.Thread(target=self._follow))

    def take(self) -> Report:
        """What there was since the last call."""
        with self._lock:
            report, self._report = self._report, Report()
        return report

    def _follow(self) -> None:
        while not self._stop.wait(_PROBE_S):
            self._ports = self._find_ports() or self._ports

    def _ask_on(self, turn: int) -> None:
        kept: dict[int, http.client.HTTPConnection] = {}
        stays = turn % 2 == 0
        while not self._stop.wait(self._pause_s):
            turn += 1
            began = time.monotonic()
            resent, failure = self._ask(kept, turn, stays)
            took_s = time.monotonic() - began
            with self._lock:
                self._report.requests += 1
                self._report.resent += resent
                self._report.worst_s = max(self._report.worst_s, took_s)
                if failure:
                    self._report.failures[failure] += 1
        for connection in kept.values():
            connection.close()

    def _ask(self, kept: dict[int, http.client.HTTPConnection], turn: int, stays: bool) -> tuple[int, str]:
        """How often it was sent again, and what was wrong with the answer."""
        failure = ""
        for attempt in range(_TRIES):
            ports = self._ports
            port = next(iter(kept)) if stays and kept else ports[(turn + attempt) % len(ports)]
            connection = kept.setdefault(port, http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S))
            try:
                connection.request("POST", self._path, self._body, {"content-type": "application/json"})
                reply = connection.getresponse()
                text = reply.read()
            except (OSError, http.client.HTTPException) as exc:
                kept.pop(port).close()
                failure = f"no connection after {_TRIES} attempts: {type(exc).__name__}"
                self._stop.wait(_PAUSE_S)
                continue
            return attempt, "" if reply.status == http.HTTPStatus.OK else f"{reply.status} {text[:200]!r}"
        return _TRIES, failure

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
