# SPDX-License-Identifier: Apache-2.0
"""Runs one loaded model: admission, dynamic batching by rows, ``predict`` in a thread of its own, split per request.

"One request": the last stop before the model. Knows neither Ray nor sockets. A decoupled model's requests are not
merged: each gets a stream of its own answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import pickle
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from time import monotonic_ns
from typing import Final, cast

import numpy as np

from modelyard.batching import (
    BATCH_ID,
    Answer,
    Call,
    GroupKey,
    check_rows,
    enqueue,
    group_key,
    has_output,
    merge,
    part,
    split,
)
from modelyard.dataplane import new_id
from modelyard.errors import ModelFailed, ModelNotReady, ModelyardError, Overloaded
from modelyard.model import Model
from modelyard.peers import get_peers, set_origin
from modelyard.statistics import Statistics
from modelyard.tensor import Tensors, to_protocol_array

logger = logging.getLogger(__name__)

_MAX_PLACES: Final = 1000
"""Answers beyond this place of a stream are counted as one."""
_MAX_SIZES: Final = 1024
"""Clients choose how many rows they send: beyond this, sizes up to the next power of two are counted as one."""
_NS: Final = 1_000_000_000
_FOLDERS: Final = re.compile(r"(?<![\w:/])/(?:[\w.@+-]+/)+")


@dataclass(slots=True)
class _Waiting:
    call: Call
    future: asyncio.Future[Answer]
    arrived_ns: int
    key: GroupKey = field(default=())

    @property
    def rows(self) -> int:
        return sum(self.call.rows)


@dataclass(frozen=True, slots=True)
class _Done:
    """What the predict thread gives back: the answer, and how long which part of it took."""

    answer: Answer
    infer_ns: int
    output_ns: int


@dataclass(frozen=True, slots=True)
class _Raised:
    """A generator's step that raised; as a value, since a future takes neither StopIteration nor SystemExit."""

    error: BaseException


class ModelRunner:
    """The queue in front of one model and the loop that empties it.

    While batches are in ``predict`` (``Model.concurrency`` at once) the next one forms, so batches grow with the load
    and a lone request never waits (unless ``batch_wait_timeout_s`` says so).

    Args:
        name: The model's name, for messages.
        model: What predicts.
        max_batch_size: Rows in one call of ``predict``; a single larger request still runs, alone.
        batch_wait_timeout_s: How long the oldest request may wait for the batch to fill, in seconds.
        max_queued_requests: Requests that may wait; beyond that, :class:`~modelyard.errors.Overloaded`.
    """

    def __init__(
        self, name: str, model: Model, max_batch_size: int, batch_wait_timeout_s: float, max_queued_requests: int
    ) -> None:
        self._name = name
        self._model = model
        self._merges = model.signature.batch_axis and max_batch_size > 1
        self._batched = model.signature.batch_axis
        self._is_async = inspect.iscoroutinefunction(model.predict)
        self._slots = asyncio.Semaphore(model.concurrency)
        self._room = asyncio.Semaphore(model.concurrency)
        self._batches: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(1 if self._is_async else model.concurrency, thread_name_prefix="predict")
        self._waiting: deque[_Waiting] = deque()
        self._running = 0
        self._streams = 0
        self.statistics = Statistics()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop_task: asyncio.Task[None] | None = None
        self._closed = False
        self.configure(max_batch_size, batch_wait_timeout_s, max_queued_requests)

    def configure(self, max_batch_size: int, batch_wait_timeout_s: float, max_queued_requests: int) -> None:
        """Takes new limits; requests already queued are kept."""
        self._max_rows = max_batch_size
        self._wait_s = batch_wait_timeout_s
        self._max_queued = max_queued_requests
        self._merges = self._batched and max_batch_size > 1

    def start(self) -> None:
        """Begins to answer; call it in the event loop that will submit."""
        self._loop_task = asyncio.get_running_loop().create_task(self._run())

    @property
    def is_alive(self) -> bool:
        """The loop that empties the queue goes on, or has not begun."""
        return self._loop_task is None or not self._loop_task.done()

    @property
    def ongoing(self) -> int:
        """Requests waiting, being predicted or streaming."""
        return self._queued() + self._running + self._streams

    def submit(self, call: Call) -> asyncio.Future[Answer]:
        """Queues one call; cancelling the future takes it out again unless it is already running.

        Raises:
            Overloaded: The queue is full.
            ModelNotReady: It has been drained.
        """
        if self._closed:
            raise ModelNotReady(self._name, "its replica is stopping")
        if self._is_full(len(call.rows)):
            raise Overloaded(f'model "{self._name}": expected at most {self._max_queued} waiting requests, got more')
        waiting = _Waiting(call, asyncio.get_running_loop().create_future(), monotonic_ns())
        if self._merges:
            asks = get_peers().is_used  # else it is in no circle, and whoever asks it may be answered with others
            waiting.key = group_key(call if asks or not call.via else replace(call, via=()))
        enqueue(self._waiting, waiting, _priority)
        self._idle.clear()
        self._wake.set()
        return waiting.future

    def _queued(self) -> int:
        return sum(len(waiting.call.rows) for waiting in self._waiting if not waiting.future.done())

    def _is_full(self, more: int) -> bool:
        """Whether so many more would be too many; a call that finds an empty queue never is."""
        if not self._waiting or self._queued() + more <= self._max_queued:
            return False
        self._waiting = deque(waiting for waiting in self._waiting if not waiting.future.done())
        return bool(self._waiting)

    async def drain(self) -> None:
        """Waits until everything submitted is answered, then stops and closes the model."""
        while not self._idle.is_set():  # something may be submitted between the event and this task's turn
            await self._idle.wait()
        self._closed = True
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
            self._loop_task = None  # it holds this runner, which could not be freed at once
        await asyncio.to_thread(self._thread.shutdown)  # a stream that was left may still need this loop to end
        await asyncio.to_thread(self._model.close)

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                self._settle()
                self._wake.clear()
                await self._wake.wait()
            if self._wait_s > 0 and self._merges:
                await self._wait_for_rows()
            await self._slots.acquire()
            batch = self._take_batch()
            self._running += _requests(batch)
            if not batch:
                self._slots.release()
            elif self._model.concurrency == 1:  # the same without a task for each batch
                await self._execute(batch)
            else:
                task = asyncio.get_running_loop().create_task(self._execute(batch))
                self._batches.add(task)
                task.add_done_callback(self._batches.discard)

    def _settle(self) -> None:
        if not self._waiting and not self._running and not self._streams:
            self._idle.set()

    async def _wait_for_rows(self) -> None:
        while self._waiting:
            left = self._wait_s - (monotonic_ns() - self._waiting[0].arrived_ns) / _NS
            if left <= 0 or sum(waiting.rows for waiting in self._waiting) >= self._max_rows:
                return
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), left)
            except TimeoutError:
                return

    def _take_batch(self) -> list[_Waiting]:
        """The oldest request and those behind it that can travel with it, up to the row limit."""
        batch: list[_Waiting] = []
        kept: list[_Waiting] = []
        rows = 0
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.future.done():
                continue
            if not batch:
                batch.append(waiting)
                rows = waiting.rows
                if not self._merges:
                    break
            elif waiting.key and waiting.key == batch[0].key and rows + waiting.rows <= self._max_rows:
                batch.append(waiting)
                rows += waiting.rows
            else:
                kept.append(waiting)
            if rows >= self._max_rows:
                break
        self._waiting.extendleft(reversed(kept))
        return batch

    async def _execute(self, batch: Sequence[_Waiting]) -> None:
        try:
            begun_ns = monotonic_ns()
            call = merge([waiting.call for waiting in batch])
            input_ns = monotonic_ns() - begun_ns
            if self._is_async:
                done = await self._predict_async(call)
            else:
                done = await asyncio.get_running_loop().run_in_executor(self._thread, self._predict, call)
            self._deliver(batch, call, done.answer)
            self._count(batch, call, begun_ns, input_ns, done)
        except Exception as exc:
            # The loop must outlive anything; whatever failed here fails this batch only.
            logger.exception('model "%s": a batch failed outside the model', self._name)
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(ModelFailed(self._name, f"{type(exc).__name__}: {exc}"))
        finally:
            self._running -= _requests(batch)
            self._slots.release()
            self._settle()

    def _count(self, batch: Sequence[_Waiting], call: Call, begun_ns: int, input_ns: int, done: _Done) -> None:
        parts = len(call.rows)
        failed = sum(isinstance(outputs, ModelyardError) for outputs in done.answer.parts)
        queued_ns = call.waited_ns + sum((begun_ns - one.arrived_ns) * len(one.call.rows) for one in batch)
        total_ns = queued_ns + (monotonic_ns() - begun_ns) * parts
        counts = self.statistics
        counts.last_inference_ms = time.time_ns() // 1_000_000
        # A broken batch was predicted whole, then part by part.
        counts.execution_count += 1 if done.answer.merged is not None or parts == 1 else 1 + parts
        counts.fail.add(failed, total_ns * failed // parts)
        good = parts - failed
        if not good:
            return
        rows = sum(call.rows) or 1
        counts.success.add(good, total_ns * good // parts)
        counts.queue.add(good, queued_ns * good // parts)
        counts.compute_input.add(good, input_ns * good)
        counts.compute_infer.add(good, done.infer_ns * good)
        counts.compute_output.add(good, done.output_ns * good)
        if failed:
            rows = sum(count for count, one in zip(call.rows, done.answer.parts, strict=True) if isinstance(one, dict))
        counts.inference_count += rows
        totals = counts.batches[rows if rows <= _MAX_SIZES else 1 << (rows - 1).bit_length()]
        totals.compute_input.add(1, input_ns)
        totals.compute_infer.add(1, done.infer_ns)
        totals.compute_output.add(1, done.output_ns)

    @staticmethod
    def _deliver(batch: Sequence[_Waiting], call: Call, answer: Answer) -> None:
        if len(batch) == 1:
            if not batch[0].future.done():
                batch[0].future.set_result(answer)
            return
        if answer.merged is not None:
            whole = split(answer, [waiting.rows for waiting in batch])
            answers = [Answer(merged=outputs) for outputs in whole if not isinstance(outputs, ModelyardError)]
        else:
            answers, start = [], 0
            for waiting in batch:
                end = start + len(waiting.call.rows)
                answers.append(Answer(parts=answer.parts[start:end]))
                start = end
        for waiting, own in zip(batch, answers, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(own)

    def _predict(self, call: Call) -> _Done:
        """In the model's thread. A request that breaks the batch fails alone: the others are predicted again."""
        begun_ns = monotonic_ns()
        try:
            raw = self._ask(call)
            infer_ns = monotonic_ns() - begun_ns
            answer = Answer(merged=self._to_outputs(raw, call))
            return _Done(answer, infer_ns, monotonic_ns() - begun_ns - infer_ns)
        except BaseException as exc:  # noqa: BLE001  # a model may raise anything, also SystemExit and CancelledError
            error = self._as_error(exc)
        if len(call.rows) == 1 or monotonic_ns() > call.deadline_ns:
            parts: tuple[Tensors | ModelyardError, ...] = (error,) * len(call.rows)
        else:
            parts = tuple(self._predict_part(part(call, index)) for index in range(len(call.rows)))
        return _Done(Answer(parts=parts), monotonic_ns() - begun_ns, 0)

    def _predict_part(self, call: Call) -> Tensors | ModelyardError:
        try:
            return self._to_outputs(self._ask(call), call)
        except BaseException as exc:  # noqa: BLE001  # as above; nothing of this thread's may end the process
            return self._as_error(exc)

    async def _predict_async(self, call: Call) -> _Done:
        """As :meth:`_predict`, of a model that runs on the event loop."""
        begun_ns = monotonic_ns()
        try:
            raw = await self._ask_async(call)
            infer_ns = monotonic_ns() - begun_ns
            answer = Answer(merged=self._to_outputs(raw, call))
            return _Done(answer, infer_ns, monotonic_ns() - begun_ns - infer_ns)
        except BaseException as exc:
            if _is_closing(exc):
                raise
            error = self._as_error(exc)
        if len(call.rows) == 1 or monotonic_ns() > call.deadline_ns:
            parts: tuple[Tensors | ModelyardError, ...] = (error,) * len(call.rows)
        else:
            alone = [self._predict_async(part(call, index)) for index in range(len(call.rows))]
            parts = tuple(_only_part(done.answer) for done in await asyncio.gather(*alone))
        return _Done(Answer(parts=parts), monotonic_ns() - begun_ns, 0)

    def _ask(self, call: Call) -> Tensors:
        set_origin(call)
        outputs = self._model.predict(call.inputs, self._asked_names(call), call.parameters)
        return self._add_batch_id(cast(Tensors, outputs), call)

    async def _ask_async(self, call: Call) -> Tensors:
        set_origin(call)
        async with self._room:  # which the parts of broken batches need as well
            answer = self._model.predict(call.inputs, self._asked_names(call), call.parameters)
            outputs = await cast(Awaitable[Tensors], answer)
        return self._add_batch_id(outputs, call)

    def _asked_names(self, call: Call) -> tuple[str, ...]:
        """The outputs that the model computes; always at least one."""
        if BATCH_ID not in call.outputs or has_output(self._model.signature, BATCH_ID):
            return call.outputs
        names = tuple(name for name in call.outputs if name != BATCH_ID)
        return names or tuple(spec.name for spec in self._model.signature.outputs)

    def _add_batch_id(self, outputs: Tensors, call: Call) -> Tensors:
        if BATCH_ID not in call.outputs or BATCH_ID in outputs:
            return outputs
        return {**outputs, BATCH_ID: np.full(sum(call.rows) or 1, new_id().encode(), dtype=object)}

    def _to_outputs(self, raw: Tensors, call: Call) -> Tensors:
        missing = [name for name in call.outputs if name not in raw]
        if missing and (needed := set(missing) - _optional_outputs(self._model)):
            raise ValueError(f"it gave no output {', '.join(sorted(needed))}, which its signature has")
        outputs = {name: to_protocol_array(raw[name]) for name in call.outputs if name in raw}
        if self._batched:
            check_rows(outputs, call)
        return outputs

    # -- decoupled models

    async def stream(self, call: Call) -> AsyncGenerator[Tensors]:
        """Answers one call of a decoupled model: each answer as the model gives it.

        Closing the generator ends the model's own.

        Raises:
            Overloaded: As many streams as may wait are open already.
            ModelNotReady: It has been drained.
            ModelyardError: The model's error, also after some answers.
        """
        if self._closed:
            raise ModelNotReady(self._name, "its replica is stopping")
        if self._streams >= max(1, self._max_queued):
            raise Overloaded(f'model "{self._name}": expected at most {self._max_queued} streams, got more')
        self._streams += 1
        self._idle.clear()
        record = _StreamRecord(self.statistics, call.waited_ns)
        try:
            async with contextlib.aclosing(self._steps(call)) as steps:
                async for raw in steps:
                    record.infer_ended()
                    outputs = {name: to_protocol_array(raw[name]) for name in call.outputs if name in raw}
                    record.answered(bool(outputs))
                    yield outputs
                    record.infer_begins()
            record.succeeded()
        except BaseException as exc:  # a model may raise anything
            if _is_closing(exc):
                record.cancelled()
                raise
            record.failed()
            raise self._as_error(exc) from exc
        finally:
            self._streams -= 1
            self._settle()

    async def _steps(self, call: Call) -> AsyncGenerator[Tensors]:
        set_origin(call)
        source = self._model.stream(call.inputs, call.outputs, call.parameters)
        if isinstance(source, AsyncIterator):
            try:
                async for outputs in source:
                    yield outputs
            finally:
                if isinstance(source, AsyncGenerator):
                    await source.aclose()
            return
        loop = asyncio.get_running_loop()
        try:
            while (step := await loop.run_in_executor(self._thread, _step, source, call)) is not None:
                if isinstance(step, _Raised):
                    raise self._as_error(step.error) from step.error
                yield step
        finally:
            # In the same thread, so after a step that may still be running. Not awaited: nobody waits for it.
            loop.run_in_executor(self._thread, _close, source)

    def _as_error(self, exc: BaseException) -> ModelyardError:
        if isinstance(exc, ModelyardError) and _can_travel(exc):
            return exc
        logger.warning('model "%s" raised', self._name, exc_info=exc)
        return ModelFailed(self._name, f"{type(exc).__name__}: {_without_folders(str(exc))}")


class _StreamRecord:
    """Counts one stream.

    Args:
        counts: Where.
        waited_ns: How long its request waited before it came here.
    """

    def __init__(self, counts: Statistics, waited_ns: int) -> None:
        self._counts = counts
        self._waited_ns = waited_ns
        self._begun_ns = self._step_ns = monotonic_ns()
        self._infer_ns = self._output_ns = 0
        self._place = 0

    def infer_begins(self) -> None:
        """The model is asked for its next answer."""
        self._step_ns = monotonic_ns()

    def infer_ended(self) -> None:
        """The model gave an answer."""
        now = monotonic_ns()
        infer_ns, self._step_ns = now - self._step_ns, now
        self._infer_ns += infer_ns
        self._counts.responses[self._key].compute_infer.add(1, infer_ns)

    def answered(self, has_outputs: bool) -> None:
        """Its outputs are checked."""
        output_ns = monotonic_ns() - self._step_ns
        self._output_ns += output_ns
        totals = self._counts.responses[self._key]
        totals.compute_output.add(1, output_ns)
        (totals.success if has_outputs else totals.empty_response).add(1, monotonic_ns() - self._begun_ns)
        self._place += 1

    def succeeded(self) -> None:
        """The stream has ended as it should."""
        self._end()
        counts, total_ns = self._counts, monotonic_ns() - self._begun_ns + self._waited_ns
        counts.success.add(1, total_ns)
        counts.queue.add(1, self._waited_ns)
        counts.compute_input.add(1, 0)
        counts.compute_infer.add(1, self._infer_ns)
        counts.compute_output.add(1, self._output_ns)
        counts.inference_count += 1
        batch = counts.batches[1]
        batch.compute_input.add(1, 0)
        batch.compute_infer.add(1, self._infer_ns)
        batch.compute_output.add(1, self._output_ns)

    def failed(self) -> None:
        """The model raised."""
        self._end()
        self._counts.responses[self._key].fail.add(1, monotonic_ns() - self._begun_ns)
        self._counts.fail.add(1, monotonic_ns() - self._begun_ns + self._waited_ns)

    def cancelled(self) -> None:
        """Nobody waits any more."""
        self._end()
        self._counts.responses[self._key].cancel.add(1, monotonic_ns() - self._begun_ns)

    @property
    def _key(self) -> int:
        return min(self._place, _MAX_PLACES)

    def _end(self) -> None:
        self._counts.last_inference_ms = time.time_ns() // 1_000_000
        self._counts.execution_count += 1


def _optional_outputs(model: Model) -> set[str]:
    """Outputs that may be missing in an answer."""
    return {spec.name for spec in (*model.signature.outputs, *model.signature.on_request) if spec.optional}


def _without_folders(text: str) -> str:
    """The text with absolute paths cut down to their last part: where things lie is nobody's business."""
    return _FOLDERS.sub("…/", text)


def _is_closing(exc: BaseException) -> bool:
    """Whoever reads the stream goes away. A model may raise CancelledError too; its reader waits for an end then."""
    task = asyncio.current_task()
    if isinstance(exc, asyncio.CancelledError):
        return task is not None and task.cancelling() > 0
    return isinstance(exc, GeneratorExit)


def _requests(batch: Sequence[_Waiting]) -> int:
    return sum(len(waiting.call.rows) for waiting in batch)


def _only_part(answer: Answer) -> Tensors | ModelyardError:
    return answer.parts[0] if answer.merged is None else answer.merged


def _step(source: Iterator[Tensors], call: Call) -> Tensors | _Raised | None:
    """The next answer to the call; None after the last."""
    set_origin(call)
    try:
        return next(source, None)
    except BaseException as exc:  # noqa: BLE001  # a model may raise anything; nothing of this may end the thread
        return _Raised(exc)


def _close(source: Iterator[Tensors]) -> None:
    close = getattr(source, "close", None)
    if close is not None:
        with contextlib.suppress(BaseException):
            close()


def _priority(waiting: _Waiting) -> int:
    return waiting.call.priority


def _can_travel(error: ModelyardError) -> bool:
    """A third party's error may not pickle; sent anyway it would break the lane for all calls on it."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # what was pickled just here
    except Exception:  # noqa: BLE001  # whatever its constructor or its attributes raise
        return False
    return True
