# SPDX-License-Identifier: Apache-2.0
"""Moving a model's traffic from Python, waiting for rollouts, and watching what happens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from modelyard import AsyncPlatform, Platform
from modelyard.admin import ModelState, ModelStatus
from modelyard.client import ApiError, HttpTransport, RolledBack
from modelyard.errors import Conflict, DeadlineExceeded, Forbidden, InvalidConfig, ModelNotFound
from modelyard.outcomes import Outcomes
from modelyard.rollout import Gates, Rollout, RolloutState
from modelyard.testing.platform import FakePlatform


@pytest.fixture
def platform(fake: FakePlatform) -> Iterator[Platform]:
    """With a model of three revisions, of which the last has the traffic."""
    with fake.connect() as connected:
        for number in range(1, 4):
            connected.register("iris", framework="sklearn", uri=f"models/iris{number}", message=f"number {number}")
        yield connected


def rollout_of(status: ModelStatus) -> Rollout:
    assert status.rollout is not None
    return status.rollout


def test_a_plain_registration_gets_the_traffic(platform: Platform) -> None:
    status = platform.status("iris")
    assert (status.version, status.traffic, status.labels) == ("3", {"3": 100.0}, {"stable": "3"})
    assert rollout_of(status).state is RolloutState.PROMOTED


def test_a_model_says_how_its_revisions_get_their_traffic(platform: Platform, fake: FakePlatform) -> None:
    policy = {"steps": [1, 100], "gates": {"error_rate": 0.1}}
    warmup = [{"instances": [[1.0, 2.0, 3.0, 4.0]]}]
    platform.register("new", framework="sklearn", uri="a", rollout=policy, warmup=warmup, sticky="header:x-user-id")
    assert fake.catalog.get_model("new").spec["warmup"] == warmup
    status = platform.register("new", framework="sklearn", uri="b", rollout=policy, sticky="header:x-user-id")
    assert (status.traffic, rollout_of(status).steps) == ({"1": 100.0, "2": 0.0}, (1.0, 100.0))
    assert fake.catalog.get_model("new").spec["sticky"] == "header:x-user-id"


@pytest.mark.parametrize("weights", [{1: 90, 3: 10}, {"1": 90.0, "stable": 10.0}], ids=["numbers", "texts"])
def test_traffic_is_shared(platform: Platform, weights: dict[str, float]) -> None:
    assert platform.set_traffic("iris", weights).traffic == {"1": 90.0, "3": 10.0}


def test_a_shadow_comes_and_goes_and_stays_where_nothing_is_said(platform: Platform) -> None:
    assert platform.set_traffic("iris", shadow=2).shadow == platform.set_traffic("iris", {3: 100}).shadow
    shadow = platform.set_traffic("iris", shadow={"revision": "stable", "percent": 5, "tolerance": 0}).shadow
    assert shadow is not None
    assert (shadow.revision, shadow.percent, shadow.tolerance) == (3, 5, 0)
    assert platform.set_traffic("iris", shadow=None).shadow is None


def test_labels_come_and_go(platform: Platform) -> None:
    assert platform.set_label("iris", "mine", 1, message="mine").labels == {"stable": "3", "mine": "1"}
    assert platform.predict("iris", [[1.0]], version="mine").model_version == "1"
    assert platform.remove_label("iris", "mine").labels == {"stable": "3"}
    with pytest.raises(InvalidConfig, match="which follows the traffic"):
        platform.set_label("iris", "stable", 1)


@pytest.mark.parametrize(
    ("ask", "problem"),
    [
        (lambda platform: platform.set_traffic("iris"), "weights: expected percents by revision, or a shadow"),
        (lambda platform: platform.set_traffic("iris", {1: "all"}), "weights.1: expected a valid number"),
        (lambda platform: platform.set_traffic("iris", shadow={}), "shadow.revision: expected a text"),
        (lambda platform: platform.rollout("iris", 1, steps=[50, 10]), "steps: expected each step to be higher"),
        (lambda platform: platform.rollout("iris", 1, gates={"p99": 1}), "gates.p99: unknown key"),
        (lambda platform: platform.rollout("iris", 1, min_requests=0), "min_requests: expected an integer >= 1, got 0"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_sent(
    platform: Platform, fake: FakePlatform, ask: Callable[[Platform], object], problem: str
) -> None:
    fake.requests.clear()
    with pytest.raises(InvalidConfig, match=f"^{problem}"):
        ask(platform)
    assert fake.requests == []


def test_a_rollout_is_followed_to_its_end(platform: Platform, fake: FakePlatform) -> None:
    seen: list[float] = []

    def show(status: ModelStatus) -> None:
        assert platform.list()  # whoever is called may ask
        seen.append(rollout_of(status).percent)

    fake.seen["iris"] = Outcomes(requests=100)
    status = platform.rollout("iris", 1, steps=[10, 50, 100], gates={"error_rate": 0.1}, wait=True, on_progress=show)
    assert seen == [0, 10, 50, 100, 100]
    assert (rollout_of(status).state, rollout_of(status).gates) == (RolloutState.PROMOTED, Gates(error_rate=0.1))
    assert (status.traffic, status.version) == ({"1": 100.0}, "1")


def test_a_rollout_that_is_rolled_back_is_an_error_with_the_reason(platform: Platform, fake: FakePlatform) -> None:
    fake.seen["iris"] = Outcomes(requests=100, errors=90)
    with pytest.raises(RolledBack, match=r'"iris": revision 1 was rolled back: at 10 % 90 of 100 requests') as caught:
        platform.rollout("iris", 1, steps=[10, 100], gates={"error_rate": 0.1}, wait=True)
    assert (caught.value.revision, platform.status("iris").traffic) == (1, {"3": 100.0})


def test_waiting_for_a_rollout_that_goes_on_ends_when_the_time_is_over(platform: Platform, fake: FakePlatform) -> None:
    fake.coming["iris"] = [(ModelState.LOADING, "")] * 9
    with pytest.raises(DeadlineExceeded, match="the rollout of revision 1 goes on: waiting"):
        platform.rollout("iris", 1, steps=[], wait=True, timeout_s=0)


def test_waiting_for_a_dark_revision_ends_when_it_is_ready(platform: Platform, fake: FakePlatform) -> None:
    fake.coming["iris"] = [(ModelState.LOADING, "")] * 2
    status = platform.rollout("iris", 1, steps=[], wait=True)
    assert (rollout_of(status).state, status.traffic) == (RolloutState.WAITING, {"1": 0.0, "3": 100.0})
    assert platform.revisions("iris")[-1].state == "ready"


def test_waiting_ends_at_a_last_step_that_does_not_give_all_traffic(platform: Platform, fake: FakePlatform) -> None:
    fake.seen["iris"] = Outcomes(requests=100)
    status = platform.rollout("iris", 1, steps=[10, 50], interval_s=0, gates={"error_rate": 0.1}, wait=True)
    assert (rollout_of(status).state, status.traffic) == (RolloutState.RUNNING, {"1": 50.0, "3": 50.0})


@pytest.mark.parametrize("more", [{"interval_s": 60}, {"interval_s": 0, "gates": {"error_rate": 0.1}}], ids=str)
def test_such_a_last_step_has_to_have_its_time_and_its_requests(
    platform: Platform, fake: FakePlatform, more: dict[str, Any]
) -> None:
    fake.seen["iris"] = Outcomes(requests=99)
    with pytest.raises(DeadlineExceeded, match="the rollout of revision 1 goes on: running"):
        platform.rollout("iris", 1, steps=[10], **more, wait=True, timeout_s=0.3)


def test_a_rollout_keeps_the_gates_of_the_model_that_it_does_not_name(platform: Platform) -> None:
    own = {"steps": [10], "gates": {"error_rate": 0.1, "p99_ms": 50}}
    platform.register("iris", framework="sklearn", uri="models/iris3", rollout=own)
    gates = rollout_of(platform.rollout("iris", 1, gates={"error_rate": 0.2})).gates
    assert gates == Gates(error_rate=0.2, p99_ms=50)
    assert rollout_of(platform.rollout("iris", 1, gates={"p99_ms": None})).gates == Gates(error_rate=0.1)


def test_waiting_ends_when_something_else_takes_its_place(platform: Platform) -> None:
    def interfere(status: ModelStatus) -> None:
        if rollout_of(status).to == 1:
            platform.promote("iris", 2)

    with pytest.raises(Conflict, match="something else has taken the place of the rollout of 1"):
        platform.rollout("iris", 1, steps=[10], wait=True, on_progress=interfere)


def test_a_rollout_outlives_a_controller_that_is_away(platform: Platform, fake: FakePlatform) -> None:
    answer, looks = fake.answer, itertools.count()

    def away_at_first(request: httpx.Request) -> httpx.Response:
        fake.is_away = request.method == "GET" and next(looks) < 2
        return answer(request)

    transport = HttpTransport("http://platform.test", transport=httpx.MockTransport(away_at_first))
    with Platform(lambda: transport) as connected:
        assert connected.rollout("iris", 1, steps=[10, 100], wait=True).version == "1"


def test_a_rollout_is_paused_resumed_and_promoted(platform: Platform) -> None:
    platform.rollout("iris", 1, steps=[10, 50], interval_s=0)
    assert rollout_of(platform.status("iris")).percent == 10
    platform.pause("iris", message="look at it")
    assert rollout_of(platform.status("iris")).percent == 10
    with pytest.raises(Conflict):
        platform.pause("iris")
    platform.resume("iris")
    assert rollout_of(platform.status("iris")).percent == 50
    assert platform.promote("iris", wait=True).traffic == {"1": 100.0}
    with pytest.raises(Conflict, match="no rollout on its way"):
        platform.promote("iris")


def test_promoting_what_is_not_ready_can_be_waited_for(platform: Platform, fake: FakePlatform) -> None:
    fake.coming["iris"] = [(ModelState.LOADING, "")]
    assert platform.promote("iris", 1, wait=True).traffic == {"1": 100.0}


def test_rolling_back_ends_a_rollout_or_returns_to_what_was(platform: Platform) -> None:
    platform.rollout("iris", 1, steps=[10])
    assert rollout_of(platform.rollback("iris", message="no", wait=True)).reason == "no"
    assert platform.rollback("iris", wait=True).traffic == {"2": 100.0}
    assert platform.rollback("iris", 3, wait=True).traffic == {"3": 100.0}


def test_a_rollout_is_aborted_and_gives_its_traffic_back(platform: Platform, fake: FakePlatform) -> None:
    platform.rollout("iris", 1, steps=[10, 20])
    assert platform.status("iris").traffic == {"1": 10.0, "3": 90.0}
    status = platform.abort("iris", message="no")
    assert (status.traffic, rollout_of(status).state, rollout_of(status).reason) == (
        {"3": 100.0}, RolloutState.ROLLED_BACK, "no"
    )  # fmt: skip
    assert fake.requests[-1].url.path == "/platform/v1/models/iris/rollout/abort"
    with pytest.raises(Conflict, match="no rollout on its way"):
        platform.abort("iris")
    with pytest.raises(ModelNotFound):
        platform.abort("none")


def test_the_history_is_told_newest_first(platform: Platform) -> None:
    newest, _, oldest = platform.revisions("iris")
    assert (newest.number, newest.traffic, newest.labels, newest.state) == (3, 100.0, ("stable",), "ready")
    assert newest.changed == {"uri": ["models/iris2", "models/iris3"]}
    assert (oldest.message, oldest.traffic, oldest.changed) == ("number 1", None, {})
    with pytest.raises(ModelNotFound):
        platform.revisions("none")


def test_events_are_told_newest_first(platform: Platform) -> None:
    platform.register("other", framework="sklearn", uri="x")
    assert [event.model for event in platform.events(limit=2)] == ["other", "iris"]
    assert [event.kind for event in platform.events("iris")][::-1] == [
        "created", "revised", "promoted", "revised", "promoted"
    ]  # fmt: skip
    assert platform.events("none") == ()


def test_watching_begins_after_an_event(platform: Platform) -> None:
    last = platform.events(limit=1)[0].id
    watching = platform.watch("iris", after=last - 1)
    assert next(watching).id == last
    platform.register("other", framework="sklearn", uri="x")
    platform.set_label("iris", "mine", 1)
    assert next(watching).kind == "label"
    assert next(platform.watch(after=last)).model == "other"


@pytest.mark.usefixtures("platform")
def test_watching_begins_now(fake: FakePlatform) -> None:
    answer = fake.answer

    def label_meanwhile(request: httpx.Request) -> httpx.Response:
        if "after" in request.url.params:
            fake.catalog.set_label("iris", "mine", 1)
        return answer(request)

    transport = HttpTransport("http://platform.test", transport=httpx.MockTransport(label_meanwhile))
    with Platform(lambda: transport) as connected:
        assert next(connected.watch()).kind == "label"


async def test_the_async_twin_watches_and_waits(fake: FakePlatform) -> None:
    async with AsyncPlatform(fake.open_transport()) as platform:
        for uri in ("a", "b"):
            await platform.register("iris", framework="sklearn", uri=uri)
        states: list[str] = []
        await platform.rollout("iris", 1, wait=True, on_progress=lambda status: states.append(rollout_of(status).state))
        assert states == ["waiting", "promoted"]
        watching = platform.watch(after=0)
        assert [(await anext(watching)).kind for _ in range(3)] == ["created", "revised", "promoted"]
        await watching.aclose()


def test_watching_outlives_a_platform_that_is_away_but_not_a_refusal(fake: FakePlatform) -> None:
    replies: Iterator[httpx.Response | Exception] = iter(
        [
            httpx.ConnectError("refused"),
            httpx.Response(502, text="bad gateway"),
            httpx.Response(200, json={"events": []}),
            httpx.Response(200, json={"events": [{"id": 4, "at": "now", "model": "iris", "kind": "step"}]}),
            httpx.Response(403, json={"error": "not yours", "code": "forbidden"}),
        ]
    )
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["after"])
        reply = next(replies)
        if isinstance(reply, Exception):
            raise reply
        return reply

    transport = HttpTransport("http://platform.test", transport=httpx.MockTransport(answer))
    with Platform(lambda: transport) as platform:
        watching = platform.watch("iris", after=3)
        assert next(watching).id == 4
        with pytest.raises(Forbidden):
            next(watching)
    assert asked == ["3", "3", "3", "3", "4"]


@pytest.mark.parametrize("events", [3, [{"id": 1}], [4]], ids=str)
def test_what_are_no_events_is_told(events: object) -> None:
    reply = httpx.Response(200, json={"events": events})
    transport = HttpTransport("http://platform.test", transport=httpx.MockTransport(lambda request: reply))
    with Platform(lambda: transport) as platform, pytest.raises(ApiError, match="expected a list of events"):
        platform.events()
