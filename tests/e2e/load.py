# SPDX-License-Identifier: Apache-2.0
"""Requests in the background, while a test does something to the platform."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from typing import Any, Self

import httpx


class Load:
    """Asks one model again and again from several threads, and keeps every outcome.

    Args:
        url: The platform's address.
        model: What to ask.
        rows: What to send, as v1 instances.
        clients: How many at once, each with one request in flight.
    """

    def __init__(self, url: str, model: str, rows: list[Any], clients: int = 4) -> None:
        self._url, self._model, self._rows = url, model, rows
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(clients)]
        self.statuses: Counter[int | str] = Counter()
        """How often each HTTP status came; the exception's name where there was no reply."""
        self.answers: Counter[str] = Counter()
        """How often each text came with status 200."""
        self.refusals: Counter[str] = Counter()
        """How often each text came with another status."""

    @property
    def answered(self) -> int:
        return self.statuses[200]

    def _ask_on(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._stop.is_set():
                status: int | str
                try:
                    reply = client.post(f"/v1/models/{self._model}:predict", json={"instances": self._rows})
                    status, text = reply.status_code, reply.text
                except httpx.HTTPError as exc:
                    status, text = type(exc).__name__, str(exc)
                with self._lock:
                    self.statuses[status] += 1
                    (self.answers if status == 200 else self.refusals)[text] += 1
                if status != 200:
                    self._stop.wait(0.05)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
