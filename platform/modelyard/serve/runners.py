# SPDX-License-Identifier: Apache-2.0
"""A replica's model and its members, each behind a queue of its own.

"One request": chooses the runner. Nearly all models have no members, and then there is only one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Final

from modelyard.batching import Answer, Call
from modelyard.errors import InvalidRequest
from modelyard.model import Model
from modelyard.openai import MEMBER, OpenAIMember, OpenAIModel
from modelyard.serve.autoscaling import Work, to_work
from modelyard.serve.runner import ModelRunner
from modelyard.statistics import Statistics, merge_statistics
from modelyard.tensor import Tensors

_MAX_BATCH_SIZE: Final = 64
_MAX_QUEUED: Final = 1000


class Runners:
    """Answers the calls of a replica. Until :meth:`configure` says otherwise its limits are small ones.

    Args:
        name: The model's name, for messages.
        model: What predicts.
    """

    def __init__(self, name: str, model: Model) -> None:
        self._name = name
        self._publishes = model.publishes_members
        self._runners = {"": ModelRunner(name, model, _MAX_BATCH_SIZE, 0.0, _MAX_QUEUED)}
        for member, one in model.members.items():
            shown = member if self._publishes else f"{name}/{member}"
            self._runners[member] = ModelRunner(shown, one, _MAX_BATCH_SIZE, 0.0, _MAX_QUEUED)
        if isinstance(model, OpenAIModel) and model.openai_routes:
            self._runners[MEMBER] = ModelRunner(name, OpenAIMember(model), _MAX_BATCH_SIZE, 0.0, _MAX_QUEUED)

    def configure(self, max_batch_size: int, batch_wait_timeout_s: float, max_queued_requests: int) -> None:
        """As :meth:`ModelRunner.configure`, each of them."""
        for runner in self._runners.values():
            runner.configure(max_batch_size, batch_wait_timeout_s, max_queued_requests)

    def start(self) -> None:
        """Begins to answer; call it in the event loop that will submit."""
        for runner in self._runners.values():
            runner.start()

    @property
    def is_alive(self) -> bool:
        """Every queue is being emptied."""
        return all(runner.is_alive for runner in self._runners.values())

    @property
    def ongoing(self) -> int:
        """Requests waiting, being predicted or streaming."""
        return sum(runner.ongoing for runner in self._runners.values())

    @property
    def work(self) -> Work:
        """What was done, tokens left out."""
        return to_work([runner.statistics for runner in self._runners.values()])

    @property
    def statistics(self) -> Mapping[str, Statistics]:
        """What was counted, of the model under the empty name; signatures count as their model."""
        counted = {member: runner.statistics for member, runner in self._runners.items()}
        if self._publishes or len(counted) == 1:
            return counted
        return {"": merge_statistics(counted.values())}

    def forget_counts(self) -> None:
        """Begins to count anew."""
        for runner in self._runners.values():
            runner.statistics = Statistics()

    def adopt(self, counts: Mapping[str, Statistics]) -> dict[str, Statistics]:
        """Goes on with what was counted before, by member; the same objects, in which it counts from now on."""
        for member, runner in self._runners.items():
            runner.statistics = counts.get(member, runner.statistics)
        return {member: runner.statistics for member, runner in self._runners.items()}

    def submit(self, call: Call) -> asyncio.Future[Answer]:
        """As :meth:`ModelRunner.submit`.

        Raises:
            InvalidRequest: There is no such member.
        """
        return self._get(call.member).submit(call)

    def stream(self, call: Call) -> AsyncGenerator[Tensors]:
        """As :meth:`ModelRunner.stream`.

        Raises:
            InvalidRequest: There is no such member.
        """
        return self._get(call.member).stream(call)

    def _get(self, member: str) -> ModelRunner:
        runner = self._runners.get(member)
        if runner is None:
            raise InvalidRequest(f'model "{self._name}" has no member "{member}"')
        return runner

    async def drain(self) -> None:
        """Waits until everything submitted is answered, then closes the members and at last the model."""
        host, *members = self._runners.values()
        await asyncio.gather(*(runner.drain() for runner in members))
        await host.drain()
