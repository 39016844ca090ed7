# SPDX-License-Identifier: Apache-2.0
"""Whoever changes a model is in its history, and requests may say whose they are."""

from __future__ import annotations

import getpass
import inspect
import socket
from collections.abc import Callable

import numpy as np
import pytest

from modelyard import AsyncPlatform, Platform
from modelyard.client.actor import find_actor
from modelyard.errors import Conflict, InvalidRequest, Unsupported
from modelyard.inference import InferenceRequest
from modelyard.testing.platform import FakePlatform


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELYARD_ACTOR", raising=False)
    monkeypatch.setattr(getpass, "getuser", lambda: "me")
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop")


@pytest.mark.usefixtures("machine")
def test_the_actor_is_given_or_in_the_environment_or_the_user_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_actor() == "me@laptop"
    monkeypatch.setenv("MODELYARD_ACTOR", " pipeline 7 ")
    assert find_actor() == find_actor("") == "pipeline 7"
    assert find_actor("nightly") == "nightly"


@pytest.mark.parametrize("error", [OSError, KeyError, ImportError])
@pytest.mark.usefixtures("machine")
def test_a_user_without_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", fail)
    assert find_actor() == "unknown@laptop"


def test_an_actor_has_200_characters_that_can_be_printed() -> None:
    assert find_actor("a\nb\x7f") == "a?b?"
    assert find_actor("x" * 300) == "x" * 200


VERBS: dict[str, Callable[..., object]] = {
    "register": lambda platform, **more: platform.register("iris", framework="sklearn", uri="models/3", **more),
    "unregister": lambda platform, **more: platform.unregister("iris", **more),
    "load": lambda platform, **more: platform.load("iris", **more),
    "unload": lambda platform, **more: platform.unload("iris", **more),
    "set_traffic": lambda platform, **more: platform.set_traffic("iris", {2: 100}, **more),
    "set_label": lambda platform, **more: platform.set_label("iris", "mine", 1, **more),
    "remove_label": lambda platform, **more: platform.remove_label("iris", "own", **more),
    "rollout": lambda platform, **more: platform.rollout("iris", 1, **more),
    "promote": lambda platform, **more: platform.promote("iris", 1, **more),
    "rollback": lambda platform, **more: platform.rollback("iris", **more),
    "abort": lambda platform, **more: platform.abort("iris", **more),
    "pause": lambda platform, **more: platform.pause("iris", **more),
    "resume": lambda platform, **more: platform.resume("iris", **more),
}


def prepare(platform: Platform, verb: str) -> None:
    """A model for which the verb has something to do."""
    for uri in ("models/1", "models/2"):
        platform.register("iris", framework="sklearn", uri=uri)
    platform.set_label("iris", "own", 1)
    if verb in ("abort", "pause", "resume"):
        platform.rollout("iris", 1, steps=[10])
        platform.status("iris")
    if verb == "resume":
        platform.pause("iris")
    if verb == "load":
        platform.unload("iris")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("machine")
def test_every_change_says_who_makes_it(fake: FakePlatform, verb: str) -> None:
    with fake.connect() as platform:
        prepare(platform, verb)
        begun = platform.events()[0].id
        VERBS[verb](platform)
        made = [event for event in platform.events() if event.id > begun]
    assert made
    assert {event.actor for event in made if event.kind != "promoted"} <= {"me@laptop"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_change_may_be_for_one_generation_only(fake: FakePlatform, verb: str) -> None:
    with fake.connect() as platform:
        prepare(platform, verb)
        generation = fake.catalog.get_model("iris").generation
        with pytest.raises(Conflict, match=f"expected generation {generation - 1}, got {generation}"):
            VERBS[verb](platform, expected_generation=generation - 1)
        VERBS[verb](platform, expected_generation=generation)
    assert fake.requests[-1].url.params["expected_generation"] == str(generation)


@pytest.mark.parametrize("twin", [Platform, AsyncPlatform])
def test_every_change_has_a_reason_and_a_generation(twin: type) -> None:
    public = {name: verb for name, verb in inspect.getmembers(twin, inspect.isfunction) if name[0] != "_"}
    found = {name: inspect.signature(verb).parameters for name, verb in public.items()}
    assert {name for name, known in found.items() if "message" in known} == {*VERBS, "register_spec", "import_"}
    assert {name for name, known in found.items() if "expected_generation" in known} == {*VERBS, "register_spec"}


async def test_the_actor_is_an_argument_of_both_twins(fake: FakePlatform) -> None:
    with Platform(fake.open_transport, actor="Jörg") as platform:
        platform.register("iris", framework="sklearn", uri="models/1")
        await platform.aio.register("iris", framework="sklearn", uri="models/2")
        await platform.aio.close()
    async with AsyncPlatform(fake.open_transport(), actor="nightly → build") as twin:
        await twin.register("iris", framework="sklearn", uri="models/3")
        assert [one.actor for one in await twin.revisions("iris")] == ["nightly ? build", "Jörg", "Jörg"]


def test_connecting_takes_the_actor(fake: FakePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_transport(*_: object, **__: object) -> object:
        return fake.open_transport()

    for module in ("platform", "aio"):
        monkeypatch.setattr(f"modelyard.client.{module}.open_transport", open_transport)
    with Platform.connect("http://platform.test", actor="nightly") as platform:
        platform.register("iris", framework="sklearn", uri="models/1")
        assert platform.revisions("iris")[0].actor == "nightly"
    assert AsyncPlatform.connect("http://platform.test", actor="nightly")._actor == "nightly"


async def test_headers_are_sent_along(fake: FakePlatform) -> None:
    request = InferenceRequest({"x": np.ones((1, 1))})
    headers = {"X-User-Id": "7", "cookie": "group=b", "Content-Type": "text/plain"}
    with fake.connect() as platform:
        platform.register("iris", framework="sklearn", uri="models/1")
        platform.predict("iris", [[1.0]], headers=headers)
        platform.infer("iris", request, headers=headers)
        await platform.aio.predict("iris", [[1.0]], headers=headers)
        await platform.aio.infer("iris", request, headers=headers)
        await platform.aio.close()
    for sent in fake.requests[-4:]:
        assert (sent.headers["x-user-id"], sent.headers["cookie"]) == ("7", "group=b")
        assert sent.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"x user": "7"}, "headers: expected a header's name, got 'x user'"),
        ({"x-user-id": "Jörg"}, "header x-user-id: expected a text of printable ASCII, got 'Jörg'"),
        ({"x-user-id": "7\r\nhost: x"}, "header x-user-id: expected a text of printable ASCII"),
        ({"x-user-id": 7}, "header x-user-id: expected a text of printable ASCII, got 7"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused(fake: FakePlatform, headers: dict[str, str], words: str) -> None:
    with fake.connect() as platform, pytest.raises(InvalidRequest, match=f"^{words}"):
        platform.predict("iris", [[1.0]], headers=headers)
    assert fake.requests == []


def test_inside_the_cluster_there_are_no_headers(fake: FakePlatform) -> None:
    class ByHandle:
        async def close(self) -> None:
            await transport.close()

    transport = fake.open_transport()
    with Platform(ByHandle) as platform, pytest.raises(Unsupported, match="headers travel over HTTP only"):
        platform.predict("iris", [[1.0]], headers={"x-user-id": "7"})
