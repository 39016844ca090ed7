# SPDX-License-Identifier: Apache-2.0
"""Traffic over revisions on a real platform: weights, stickiness, pins, shadows, rollouts that end well or do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from conftest import KNOWN_OUTPUT
from load import Load
from platform_process import PlatformProcess, base_document, running, wait_until

from modelyard.admin import ModelState, ModelStatus
from modelyard.client import Platform
from modelyard.errors import Conflict, ModelNotFound
from modelyard.rollout import RolloutState

INPUTS = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}
ROW = [1.0]
SMALL = {"num_cpus": 0.02}


@pytest.fixture(scope="module")
def rolling(make_folder: Callable[[], Any]) -> Iterator[PlatformProcess]:
    """A platform with two ingress replicas, whose models come and go."""
    document = base_document()
    arguments = document["applications"][0]["args"]
    arguments["models"] = []
    arguments["ingress"] = {"num_replicas": 2}
    with running(PlatformProcess(make_folder(), document)) as process:
        yield process
        assert process.stop() == 0
        assert process.unexplained(KNOWN_OUTPUT) == []


@pytest.fixture(scope="module")
def client(rolling: PlatformProcess) -> Iterator[Platform]:
    with Platform.connect(rolling.url) as opened:
        yield opened


@pytest.fixture
def name(client: Platform, request: pytest.FixtureRequest) -> Iterator[str]:
    """A model's name for each test; the model is taken away after it."""
    name = request.node.name.removeprefix("test_")[:60].strip("_")
    yield name
    client.unregister(name, wait=True)


def register(client: Platform, name: str, answer: float = 0.0, **more: Any) -> ModelStatus:
    settings = {"answer": answer} | more.pop("settings", {})
    options = {"entrypoint": "model:Moody", "settings": settings}
    return client.register(name, framework="custom", uri="models/moody", options=options, resources=SMALL, **more)


def two_revisions(client: Platform, name: str, **more: Any) -> None:
    """The first answers 1 and has all traffic, the second answers 2 and runs dark."""
    register(client, name, 1.0, wait=True, **more)
    register(client, name, 2.0, rollout={"steps": []}, **more)
    wait_until(lambda: client.revisions(name)[0].state == "ready", 60, "the second revision")


def ask(http: httpx.Client, name: str, **headers: str) -> str:
    """The revision that answered."""
    reply = http.post(f"/v2/models/{name}/infer", json=INPUTS, headers=headers)
    assert reply.status_code == 200, reply.text
    document = reply.json()
    assert document["outputs"][0]["data"] == [float(document["model_version"])]
    return str(document["model_version"])


def ask_often(platform: PlatformProcess, name: str, count: int, clients: int = 16) -> Counter[str]:
    def some(_: int) -> list[str]:
        with httpx.Client(base_url=platform.url, timeout=60) as http:
            return [ask(http, name) for _ in range(count // clients)]

    with ThreadPoolExecutor(clients) as pool:
        return Counter(version for versions in pool.map(some, range(clients)) for version in versions)


def ended(client: Platform, name: str) -> ModelStatus | None:
    status = client.status(name)
    return status if status.rollout is not None and not status.rollout.is_active else None


def test_a_new_revision_answers_when_it_is_ready_and_the_old_one_until_then(
    client: Platform, rolling: PlatformProcess, name: str
) -> None:
    register(client, name, 1.0, wait=True)
    with Load(rolling.url, name, ROW) as load:
        status = register(client, name, 2.0, settings={"loads_s": 2}, wait=True, message="retrained")
        assert (status.version, status.traffic, status.message) == ("2", {"2": 100.0}, "retrained")
        assert client.predict(name, {"x": np.ones(1)}).outputs["y"].tolist() == [2.0]
        wait_until(lambda: not rolling.replicas(f"{name}@1"), 60, "the old one to end")
    assert set(load.statuses) == {200}, load.refusals
    newest, first = client.revisions(name)
    assert (newest.number, newest.labels, newest.message) == (2, ("stable",), "retrained")
    assert newest.changed.keys() == {"options"}
    assert (first.number, first.traffic, first.state) == (1, None, "")


def test_traffic_has_its_weights(client: Platform, rolling: PlatformProcess, name: str) -> None:
    two_revisions(client, name)
    client.set_traffic(name, {1: 90, 2: 10})
    wait_until(lambda: len(ask_often(rolling, name, 160)) == 2, 10, "both ingress replicas to know")
    count = 10_000
    sigma = (count * 0.1 * 0.9) ** 0.5
    for is_last in (False, True):  # one of 370 right ones is farther off than that
        got = ask_often(rolling, name, count)
        assert got.total() == count
        if abs(got["2"] - count * 0.1) < 3 * sigma:
            break
        assert not is_last, got


def test_who_belongs_together_is_answered_by_one_revision(
    client: Platform, rolling: PlatformProcess, name: str
) -> None:
    two_revisions(client, name, sticky="header:x-user")
    users = [f"user {number}" for number in range(300)]
    with httpx.Client(base_url=rolling.url, timeout=60) as http:

        def choices(second: float) -> dict[str, str]:
            client.set_traffic(name, {1: 100 - second, 2: second})
            version = client.status(name).traffic
            assert version == {"1": 100 - second, "2": second}
            wait_until(lambda: is_known(second), 10, "both ingress replicas to know")
            found = {user: ask(http, name, **{"x-user": user}) for user in users}
            assert found == {user: ask(http, name, **{"x-user": user}) for user in users}
            return found

        def is_known(second: float) -> bool:
            shares = [ask_often(rolling, name, 320, 8)["2"] / 320 for _ in range(2)]
            return all(abs(share - second / 100) < 0.15 for share in shares)

        before, after = choices(10), choices(50)
    moved = [user for user in users if before[user] != after[user]]
    assert all(before[user] == "1" for user in moved), "nobody moves back"
    assert 0.3 < len(moved) / len(users) < 0.5
    assert 0.04 < list(before.values()).count("2") / len(users) < 0.17


def test_testers_are_sent_where_they_want(client: Platform, rolling: PlatformProcess, name: str) -> None:
    two_revisions(client, name)
    client.set_label(name, "audit", 2)
    with httpx.Client(base_url=rolling.url, timeout=60) as http:
        assert [ask(http, name, **{"x-modelyard-revision": pin}) for pin in ("2", "canary", "stable", "1")] == [
            *("2", "2", "1", "1"),
        ]
        assert wait_until(lambda: http.get(f"/v2/models/{name}/versions/audit").status_code == 200, 10, "the label")
        reply = http.post(f"/v2/models/{name}/infer", json=INPUTS, headers={"x-modelyard-revision": "7"})
        assert reply.status_code == 404
        assert '"7"' in reply.json()["error"]
        reply = http.post(f"/v1/models/{name}/labels/canary:predict", json={"instances": [1.0]})
        assert reply.json() == {"predictions": [2.0]}
        assert {ask(http, name) for _ in range(20)} == {"1"}, "the dark one gets nothing by itself"
    with tritonclient.grpc.InferenceServerClient(rolling.grpc) as grpc:
        x = tritonclient.grpc.InferInput("x", [1], "FP64")
        x.set_data_from_numpy(np.ones(1))
        answer = grpc.infer(name, [x], headers={"x-modelyard-revision": "canary"})
        assert (answer.get_response().model_version, answer.as_numpy("y").tolist()) == ("2", [2.0])
        assert grpc.infer(name, [x], model_version="audit").get_response().model_version == "2"


def test_a_shadow_gets_copies_and_answers_nobody(client: Platform, rolling: PlatformProcess, name: str) -> None:
    two_revisions(client, name)
    plan = {"steps": [0, 100], "interval_s": 0, "min_requests": 50, "gates": {"shadow_mismatch": 0.5}}
    client.rollout(name, 2, **plan)

    def ask_and_look() -> ModelStatus | None:
        assert ask_often(rolling, name, 16, 4) == {"1": 16}
        return ended(client, name)

    # Not a number of requests that would do: the ingress copies from the moment that it knows of the rollout.
    status = wait_until(ask_and_look, 60, "it to be taken back")
    assert status.rollout.state is RolloutState.ROLLED_BACK
    assert "shadow copies had another answer" in status.rollout.reason
    assert status.traffic == {"1": 100.0}
    assert ask_often(rolling, name, 16, 4) == {"1": 16}


def test_replies_of_language_models_are_copied_and_compared_by_what_they_say(
    client: Platform, rolling: PlatformProcess, name: str
) -> None:
    plan = {"steps": [0, 100], "interval_s": 0, "min_requests": 10, "gates": {"shadow_mismatch": 0.2}}

    def say(words: str, pieces: int) -> ModelStatus:
        options = {"entrypoint": "model:Parrot", "settings": {"says": words, "pieces": pieces}}
        return client.register(
            name, framework="custom", uri="models/parrot", options=options, resources=SMALL, rollout=plan
        )

    def chat_until_it_ends() -> ModelStatus:
        body = {"model": name, "stream": True, "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
        with httpx.Client(base_url=rolling.url, timeout=60) as http:

            def ask_and_look() -> ModelStatus | None:
                reply = http.post("/v1/chat/completions", json=body)
                assert reply.text.endswith("data: [DONE]\n\n")
                return ended(client, name)

            return wait_until(ask_and_look, 60, "the rollout to end")

    say("hello there", 1)
    client.wait_ready(name)
    say("hello there", 5)
    status = chat_until_it_ends()
    assert (status.rollout.state, status.rollout.to) == (RolloutState.PROMOTED, 2), status.rollout.reason
    say("good bye", 5)
    status = chat_until_it_ends()
    assert (status.rollout.state, status.rollout.to) == (RolloutState.ROLLED_BACK, 3), status.rollout.reason
    assert "shadow copies had another answer" in status.rollout.reason


def test_a_good_revision_gets_all_traffic_step_by_step(client: Platform, rolling: PlatformProcess, name: str) -> None:
    gates = {"error_rate": 0.01, "p99_ms": 30_000, "shadow_mismatch": 0}
    rollout = {"steps": [1, 10, 50, 100], "interval_s": 0.5, "min_requests": 20, "gates": gates}
    register(client, name, 1.0, rollout=rollout, wait=True)
    with Load(rolling.url, name, ROW, 8) as load:
        register(client, name, 1.0, rollout=rollout, settings={"comment": "the same answers"})
        status = wait_until(lambda: ended(client, name), 120, "the rollout")
    assert (status.rollout.state, status.traffic) == (RolloutState.PROMOTED, {"2": 100.0}), status.rollout.reason
    assert set(load.statuses) == {200}, load.refusals
    steps = [event.detail["weights"] for event in reversed(client.events(name)) if event.kind in ("step", "promoted")]
    assert [weights.get("2") for weights in steps] == [1.0, 10.0, 50.0, 100.0, 100.0]
    assert status.rollout.measured["requests"] >= 20


def test_a_revision_that_fails_is_taken_back_by_itself(client: Platform, rolling: PlatformProcess, name: str) -> None:
    rollout = {"steps": [1, 10, 50, 100], "interval_s": 1, "min_requests": 30, "gates": {"error_rate": 0.01}}
    register(client, name, 1.0, rollout=rollout, wait=True)
    with Load(rolling.url, name, ROW, 8) as load:
        register(client, name, 2.0, rollout=rollout, settings={"fails_every": 20})
        status = wait_until(lambda: ended(client, name), 120, "it to be taken back")
        answered = load.answered
        wait_until(lambda: load.answered > answered + 100, 30, "requests after that")
    assert status.rollout.state is RolloutState.ROLLED_BACK
    assert "requests failed" in status.rollout.reason
    assert status.rollout.reason.startswith(("at 1 %", "at 10 %"))
    assert status.traffic == {"1": 100.0}
    assert status.rollout.measured["error_rate"] > 0.01
    (event,) = [event for event in client.events(name) if event.kind == "rolled_back"]
    assert event.message == status.rollout.reason
    assert load.statuses[500] < 0.01 * load.answered
    wait_until(lambda: not rolling.replicas(f"{name}@2"), 60, "its replicas to end")


def test_promote_pause_and_rollback_by_hand(client: Platform, rolling: PlatformProcess, name: str) -> None:
    register(client, name, 1.0, wait=True)
    with pytest.raises(Conflict, match="no earlier revision"):
        client.rollback(name)
    with Load(rolling.url, name, ROW) as load:
        register(client, name, 2.0, rollout={"steps": [50, 100], "interval_s": 0.5})
        wait_until(lambda: client.status(name).traffic == {"1": 50.0, "2": 50.0}, 60, "the first step")
        client.pause(name, message="a closer look")
        assert client.status(name).rollout.state is RolloutState.PAUSED
        with pytest.raises(Conflict, match="expected a rollout that is waiting or running, got one that is paused"):
            client.pause(name)
        with pytest.raises(Conflict, match="a rollout is on its way"):
            client.set_traffic(name, {1: 100})
        assert client.promote(name).traffic == {"2": 100.0}
        wait_until(lambda: not rolling.replicas(f"{name}@1"), 60, "the first to end")
        client.rollback(name, wait=True, message="it was better")
        assert client.status(name).traffic == {"1": 100.0}
        with httpx.Client(base_url=rolling.url, timeout=60) as http:
            wait_until(lambda: {ask(http, name) for _ in range(8)} == {"1"}, 10, "both ingress replicas to know")
    assert set(load.statuses) == {200}, load.refusals
    with pytest.raises(ModelNotFound):
        client.promote(name, 9)


def test_what_cannot_be_loaded_or_takes_for_ever_never_gets_traffic(
    client: Platform, rolling: PlatformProcess, name: str
) -> None:
    register(client, name, 1.0, wait=True)
    with Load(rolling.url, name, ROW, 2) as load:
        register(client, name, 2.0, settings={"loads_s": "soon"})
        status = wait_until(lambda: find_failure(client, name), 60, "it to fail")
        assert "revision 2 failed and gets no traffic" in status.reason
        register(client, name, 3.0, settings={"loads_s": 600}, limits={"load_timeout_s": 2})
        status = wait_until(lambda: find_failure(client, name, "revision 3"), 60, "it to be given up")
        assert "did not load within 2 s (limits.load_timeout_s)" in status.reason
        assert (status.state, status.version) == (ModelState.READY, "1")
        register(client, name, 4.0, settings={"fails_every": 1}, warmup=[{"instances": [1.0]}])
        status = wait_until(lambda: find_failure(client, name, "revision 4"), 60, "it to fail")
        assert "its warm-up request 0 was not answered" in status.reason
        client.rollback(name)
        wait_until(lambda: not rolling.replicas(f"{name}@3"), 90, "what loads for ever to end")
    assert set(load.statuses) == {200}, load.refusals


def find_failure(client: Platform, name: str, what: str = "revision 2") -> ModelStatus | None:
    status = client.status(name)
    return status if what in status.reason and "failed" in status.reason else None


def test_everything_is_there_after_a_restart(client: Platform, rolling: PlatformProcess, name: str) -> None:
    two_revisions(client, name)
    client.set_label(name, "audit", 2)
    client.rollout(name, 2, steps=[10, 100], interval_s=3600)
    wait_until(lambda: client.status(name).traffic == {"1": 90.0, "2": 10.0}, 20, "the first step")
    before = client.status(name)
    rolling.kill()
    rolling.start()
    after = wait_until(lambda: all_ready(client, name), 120, "both revisions")
    assert (after.traffic, after.labels, after.rollout) == (before.traffic, before.labels, before.rollout)
    assert set(ask_often(rolling, name, 320)) == {"1", "2"}
    client.rollback(name)
    assert client.status(name).traffic == {"1": 100.0}


def all_ready(client: Platform, name: str) -> ModelStatus | None:
    states = [one.state for one in client.revisions(name) if one.traffic is not None]
    return client.status(name) if states == ["ready", "ready"] else None
