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
_CLOSED: Final = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
"""What a client finds of a connection that the server has closed while nothing was on it. Source: RFC 9112, 9.3.1."""


@dataclass
class Report:
    """What became of the requests of one drill.

    Attributes:
        requests: How many there were.
        resent: Times that a request was sent once more, as the retries of any client library do: a kept connection was
            closed before any of the answer, or led to what the drill has ended.
        failures: Answers that were none, by what they said, and all other connections that broke.
        worst_s: The longest that any request took, sent again or not.
        gap_s: The longest without a good answer to any client.
    """

    requests: int = 0
    resent: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    worst_s: float = 0.0
    gap_s: float = 0.0


class Load:
    """Clients that ask one model, each with one request in flight.

    Half of them ask whatever endpoint is next. The others stay with the connection that they have until it is closed,
    also where it leads to an endpoint that is none any more: so does whoever keeps connections to a Service.

    Args:
        find_endpoints: Those that answer, as the probes of a Service find them; asked every two seconds. HOST:PORT.
        model: What to ask.
        row: One instance.
        clients: How many.
        pause_s: Between two requests of one client.
        may_break: Whether a connection to an endpoint may: what it leads to was ended by the drill.
    """

    def __init__(
        self,
        find_endpoints: Callable[[], list[str]],
        model: str,
        row: list[float],
        clients: int = 4,
        pause_s: float = 0.02,
        may_break: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._may_break = may_break
        self._find_endpoints = find_endpoints
        self._endpoints = find_endpoints()
        self._path = f"/v1/models/{model}:predict"
        self._body = json.dumps({"instances": [row]})
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._report = Report()
        self._answered = time.monotonic()
        self._threads = [threading.Thread(target=self._ask_on, args=(number,)) for number in range(clients)]
        self._threads.append(threading.Thread(target=self._follow))

    def take(self) -> Report:
        """What there was since the last call."""
        with self._lock:
            report, self._report = self._report, Report()
            report.gap_s = max(report.gap_s, time.monotonic() - self._answered)
        return report

    def _follow(self) -> None:
        while not self._stop.wait(_PROBE_S):
            self._endpoints = self._find_endpoints() or self._endpoints

    def _ask_on(self, turn: int) -> None:
        kept: dict[str, http.client.HTTPConnection] = {}
        stays = turn % 2 == 0
        while not self._stop.wait(self._pause_s):
            turn += 1
            began = time.monotonic()
            resent, failure = self._ask(kept, turn, stays)
            with self._lock:
                self._count(began, resent, failure)
        for connection in kept.values():
            connection.close()

    def _count(self, began: float, resent: int, failure: str) -> None:
        now, report = time.monotonic(), self._report
        report.requests += 1
        report.resent += resent
        report.worst_s = max(report.worst_s, now - began)
        if failure:
            report.failures[failure] += 1
        else:
            report.gap_s = max(report.gap_s, now - self._answered)
            self._answered = now

    def _ask(self, kept: dict[str, http.client.HTTPConnection], turn: int, stays: bool) -> tuple[int, str]:
        """How often it was sent again, and what was wrong with the answer."""
        failure = ""
        for attempt in range(_TRIES):
            found = self._endpoints
            endpoint = next(iter(kept)) if stays and kept else found[(turn + attempt) % len(found)]
            connection = kept.setdefault(endpoint, http.client.HTTPConnection(endpoint, timeout=_TIMEOUT_S))
            # Only a connection that was open may be closed already, and only until something of the answer is there.
            may_close = connection.sock is not None
            try:
                connection.request("POST", self._path, self._body, {"content-type": "application/json"})
                reply = connection.getresponse()
                may_close = False
                text = reply.read()
                if connection.sock is None:  # told to close it: the next one goes where the Service leads then
                    kept.pop(endpoint)
            except (OSError, http.client.HTTPException) as exc:
                kept.pop(endpoint).close()
                if not (may_close and isinstance(exc, _CLOSED)) and not self._may_break(endpoint):
                    return attempt, f"{endpoint} was not to break: {type(exc).__name__}: {exc}"
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
