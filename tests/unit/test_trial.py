# SPDX-License-Identifier: Apache-2.0
"""Revisions on trial: what is counted, what is copied, and that no caller pays for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import numpy as np
import pytest

from modelyard.batching import Call
from modelyard.errors import DeadlineExceeded, InvalidRequest, ModelFailed, ModelyardError, Overloaded
from modelyard.openai import EVENTS, MEMBER, OpenAIRequest, Part, part_to_tensors, request_to_tensors
from modelyard.outcomes import Outcomes
from modelyard.protocol.openai_answers import DONE
from modelyard.routing import RevisionRoute, ShadowRoute
from modelyard.tensor import Tensors
from modelyard.trial import Trial, is_same, is_same_stream

CALL = Call({"x": np.ones(1)}, (1,), ("y",), {})
OLD = RevisionRoute("m", "1", "m@1", "f", "ready")
NEW = replace(OLD, version="2", application="m@2")
WATCHED = replace(NEW, is_watched=True)


def answer(*values: object, dtype: str = "float64") -> Tensors:
    return {"y": np.array(values, dtype=dtype)}


class Replicas:
    """Answers by application: tensors, or an error that is raised; copies wait until they may go on."""

    def __init__(self, **answers: Tensors | ModelyardError) -> None:
        self.answers = {f"m@{number.removeprefix('r')}": one for number, one in answers.items()}
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        self.asked.append(revision.application)
        if revision.application == "m@2":
            await self.may_answer.wait()
        found = self.answers[revision.application]
        if isinstance(found, ModelyardError):
            raise found
        return found

    async def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        yield await self.call(revision, call, timeout_s)
        yield await self.call(revision, call, timeout_s)


def shadowed(percent: float = 100) -> RevisionRoute:
    return replace(OLD, shadow=ShadowRoute(NEW, percent, 1e-5))


async def settle(trial: Trial) -> None:
    await asyncio.gather(*trial._copies)


@pytest.mark.parametrize(("timeout_s", "errors"), [(0.05, 0), (0.2, 1), (60.0, 1)])
async def test_a_client_in_a_hurry_says_nothing_against_a_model(timeout_s: float, errors: int) -> None:
    trial = Trial(Replicas(r2=DeadlineExceeded(timeout_s)))
    with pytest.raises(DeadlineExceeded):
        await trial.call(WATCHED, CALL, timeout_s)
    counted = trial.take().get("m@2", Outcomes())
    assert (counted.requests, counted.errors) == (errors, errors)


async def test_a_model_whose_own_limit_is_short_is_slow_all_the_same() -> None:
    trial = Trial(Replicas(r2=DeadlineExceeded(0.05)))
    with pytest.raises(DeadlineExceeded):
        await trial.call(replace(WATCHED, request_timeout_s=0.05), CALL, 0.05)
    assert trial.take()["m@2"].errors == 1


async def test_requests_and_faults_are_counted() -> None:
    replicas = Replicas(r2=answer(1))
    trial = Trial(replicas)
    assert await trial.call(WATCHED, CALL, 1) == replicas.answers["m@2"]
    for error in (ModelFailed("m", "no"), InvalidRequest("x")):
        replicas.answers["m@2"] = error
        with pytest.raises(type(error)):
            await trial.call(WATCHED, CALL, 1)
    counts = trial.take()["m@2"]
    assert (counts.requests, counts.errors, counts.seconds.total()) == (3, 1, 3)
    assert trial.take() == {}
    trial.put_back({"m@2": counts})
    assert trial.take()["m@2"] == counts


async def test_a_stream_is_counted_once_at_its_end() -> None:
    trial = Trial(Replicas(r2=answer(1)))
    stream = trial.stream(WATCHED, CALL, 1)
    await anext(stream)
    assert trial.take() == {}
    assert len([one async for one in stream]) == 1
    assert trial.take()["m@2"].requests == 1


async def test_a_client_that_hangs_up_is_nobodys_fault() -> None:
    replicas = Replicas(r2=answer(1))
    replicas.may_answer.clear()
    trial = Trial(replicas)
    task = asyncio.create_task(trial.call(WATCHED, CALL, 1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert trial.take() == {}


async def test_a_copy_is_sent_after_the_answer_and_compared() -> None:
    replicas = Replicas(r1=answer(1), r2=answer(1.000001))
    replicas.may_answer.clear()
    trial = Trial(replicas)
    assert await trial.call(shadowed(), CALL, 1) == replicas.answers["m@1"], "without waiting for the copy"
    replicas.may_answer.set()
    await settle(trial)
    replicas.answers["m@2"] = answer(2)
    await trial.call(shadowed(), CALL, 1)
    await settle(trial)
    assert replicas.asked == ["m@1", "m@2"] * 2
    counts = trial.take()
    assert counts.keys() == {"m@2"}, "what nobody watches is not counted"
    assert (counts["m@2"].same, counts["m@2"].different) == (1, 1)


@pytest.mark.parametrize(("error", "different", "dropped"), [(ModelFailed("m", "x"), 1, 0), (Overloaded("full"), 0, 1)])
async def test_a_copy_that_fails_is_another_answer_but_not_one_without_room(
    error: ModelyardError, different: int, dropped: int
) -> None:
    trial = Trial(Replicas(r1=answer(1), r2=error))
    await trial.call(shadowed(), CALL, 1)
    await settle(trial)
    counts = trial.take()["m@2"]
    assert (counts.different, counts.dropped, counts.same) == (different, dropped, 0)


async def test_what_fails_for_the_caller_is_not_copied() -> None:
    replicas = Replicas(r1=ModelFailed("m", "x"), r2=answer(1))
    with pytest.raises(ModelFailed):
        await Trial(replicas).call(shadowed(), CALL, 1)
    assert replicas.asked == ["m@1"]


async def test_some_are_copied_and_never_too_many_at_once() -> None:
    replicas = Replicas(r1=answer(1), r2=answer(1))
    trial = Trial(replicas)
    for _ in range(1000):
        await trial.call(shadowed(20), CALL, 1)
        await settle(trial)
    assert 120 < replicas.asked.count("m@2") < 280
    replicas.may_answer.clear()
    for _ in range(100):
        await trial.call(shadowed(), CALL, 1)
    assert len(trial._copies) == 64
    replicas.may_answer.set()
    await settle(trial)
    assert trial.take()["m@2"].dropped == 36


async def _read(trial: Trial, revision: RevisionRoute, call: Call = CALL) -> list[Tensors]:
    found = [one async for one in trial.stream(revision, call, 1)]
    await settle(trial)
    return found


async def test_a_stream_is_copied_at_its_end_and_compared_as_one() -> None:
    replicas = Replicas(r1=answer(b"a", dtype="O"), r2=answer(b"a", dtype="O"))
    trial = Trial(replicas)
    assert len(await _read(trial, shadowed())) == 2
    replicas.answers["m@2"] = answer(b"b", dtype="O")
    await _read(trial, shadowed())
    replicas.answers["m@2"] = ModelFailed("m", "x")
    await _read(trial, shadowed())
    replicas.answers["m@2"] = Overloaded("full")
    await _read(trial, shadowed())
    counts = trial.take()["m@2"]
    assert (counts.same, counts.different, counts.dropped) == (1, 2, 1)


async def test_a_stream_that_failed_for_the_caller_is_not_copied() -> None:
    replicas = Talking(r1=Part(b'{"error": {"code": 500}}', 500), r2=Part(b"{}"))
    trial = Trial(replicas)
    await _read(trial, shadowed(), _chat(b"{}"))
    assert trial.take() == {}


async def test_a_reader_who_goes_after_the_last_event_has_read_it_all() -> None:
    replicas = Talking(r1=Part(DONE, content_type=EVENTS), r2=Part(DONE, content_type=EVENTS))
    trial = Trial(replicas)
    stream = trial.stream(shadowed(), _chat(b"{}"), 1)
    await anext(stream)
    await stream.aclose()
    await settle(trial)
    assert trial.take()["m@2"].same == 1


async def test_what_cannot_be_compared_is_another_answer(caplog: pytest.LogCaptureFixture) -> None:
    trial = Trial(Replicas(r1=answer(1), r2=answer(b"a", dtype="S1")))
    await trial.call(shadowed(), CALL, 1)
    await settle(trial)
    assert trial.take()["m@2"].different == 1
    assert "a copy cannot be compared" in caplog.text


async def test_a_stream_that_is_too_long_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelyard.trial._LARGEST_COPY", 8)
    replicas = Replicas(r1=answer(1), r2=answer(1))
    trial = Trial(replicas)
    await _read(trial, shadowed())
    assert (trial.take()["m@2"].dropped, replicas.asked) == (1, ["m@1", "m@1"])


async def test_copies_of_one_model_leave_room_for_those_of_others() -> None:
    replicas = Replicas(r1=answer(1), r2=answer(1), r3=answer(1))
    replicas.may_answer.clear()
    trial = Trial(replicas)
    for _ in range(70):
        await trial.call(shadowed(), CALL, 1)
    other = replace(OLD, shadow=ShadowRoute(replace(NEW, application="m@3"), 100, 1e-5))
    await trial.call(other, CALL, 1)
    replicas.may_answer.set()
    await settle(trial)
    counts = trial.take()
    assert (counts["m@2"].dropped, counts["m@3"].same) == (6, 1)
    assert not trial._under_way


async def test_a_stream_that_nobody_reads_to_its_end_is_not_copied() -> None:
    replicas = Replicas(r1=answer(1), r2=answer(1))
    trial = Trial(replicas)
    stream = trial.stream(shadowed(), CALL, 1)
    await anext(stream)
    await stream.aclose()
    await settle(trial)
    assert replicas.asked == ["m@1"]


def test_streams_are_the_same_whatever_answers_they_came_in() -> None:
    text = [answer(b"a b", dtype="O"), answer(b" c", dtype="O")]
    assert is_same_stream(CALL, text, [answer(b"a", dtype="O"), answer(b" b c", dtype="O")], 0)
    assert not is_same_stream(CALL, text, [answer(b"a b", dtype="O")], 0)
    assert is_same_stream(CALL, [answer(1.0, 2.0)], [answer(1.0), answer(2.00001)], 1e-4)
    assert is_same_stream(CALL, [], [], 0)


REPLY = b'{"id": "%d", "choices": [{"index": 0, "message": {"role": "assistant", "content": "%b"}}]}'


class Talking(Replicas):
    """Answers by the OpenAI protocol: bodies by application."""

    def __init__(self, **bodies: Part) -> None:
        super().__init__()
        self.parts = {f"m@{number.removeprefix('r')}": part for number, part in bodies.items()}

    async def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        yield part_to_tensors(self.parts[revision.application])


def _chat(body: bytes) -> Call:
    return Call(request_to_tensors(OpenAIRequest("chat/completions", body)), (0,), ("data",), {}, member=MEMBER)


async def test_replies_of_language_models_are_compared_by_what_they_say() -> None:
    replicas = Talking(r1=Part(REPLY % (1, b"yes")), r2=Part(REPLY % (2, b"yes")))
    trial = Trial(replicas)
    greedy, sampled = _chat(b'{"temperature": 0}'), _chat(b"{}")
    await _read(trial, shadowed(), greedy)
    replicas.parts["m@2"] = Part(REPLY % (2, b"no"))
    await _read(trial, shadowed(), greedy)
    await _read(trial, shadowed(), sampled)
    counts = trial.take()["m@2"]
    assert (counts.same, counts.different) == (2, 1)


async def test_a_reply_that_says_that_the_server_failed_is_a_fault() -> None:
    replicas = Talking(r2=Part(b'{"error": {"code": 500}}', 500))
    trial = Trial(replicas)
    await _read(trial, WATCHED, _chat(b"{}"))
    replicas.parts["m@2"] = Part(b'{"error": {"code": 400}}', 400)
    await _read(trial, WATCHED, _chat(b"{}"))
    counts = trial.take()["m@2"]
    assert (counts.requests, counts.errors) == (2, 1)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (answer(1, 2), answer(1, 2.00001), True),
        (answer(1, 2), answer(1, 2.1), False),
        (answer(float("nan")), answer(float("nan")), True),
        (answer(1, dtype="int64"), answer(1, dtype="int32"), True),
        (answer(1, dtype="int64"), answer(1.0), True),
        (answer(b"a", dtype="O"), answer(b"a", dtype="O"), True),
        (answer(b"a", dtype="O"), answer(b"b", dtype="O"), False),
        (answer(b"1", dtype="O"), answer(1), False),
        (answer(1, 2), answer(1), False),
        ({**answer(1), "z": np.ones(1)}, answer(1), False),
    ],
)
def test_answers_are_the_same_within_the_tolerance(one: Tensors, other: Tensors, same: bool) -> None:
    assert is_same(one, other, 1e-4) is same
