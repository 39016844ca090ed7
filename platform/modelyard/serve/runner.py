# SPDX-License-Identifier: Apache-2.0
"""Runs one loaded model: admission, dynamic batching by rows, ``predict`` in a thread of its own, split per request.

"One request": the last stop before the model. Knows neither Ray nor sockets.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from modelyard.batching import Answer, Call, GroupKey, check_rows, group_key, merge, part, split
from modelyard.errors import ModelFailed, ModelNotReady, ModelyardError, Overloaded
from modelyard.model import Model
from modelyard.tensor import Tensors, to_protocol_array

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    call: Call
    future: asyncio.Future[Answer]
    arrived: float
    key: GroupKey = field(default=())

    @property
    def rows(self) -> int:
        return sum(self.call.rows)


class ModelRunner:
    """The queue in front of one model and the loop that empties it.

    While one batch is in ``predict`` the next one forms, so batches grow with the load and a lone request never waits
    (unless ``batch_wait_timeout_s`` says so).

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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._waiting: deque[_Waiting] = deque()
        self._running = 0
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
        """Requests waiting or being predicted."""
        return self._queued() + self._running

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
        loop = asyncio.get_running_loop()
        waiting = _Waiting(call, loop.create_future(), loop.time())
        if self._merges:
            waiting.key = group_key(call)
        self._waiting.append(waiting)
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
        self._thread.shutdown(wait=True)
        self._model.close()

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            if self._wait_s > 0 and self._merges:
                await self._wait_for_rows()
            batch = self._take_batch()
            if batch:
                await self._execute(batch)

    async def _wait_for_rows(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            left = self._waiting[0].arrived + self._wait_s - loop.time()
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
        self._running = sum(len(waiting.call.rows) for waiting in batch)
        try:
            call = merge([waiting.call for waiting in batch])
            answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._predict, call)
            self._deliver(batch, call, answer)
        except Exception as exc:
            # The loop must outlive anything; whatever failed here fails this batch only.
            logger.exception('model "%s": a batch failed outside the model', self._name)
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(ModelFailed(self._name, f"{type(exc).__name__}: {exc}"))
        finally:
            self._running = 0

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

    def _predict(self, call: Call) -> Answer:
        """In the model's thread. A request that breaks the batch fails alone: the others are predicted again."""
        try:
            return Answer(merged=self._predict_once(call))
        except BaseException as exc:  # noqa: BLE001  # a model may raise anything, also SystemExit and CancelledError
            error = self._as_error(exc)
        if len(call.rows) == 1:
            return Answer(parts=(error,))
        return Answer(parts=tuple(self._predict_part(part(call, index)) for index in range(len(call.rows))))

    def _predict_part(self, call: Call) -> Tensors | ModelyardError:
        try:
            return self._predict_once(call)
        except BaseException as exc:  # noqa: BLE001  # as above; nothing of this thread's may end the process
            return self._as_error(exc)

    def _predict_once(self, call: Call) -> Tensors:
        raw = self._model.predict(call.inputs, call.outputs, call.parameters)
        outputs = {name: to_protocol_array(raw[name]) for name in call.outputs}
        if self._batched:
            check_rows(outputs, call)
        return outputs

    def _as_error(self, exc: BaseException) -> ModelyardError:
        if isinstance(exc, ModelyardError) and _can_travel(exc):
            return exc
        logger.warning('model "%s" raised', self._name, exc_info=exc)
        return ModelFailed(self._name, f"{type(exc).__name__}: {exc}")


def _can_travel(error: ModelyardError) -> bool:
    """A third party's error may not pickle; sent anyway it would break the lane for all calls on it."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # what was pickled just here
    except Exception:  # noqa: BLE001  # whatever its constructor or its attributes raise
        return False
    return True
