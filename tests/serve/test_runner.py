# SPDX-License-Identifier: Apache-2.0
"""The queue in front of one model: merging, limits, failures, cancellation, draining."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic_ns

import numpy as np
import pytest

from modelyard.batching import Call
from modelyard.errors import InternalError, InvalidRequest, ModelFailed, ModelNotReady, Overloaded
from modelyard.serve.runner import ModelRunner
from modelyard.testing import FakeModel, FakeOptions


async def test_a_lone_request_is_answered(start_runner, fake, make_call, outputs):
    assert outputs(await start_runner(fake()).submit(make_call(1, 2))) == [4, 8]


async def test_what_waits_travels_together_and_is_split_again(start_runner, gated, make_call, outputs, until):
    model = gated()
    runner = start_runner(model)
    first = runner.submit(make_call(0))
    await until(lambda: model.begun)
    others = [runner.submit(make_call(*values)) for values in [(1,), (2, 3), (4,)]]
    model.let(2)
    answers = await asyncio.gather(first, *others)
    assert [call.rows for call in model.calls] == [1, 4]
    assert [outputs(answer) for answer in answers] == [[0], [4], [8, 12], [16]]


async def test_requests_of_different_groups_do_not_meet(start_runner, gated, make_call, until):
    model = gated()
    runner = start_runner(model)
    futures = [runner.submit(make_call(0))]
    await until(lambda: model.begun)
    futures += [runner.submit(make_call(1)), runner.submit(make_call(1, outputs=("rows",)))]
    futures += [runner.submit(make_call(1, temperature=1)), runner.submit(make_call(2))]
    model.let(9)
    await asyncio.gather(*futures)
    assert [(call.rows, call.outputs) for call in model.calls] == [
        (1, ("output-0",)),
        (2, ("output-0",)),
        (1, ("rows",)),
        (1, ("output-0",)),
    ]


async def test_a_batch_ends_at_the_row_limit(start_runner, gated, make_call, until):
    model = gated()
    runner = start_runner(model, max_batch_size=4)
    futures = [runner.submit(make_call(0))]
    await until(lambda: model.begun)
    futures += [runner.submit(make_call(*[1] * rows)) for rows in (3, 2, 1, 2)]
    model.let(9)
    await asyncio.gather(*futures)
    assert [call.rows for call in model.calls] == [1, 4, 4]


async def test_a_request_larger_than_the_limit_runs_alone(start_runner, gated, make_call, until):
    model = gated()
    runner = start_runner(model, max_batch_size=2)
    futures = [runner.submit(make_call(0))]
    await until(lambda: model.begun)
    futures += [runner.submit(make_call(1)), runner.submit(make_call(*range(9))), runner.submit(make_call(1))]
    model.let(9)
    await asyncio.gather(*futures)
    assert [call.rows for call in model.calls] == [1, 2, 9]


@pytest.mark.parametrize(
    ("option", "error"), [("fail_on_value", ModelFailed), ("refuse_value", InvalidRequest)], ids=["fault", "refusal"]
)
async def test_a_request_that_breaks_a_batch_fails_alone(start_runner, gated, make_call, outputs, until, option, error):
    model = gated(**{option: 13.0})
    runner = start_runner(model)
    first = runner.submit(make_call(0))
    await until(lambda: model.begun)
    good, bad, also_good = [runner.submit(make_call(value)) for value in (1, 13, 2)]
    model.let(99)
    answers = await asyncio.gather(first, good, bad, also_good)
    assert outputs(answers[0]) == [0]
    assert answers[1].parts[0]["output-0"].tolist() == [4]
    assert isinstance(answers[2].parts[0], error)
    assert answers[3].parts[0]["output-0"].tolist() == [8]


class _OnTheLoop(FakeModel):
    """Asynchronous; refuses 13, and knows how many of its calls have run at the same time."""

    def __init__(self, concurrency: int) -> None:
        super().__init__(0.0, FakeOptions(refuse_value=13.0))
        self.concurrency = concurrency
        self.most = self._now = 0
        self.gate = asyncio.Event()

    async def predict(self, inputs, outputs, parameters):
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await self.gate.wait()
            for _ in range(5):
                await asyncio.sleep(0)
            return super().predict(inputs, outputs, parameters)
        finally:
            self._now -= 1


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_what_broke_a_batch_runs_again_alone_and_not_more_at_once_than_the_model_allows(
    start_runner, make_call, outputs, until, concurrency: int
):
    model = _OnTheLoop(concurrency)
    runner = start_runner(model)
    first = [runner.submit(make_call(0, outputs=("output-0",), name=str(index))) for index in range(concurrency)]
    await until(lambda: model.most == concurrency)
    broken = [runner.submit(make_call(value)) for value in (1, 13, 2, 3, 4)]
    model.gate.set()
    answers = [await asyncio.wait_for(future, 5) for future in (*first, *broken)]
    parts = [answer.parts[0] for answer in answers[concurrency:]]
    assert isinstance(parts.pop(1), InvalidRequest)
    assert [part["output-0"].tolist() for part in parts] == [[4], [8], [12], [16]]
    assert model.most == concurrency


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_broke_a_batch_does_not_run_again_when_nobody_waits_any_more(
    start_runner, make_call, until, asynchronous: bool
):
    class Late(_OnTheLoop if asynchronous else FakeModel):
        def __init__(self) -> None:
            super().__init__(*((1,) if asynchronous else (0.0, FakeOptions(refuse_value=13.0))))

    model = Late()
    if asynchronous:
        model.gate.set()
    runner = start_runner(model, max_batch_size=2, wait_s=60)
    past = monotonic_ns() - 1
    both = [runner.submit(replace(make_call(value), deadline_ns=past)) for value in (1, 13)]
    answers = await asyncio.wait_for(asyncio.gather(*both), 5)
    assert [type(answer.parts[0]) for answer in answers] == [InvalidRequest, InvalidRequest]
    assert len(model.calls) == 1


async def test_a_model_that_asks_nobody_is_asked_by_all_together(start_runner, gated, make_call, until):
    model = gated()
    runner = start_runner(model)
    first = runner.submit(make_call(0))
    await until(lambda: model.begun)
    others = [runner.submit(replace(make_call(1), via=via)) for via in ((), ("pipeline@1",), ("other@2", "front@1"))]
    model.let(2)
    await asyncio.gather(first, *others)
    assert [call.rows for call in model.calls] == [1, 3]


async def test_a_full_batch_does_not_wait_for_its_window(start_runner, fake, make_call):
    model = fake()
    runner = start_runner(model, max_batch_size=2, wait_s=60)
    await asyncio.wait_for(asyncio.gather(runner.submit(make_call(1)), runner.submit(make_call(2))), 5)
    assert [call.rows for call in model.calls] == [2]


async def test_a_lone_request_waits_its_window_and_no_longer(start_runner, fake, make_call):
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.wait_for(start_runner(fake(), wait_s=0.02).submit(make_call(1)), 5)
    assert loop.time() - began >= 0.02


async def test_a_full_queue_refuses_and_recovers(start_runner, gated, make_call, until):
    model = gated()
    runner = start_runner(model, max_batch_size=1, max_queued=2)
    futures = [runner.submit(make_call(0))]
    await until(lambda: model.begun)
    futures += [runner.submit(make_call(1)), runner.submit(make_call(2))]
    with pytest.raises(Overloaded, match='model "m": expected at most 2 waiting'):
        runner.submit(make_call(3))
    model.let(9)
    await asyncio.gather(*futures)
    assert await runner.submit(make_call(4))


async def test_cancelled_requests_make_room_in_a_full_queue(start_runner, gated, make_call, until):
    model = gated()
    runner = start_runner(model, max_batch_size=1, max_queued=2)
    first = runner.submit(make_call(0))
    await until(lambda: model.begun)
    for future in [runner.submit(make_call(1)), runner.submit(make_call(2))]:
        future.cancel()
    assert runner.ongoing == 1
    replacement = runner.submit(make_call(3))
    model.let(9)
    await asyncio.gather(first, replacement)
    assert len(model.calls) == 2


async def test_a_request_cancelled_while_it_runs_harms_no_other(start_runner, gated, make_call, until, outputs):
    model = gated()
    runner = start_runner(model)
    first = runner.submit(make_call(0))
    await until(lambda: model.begun)
    cancelled, other = runner.submit(make_call(1)), runner.submit(make_call(2))
    model.let()
    await until(lambda: model.begun == 2)
    cancelled.cancel()
    model.let()
    assert outputs(await other) == [8]
    assert outputs(await first) == [0]


async def test_a_model_without_batch_axis_is_called_one_by_one(start_runner, gated, until):
    model = gated(batch_axis=False)
    runner = start_runner(model)
    call = Call({"input-0": np.ones((3, 4))}, (0,), ("output-0",), {})
    futures = [runner.submit(call) for _ in range(3)]
    model.let(3)
    await asyncio.gather(*futures)
    assert [done.rows for done in model.calls] == [3, 3, 3]


async def test_requests_queued_while_merging_was_off_are_not_merged_blindly(start_runner, gated, make_call, until):
    model = gated()
    runner = start_runner(model, max_batch_size=1)
    first = runner.submit(make_call(0))
    await until(lambda: model.begun)
    sums, rows = runner.submit(make_call(1)), runner.submit(make_call(1, outputs=("rows",)))
    runner.configure(64, 0.0, 1000)
    model.let(9)
    await first
    assert (await sums).merged.keys() == {"output-0"}
    assert (await rows).merged.keys() == {"rows"}


class _Raising(FakeModel):
    """Raises what it is told, once."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(0.0, FakeOptions())
        self._error: BaseException | None = error

    def predict(self, inputs, outputs, parameters):
        error, self._error = self._error, None
        if error is not None:
            raise error
        return super().predict(inputs, outputs, parameters)


class _Unpicklable(InvalidRequest):
    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(1), asyncio.CancelledError(), StopIteration(), _Unpicklable(reason="no")],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_model_raises_fails_its_call_only(start_runner, make_call, outputs, error):
    runner = start_runner(_Raising(error))
    answer = await asyncio.wait_for(runner.submit(make_call(1)), 5)
    assert isinstance(answer.parts[0], ModelFailed)
    assert outputs(await asyncio.wait_for(runner.submit(make_call(1)), 5)) == [4]
    assert runner.is_alive


async def test_a_batch_that_cannot_be_merged_fails_alone(start_runner, gated, make_call, outputs, until):
    model = gated()
    runner = start_runner(model)
    first = runner.submit(make_call(0))
    await until(lambda: model.begun)
    scalar = Call({"input-0": np.float64(1)}, (1,), ("output-0",), {})
    broken = [runner.submit(scalar), runner.submit(scalar)]
    model.let(9)
    await first
    for future in broken:
        with pytest.raises(ModelFailed):
            await asyncio.wait_for(future, 5)
    assert outputs(await asyncio.wait_for(runner.submit(make_call(1)), 5)) == [4]


class _Forgetful(FakeModel):
    """Answers one row whatever was asked."""

    def predict(self, inputs, outputs, parameters):
        return {name: array[:1] for name, array in super().predict(inputs, outputs, parameters).items()}


async def test_an_answer_with_the_wrong_number_of_rows_is_no_answer(start_runner, make_call):
    answer = await start_runner(_Forgetful(0.0, FakeOptions())).submit(make_call(1, 2))
    assert isinstance(answer.parts[0], InternalError)


async def test_draining_answers_everything_then_closes_the_model(gated, make_call, until):
    model = gated()
    runner = ModelRunner("m", model, 1, 0.0, 1000)
    runner.start()
    futures = [runner.submit(make_call(value)) for value in range(3)]
    drained = asyncio.ensure_future(runner.drain())
    await asyncio.sleep(0)
    assert not model.is_closed
    model.let(3)
    await drained
    assert all(future.done() for future in futures)
    assert model.is_closed
    with pytest.raises(ModelNotReady):
        runner.submit(make_call(1))


async def test_a_request_that_arrives_as_draining_ends_is_answered(fake, make_call):
    runner = ModelRunner("m", fake(), 1, 0.0, 1000)
    runner.start()
    await runner.submit(make_call(1))
    drained = asyncio.ensure_future(runner.drain())
    late = runner.submit(make_call(2))  # before draining has had its turn
    await asyncio.wait_for(drained, 5)
    assert late.done()


async def test_a_request_between_the_last_answer_and_the_end_is_answered(gated, make_call, until):
    model = gated()
    runner = ModelRunner("m", model, 1, 0.0, 1000)
    runner.start()
    late = []
    runner.submit(make_call(1)).add_done_callback(lambda _: late.append(runner.submit(make_call(2))))
    drained = asyncio.ensure_future(runner.drain())
    model.let(9)
    await asyncio.wait_for(drained, 5)
    assert late[0].done()


async def test_where_things_lie_is_nobodys_business(start_runner, make_call) -> None:
    class Broken(FakeModel):
        def predict(self, inputs, outputs, parameters):
            raise FileNotFoundError(2, "No such file", "/srv/models/a-b/weights.bin")

    answer = await start_runner(Broken(0.0, FakeOptions())).submit(make_call(1.0))
    assert str(answer.parts[0]).endswith("[Errno 2] No such file: '…/weights.bin'")


async def test_a_request_with_priority_goes_before_those_that_wait(start_runner, gated, make_call, until) -> None:
    model = gated(batch_axis=False)
    runner = start_runner(model)
    order: list[str] = []
    calls = {"first": 0, "none": 0, "third": 3, "one": 1, "other one": 1}
    futures = []
    for name, priority in calls.items():
        future = runner.submit(replace(make_call(1.0), rows=(0,), priority=priority))
        future.add_done_callback(lambda _, name=name: order.append(name))
        futures.append(future)
        if name == "first":
            await until(lambda: model.begun == 1)
    model.let(len(calls))
    await asyncio.gather(*futures)
    assert order == ["first", "one", "other one", "third", "none"]
