# SPDX-License-Identifier: Apache-2.0
"""Connections that cannot be made or break, as when an ingress process is killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpx
import pytest

from modelyard import Platform
from modelyard.client import ApiError, HttpTransport, PlatformUnreachable
from modelyard.errors import DeadlineExceeded, ModelNotReady, ModelyardError, Unavailable
from modelyard.haproxy import change

STATUS = {"name": "iris", "framework": "sklearn", "uri": "x", "owner": "registered", "state": "ready", "version": "1"}
ANSWER = {"model_name": "iris", "model_version": "1", "outputs": []}
UNSENT = httpx.ConnectError("refused")
BROKEN = [httpx.ReadError("reset"), httpx.WriteError("broken pipe"), httpx.RemoteProtocolError("no reply")]
Ask = Callable[[Platform], Any]


def status(platform: Platform) -> str:
    return platform.status("iris").version


def predict(platform: Platform) -> str:
    return platform.predict("iris", [[1.0]]).model_version


def unload(platform: Platform) -> str:
    return platform.unload("iris").version


def register(platform: Platform) -> str:
    return platform.register("iris", framework="sklearn", uri="x").version


def load(platform: Platform) -> str:
    return platform.load("iris").version


class Network:
    """Fails in these ways, one after the other, then answers."""

    def __init__(self, failures: Iterable[Exception | httpx.Response]) -> None:
        self.failures = list(failures)
        self.requests: list[httpx.Request] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, httpx.Response):
                return failure
            raise failure
        return httpx.Response(200, json=ANSWER if request.url.path.startswith("/v2") else STATUS)

    def connect(self, pauses_s: Sequence[float] = (0, 0), timeout_s: float = 30) -> Platform:
        transport = httpx.MockTransport(self.answer)
        return Platform(
            lambda: HttpTransport("http://platform.test", transport=transport, pauses_s=pauses_s, timeout_s=timeout_s)
        )


@pytest.mark.parametrize("ask", [status, predict, unload])
def test_a_request_that_did_not_arrive_is_sent_again_twice(ask: Ask) -> None:
    network = Network([UNSENT, UNSENT])
    with network.connect() as platform:
        assert ask(platform) == "1"
    assert len(network.requests) == 3
    assert len({request.content for request in network.requests}) == 1


@pytest.mark.parametrize("ask", [status, predict, unload])
def test_then_it_is_given_up(ask: Ask) -> None:
    network = Network([UNSENT] * 3)
    with network.connect() as platform, pytest.raises(PlatformUnreachable, match="refused"):
        ask(platform)
    assert len(network.requests) == 3


@pytest.mark.parametrize("ask", [status, predict])
@pytest.mark.parametrize("failure", BROKEN, ids=repr)
def test_what_changes_nothing_is_sent_again_where_the_connection_breaks(ask: Ask, failure: Exception) -> None:
    network = Network([failure])
    with network.connect() as platform:
        assert ask(platform) == "1"
    assert len(network.requests) == 2


@pytest.mark.parametrize("failure", BROKEN, ids=repr)
def test_a_change_that_may_have_arrived_is_sent_once(failure: Exception) -> None:
    network = Network([failure])
    with network.connect() as platform, pytest.raises(PlatformUnreachable):
        unload(platform)
    assert len(network.requests) == 1


@pytest.mark.parametrize("ask", [status, predict])
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (httpx.ReadTimeout(""), DeadlineExceeded),
        (httpx.PoolTimeout(""), DeadlineExceeded),
        (httpx.ConnectTimeout(""), PlatformUnreachable),
    ],
    ids=repr,
)
def test_a_time_that_is_over_is_over(ask: Ask, failure: Exception, error: type[ModelyardError]) -> None:
    network = Network([failure])
    with network.connect() as platform, pytest.raises(error):
        ask(platform)
    assert len(network.requests) == 1


@pytest.mark.parametrize("ask", [status, predict])
@pytest.mark.parametrize(
    ("sentence", "error"),
    [
        ('model "iris" is not ready: loading', ModelNotReady),
        ("the platform's controller does not answer: TimeoutError", Unavailable),
    ],
)
def test_what_the_platform_says_is_an_answer(ask: Ask, sentence: str, error: type[ModelyardError]) -> None:
    network = Network([httpx.Response(503, json={"error": sentence})])
    with network.connect() as platform, pytest.raises(error) as caught:
        ask(platform)
    assert (str(caught.value), len(network.requests)) == (sentence, 1)


@pytest.mark.parametrize("ask", [status, predict])
@pytest.mark.parametrize("status", [502, 503])
def test_what_our_own_proxy_says_is_asked_again(ask: Ask, status: int) -> None:
    (line,) = [line for line in change("defaults\n").splitlines() if f"status {status} " in line]
    body = line[line.index("{") : line.rindex("}") + 1]
    network = Network([httpx.Response(status, text=body)] * 2)
    with network.connect() as platform:
        assert ask(platform) == "1"
    assert len(network.requests) == 3
    with Network([httpx.Response(status, text=body)]).connect(()) as platform, pytest.raises(Unavailable):
        ask(platform)


def of_a_proxy(status: int) -> httpx.Response:
    return httpx.Response(status, text="<h1>No server is available to handle this request.</h1>")


@pytest.mark.parametrize("ask", [status, predict])
@pytest.mark.parametrize("status", [502, 503])
def test_what_a_proxy_says_of_a_process_that_was_killed_is_asked_again(ask: Ask, status: int) -> None:
    network = Network([of_a_proxy(status), httpx.Response(status, json={"detail": "no upstream"})])
    with network.connect() as platform:
        assert ask(platform) == "1"
    assert len(network.requests) == 3


@pytest.mark.parametrize(
    ("ask", "reply", "pauses_s", "count"),
    [
        (predict, of_a_proxy(503), (0, 0), 3),
        (predict, of_a_proxy(503), (), 1),
        (predict, of_a_proxy(503), (40,), 1),
        (predict, of_a_proxy(500), (0, 0), 1),
        (unload, of_a_proxy(503), (0, 0), 1),
    ],
    ids=["in vain", "once", "no time", "another status", "a change"],
)
def test_else_its_status_is_an_answer(ask: Ask, reply: httpx.Response, pauses_s: Sequence[float], count: int) -> None:
    network = Network([reply] * 3)
    with network.connect(pauses_s) as platform, pytest.raises(ApiError, match=str(reply.status_code)):
        ask(platform)
    assert len(network.requests) == count


@pytest.mark.parametrize(
    ("ask", "timeout_s", "read_s"),
    [(status, 30, 31), (unload, 5, 6), (register, 30, 601), (load, 5, 601), (register, 900, 901)],
)
def test_the_platform_has_its_time_and_a_moment_to_say_so(ask: Ask, timeout_s: float, read_s: float) -> None:
    network = Network([])
    with network.connect(timeout_s=timeout_s) as platform:
        ask(platform)
    limits = network.requests[0].extensions["timeout"]
    assert read_s - 1 < limits["read"] <= read_s
    assert limits["connect"] <= timeout_s


def test_a_dry_run_has_the_time_of_what_it_tries() -> None:
    network = Network([httpx.ReadTimeout("")])
    with network.connect() as platform, pytest.raises(DeadlineExceeded, match="within 600 s"):
        platform.register("iris", framework="sklearn", uri="x", dry_run=True)
    assert network.requests[0].extensions["timeout"]["read"] > 600


def test_attempts_share_the_time_of_one() -> None:
    network = Network([UNSENT])
    with network.connect(pauses_s=(40,)) as platform, pytest.raises(PlatformUnreachable):
        status(platform)
    assert len(network.requests) == 1
    network = Network([UNSENT])
    with network.connect(pauses_s=(0.01,)) as platform:
        status(platform)
    first, second = (request.extensions["timeout"]["read"] for request in network.requests)
    assert 30 < second <= first - 0.01 < 31


async def test_the_pauses_are_short() -> None:
    network = Network([UNSENT] * 2)
    transport = HttpTransport("http://platform.test", transport=httpx.MockTransport(network.answer))
    began = time.monotonic()
    assert (await transport.status("iris")).version == "1"
    assert 0.6 <= time.monotonic() - began < 10
    await transport.close()
