# SPDX-License-Identifier: Apache-2.0
"""Waiting for what a change has made, whichever revision answers meanwhile, and being told how it goes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from modelyard import AsyncPlatform, Platform
from modelyard.admin import ModelState, ModelStatus
from modelyard.client import HttpTransport, RolledBack
from modelyard.errors import Conflict, ModelNotReady
from modelyard.rollout import RolloutState
from modelyard.testing.platform import FakePlatform

ROLLOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stepped": {"rollout": {"steps": [10, 100]}},
    "dark": {"rollout": {"steps": []}},
}
FAILED = 'model "iris" is not ready: revision 2 failed and gets no traffic: no such file'


@pytest.fixture
def platform(fake: FakePlatform) -> Iterator[Platform]:
    """With a model of one revision, which answers."""
    with fake.connect() as connected:
        revise(connected, uri="models/1")
        yield connected


def revise(platform: Platform, uri: str = "models/2", **more: Any) -> ModelStatus:
    return platform.register("iris", framework="sklearn", uri=uri, **more)


def loading(*reasons: str) -> list[tuple[ModelState, str]]:
    return [(ModelState.LOADING, reason) for reason in reasons]


def fail_after(fake: FakePlatform, looks: int) -> None:
    """Revision 2 fails at so many looks at its model."""
    answer, seen = fake.answer, itertools.count()

    def fail(request: httpx.Request) -> httpx.Response:
        if request.method == "GET" and next(seen) == looks:
            fake.failures["iris", 2] = "no such file"
        return answer(request)

    fake.answer = fail  # type: ignore[method-assign]  # what is behind the transport


@pytest.mark.parametrize("rollout", ROLLOUTS.values(), ids=ROLLOUTS)
@pytest.mark.parametrize("looks", [0, 3])
def test_a_new_revision_that_fails_ends_the_wait_with_its_reason(
    fake: FakePlatform, rollout: dict[str, Any], looks: int
) -> None:
    with fake.connect() as platform:
        revise(platform, "models/1")
    fail_after(fake, looks)
    with fake.connect() as platform:
        fake.coming["iris"] = loading(*"abcdefgh")
        with pytest.raises(ModelNotReady) as caught:
            revise(platform, wait=True, **rollout)
        assert str(caught.value) == FAILED
        assert platform.predict("iris", [[1.0]]).model_version == "1"


@pytest.mark.parametrize(
    ("kind", "traffic"),
    [("plain", {"2": 100.0}), ("stepped", {"1": 100.0, "2": 0.0}), ("dark", {"1": 100.0, "2": 0.0})],
)
def test_waiting_ends_when_the_revision_can_take_its_traffic(
    platform: Platform, fake: FakePlatform, kind: str, traffic: dict[str, float]
) -> None:
    fake.coming["iris"] = loading("", "")
    assert revise(platform, wait=True, **ROLLOUTS[kind]).traffic == traffic
    assert platform.revisions("iris")[0].state == "ready"


@pytest.mark.parametrize("rollout", ROLLOUTS.values(), ids=ROLLOUTS)
def test_a_revision_that_failed_is_waited_for_again_when_it_is_loaded(
    platform: Platform, fake: FakePlatform, rollout: dict[str, Any]
) -> None:
    fake.failures["iris", 2] = "no such file"
    revise(platform, **rollout)
    with pytest.raises(ModelNotReady, match=FAILED):
        platform.load("iris", wait=True)
    del fake.failures["iris", 2]
    platform.load("iris", wait=True)
    assert platform.revisions("iris")[0].state == "ready"


def test_a_revision_that_was_unloaded_is_waited_for_although_it_is_still_told_so(
    platform: Platform, fake: FakePlatform
) -> None:
    revise(platform, **ROLLOUTS["dark"])
    platform.unload("iris", wait=True)
    answer, looks = fake.answer, itertools.count()

    def look_back(request: httpx.Request) -> httpx.Response:
        reply = answer(request)
        if request.url.path.endswith("/revisions") and next(looks) < 2:
            revisions = [one | {"state": "unloaded"} for one in reply.json()["revisions"]]
            return httpx.Response(200, json={"revisions": revisions})
        return reply

    transport = HttpTransport("http://platform.test", transport=httpx.MockTransport(look_back))
    with Platform(lambda: transport) as connected:
        assert connected.load("iris", wait=True).traffic == {"1": 100.0, "2": 0.0}
    assert next(looks) == 3


def test_what_changes_nothing_is_over_at_once(platform: Platform) -> None:
    assert revise(platform, uri="models/1", wait=True, timeout_s=0).version == "1"


def test_the_time_is_over_while_the_old_revision_answers(platform: Platform, fake: FakePlatform) -> None:
    fake.coming["iris"] = loading("its replicas are starting")
    with pytest.raises(ModelNotReady, match=r"revision 2 is loading: its replicas are starting \(waited 0 s\)"):
        revise(platform, wait=True, timeout_s=0, **ROLLOUTS["dark"])


@pytest.mark.parametrize(
    ("interfere", "error", "words"),
    [
        (lambda platform: platform.abort("iris", message="no"), RolledBack, "revision 2 was rolled back: no"),
        (lambda platform: revise(platform, "models/3"), Conflict, "something else has taken the place of revision 2"),
        (lambda platform: platform.unload("iris"), ModelNotReady, "unloading"),
        (lambda platform: platform.unregister("iris"), ModelNotReady, "removing"),
    ],
    ids=["abort", "register", "unload", "unregister"],
)
@pytest.mark.parametrize("kind", ["plain", "stepped"])
def test_waiting_ends_when_the_revision_is_not_to_come_any_more(
    platform: Platform,
    fake: FakePlatform,
    interfere: Callable[[Platform], object],
    error: type[Exception],
    words: str,
    kind: str,
) -> None:
    fake.coming["iris"] = loading(*"abcdefgh")
    calls = iter([interfere])
    with pytest.raises(error, match=words):
        revise(platform, wait=True, on_progress=lambda _: next(calls, id)(platform), **ROLLOUTS[kind])


def test_waiting_outlives_a_controller_that_is_away(platform: Platform, fake: FakePlatform) -> None:
    answer, looks = fake.answer, itertools.count()

    def away_at_first(request: httpx.Request) -> httpx.Response:
        fake.is_away = request.method == "GET" and next(looks) in (0, 2)
        return answer(request)

    fake.coming["iris"] = loading("")
    transport = HttpTransport("http://platform.test", transport=httpx.MockTransport(away_at_first))
    with Platform(lambda: transport) as connected:
        assert revise(connected, wait=True, **ROLLOUTS["stepped"]).traffic["2"] < 100
    assert next(looks) > 3


def test_a_model_that_is_ready_is_ready_whatever_comes(platform: Platform, fake: FakePlatform) -> None:
    fake.failures["iris", 2] = "no such file"
    revise(platform)
    assert platform.wait_ready("iris").version == "1"


def seen_states(platform: Platform, ask: Callable[..., object], **more: Any) -> list[tuple[str, str, str]]:
    """What a verb tells while it is waited for."""
    seen: list[tuple[str, str, str]] = []

    def keep(status: ModelStatus) -> None:
        assert platform.list() is not None  # whoever is called may ask
        seen.append((status.version, status.state, status.reason))

    ask(wait=True, on_progress=keep, **more)
    return seen


def test_every_verb_tells_of_what_it_waits_for(platform: Platform, fake: FakePlatform) -> None:
    fake.coming["iris"] = loading("a", "a", "b")
    assert seen_states(platform, partial(revise, platform)) == [
        ("2", "loading", "a"), ("2", "loading", "b"), ("2", "ready", "")
    ]  # fmt: skip
    assert seen_states(platform, platform.unload, name="iris") == [
        ("2", "unloading", ""), ("2", "unloaded", "unloaded")
    ]  # fmt: skip
    assert seen_states(platform, platform.load, name="iris") == [("2", "ready", "")]
    fake.coming["iris"] = loading("c")
    assert seen_states(platform, platform.rollback, name="iris") == [("1", "loading", "c"), ("1", "ready", "")]
    fake.coming["iris"] = loading("d")
    assert seen_states(platform, platform.promote, name="iris", revision=2) == [
        ("2", "loading", "d"), ("2", "ready", "")
    ]  # fmt: skip
    assert seen_states(platform, platform.unregister, name="iris") == [("2", "removing", "")]


async def test_the_async_twin_waits_and_tells_as_well(fake: FakePlatform) -> None:
    async with AsyncPlatform(fake.open_transport()) as platform:
        for verb in (platform.load, platform.rollback, platform.unload, platform.unregister):
            for uri in ("models/1", "models/2"):
                await platform.register("iris", framework="sklearn", uri=uri)
            seen: list[ModelStatus] = []
            await verb("iris", wait=True, on_progress=seen.append)
            assert seen
        await platform.register("iris", framework="sklearn", uri="models/3", wait=True)
        fake.failures["iris", 2] = "no such file"
        with pytest.raises(ModelNotReady, match=FAILED):
            await platform.register("iris", framework="sklearn", uri="models/4", wait=True)
        status = await platform.abort("iris", message="no")
        assert status.rollout is not None
        assert (status.rollout.state, status.rollout.reason) == (RolloutState.ROLLED_BACK, "no")
