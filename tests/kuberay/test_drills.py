# SPDX-License-Identifier: Apache-2.0
"""What the drills count: whose connections may break, and how long nobody was answered. `make drills` runs them."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from load_tests.drills.drills import MODEL, ROW, check_overlay
from load_tests.drills.load import Load, Report
from rendering import OVERLAYS, find

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
LAST = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
CUT = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{}"


@contextmanager
def serving(*answers: bytes) -> Iterator[str]:
    """A server that gives each connection these answers and closes it then; HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_serve, args=(server, answers))
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(server: socket.socket, answers: Sequence[bytes]) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # it is shut down
            return
        with connection:
            for answer in answers:
                if not connection.recv(65536):
                    break
                connection.sendall(answer)


def load(endpoint: str, until: Callable[[Report], bool], may_break: bool = False) -> Report:
    """What one client found by then."""
    total = Report()
    end = time.monotonic() + 10
    with Load(lambda: [endpoint], MODEL, ROW, clients=1, pause_s=0.001, may_break=lambda _: may_break) as client:
        while not until(total) and time.monotonic() < end:
            time.sleep(0.01)
            report = client.take()
            total.requests += report.requests
            total.resent += report.resent
            total.failures += report.failures
            total.gap_s = max(total.gap_s, report.gap_s)
    return total


def test_a_kept_connection_may_be_closed_between_requests() -> None:
    with serving(ANSWER, ANSWER) as endpoint:
        report = load(endpoint, lambda found: found.resent >= 2)
    assert report.resent >= 2
    assert report.failures.total() == 0


@pytest.mark.parametrize("answers", [[ANSWER, CUT], [CUT], []], ids=["kept", "new", "none"])
def test_no_other_connection_may_break(answers: list[bytes]) -> None:
    with serving(*answers) as endpoint:
        report = load(endpoint, lambda found: found.failures.total() > 0)
        assert report.failures.total() > 0
        assert f"{endpoint} was not to break" in next(iter(report.failures))


def test_connections_to_what_was_ended_may_break_in_any_way() -> None:
    with serving(ANSWER, CUT) as endpoint:
        report = load(endpoint, lambda found: found.resent >= 2, may_break=True)
    assert report.resent >= 2
    assert report.failures.total() == 0


def test_a_client_that_is_told_to_close_its_connection_asks_where_the_service_leads_then() -> None:
    for answer, stays in ((ANSWER, True), (LAST, False)):
        with serving(answer) as endpoint:
            kept: dict[str, http.client.HTTPConnection] = {}
            assert Load(lambda: [endpoint], MODEL, ROW)._ask(kept, 0, stays=True) == (0, "")
            assert (endpoint in kept) is stays
            for connection in kept.values():
                connection.close()


def test_the_time_without_an_answer_counts_while_it_lasts() -> None:
    with serving() as endpoint:
        assert load(endpoint, lambda found: found.gap_s > 0.2).gap_s > 0.2


def test_overlays_that_cannot_be_drilled_are_told_apart() -> None:
    """Those that can are drilled in ``tests/e2e/test_drills.py``."""
    texts = {name: find(f"overlays/{name}", "RayService")["spec"]["serveConfigV2"] for name in OVERLAYS}
    reasons = {name: check_overlay(text) for name, text in texts.items()}
    assert {name for name, reason in reasons.items() if not reason} == {"cpu", "ha", "incremental-upgrade"}
    assert "one ingress process" in reasons["dev"]
    assert f"no model {MODEL}" in reasons["gpu"]
