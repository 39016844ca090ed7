# SPDX-License-Identifier: Apache-2.0
"""What the steps of a pipeline do with a request. Everything that can be known before is known: see the plan."""

from __future__ import annotations

import asyncio
import bisect
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, TypeAlias

import numpy as np

from modelyard.errors import DeadlineExceeded, InvalidRequest, ModelNotReady, ModelyardError
from modelyard.peers import Origin, PeerRequest, get_peers
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array, Parameters, ParameterValue, Tensors
from modelyard_deployments._pipeline_conditions import Test

logger = logging.getLogger(__name__)

REQUEST: Final = "request."
"""Before the name of one of the request's own inputs."""

_chance: Final = random.Random()  # noqa: S311  # shares out requests, guards nothing


@dataclass(frozen=True, slots=True)
class Run:
    """One request, or several merged ones, on the way through a pipeline.

    Attributes:
        request: The request's inputs.
        parameters: The request's parameters.
        asked: Outputs that the client asks for.
        origin: On whose behalf.
        owners: To which of the merged requests each row belongs; empty where there are no rows.
        places: Which of the rows these are; None for all.
    """

    request: Tensors
    parameters: Parameters
    asked: tuple[str, ...]
    origin: Origin
    owners: Array
    places: Array | None = None

    @property
    def is_merged(self) -> bool:
        """It is several requests."""
        return len(self.origin.rows) > 1

    def find(self, name: str, tensors: Tensors) -> Array | None:
        """A tensor by the name of where it comes from; None where it was not sent, or what makes it failed."""
        return self.request.get(name.removeprefix(REQUEST)) if name.startswith(REQUEST) else tensors.get(name)

    def take(self, rows: Array) -> Run:
        """The same for some of the rows. A copy."""
        places = rows if self.places is None else self.places[rows]
        return replace(self, request=_take(self.request, rows), owners=self.owners[rows], places=places)


def _take(tensors: Tensors, rows: Array) -> dict[str, Array]:
    return {name: array[rows] for name, array in tensors.items()}


class Node(ABC):
    """A step.

    Args:
        label: What it is called.
        timeout_s: How long it may take; None where only the request's deadline counts.
        is_soft: Where it fails, it gives no outputs.
    """

    def __init__(self, label: str, timeout_s: float | None, is_soft: bool) -> None:
        self.label = label
        self.timeout_s = timeout_s
        self.is_soft = is_soft
        self._is_left_out = False

    async def run(self, tensors: Tensors, run: Run) -> Tensors:
        """What it makes of the tensors of the step before.

        Raises:
            ModelyardError: It failed, and is not soft. What several requests fail at together is raised too, unless it
                is nothing of theirs: each is then tried alone, and only the one that is the cause goes without.
        """
        try:
            answers = await self._run(tensors, run)
        except Exception as exc:  # a soft step may fail at anything; a hard one's failure goes on as it is
            if not self.is_soft or (run.is_merged and not self.fails_for_all(exc)):
                raise
            if not self._is_left_out:  # said once, not for each request
                logger.warning('step "%s" is left out: %s: %s', self.label, type(exc).__name__, exc)
            self._is_left_out = True
            return {}
        if self._is_left_out:
            logger.info('step "%s" answers again', self.label)
            self._is_left_out = False
        return answers

    def fails_for_all(self, exc: Exception) -> bool:
        """Whether it would have failed whatever was asked."""
        return False

    async def _run(self, tensors: Tensors, run: Run) -> Tensors:
        if self.timeout_s is None:
            return await self.work(tensors, run)
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self.work(tensors, run)
        except TimeoutError as exc:
            raise DeadlineExceeded(self.timeout_s, f'step "{self.label}" has not answered') from exc

    @abstractmethod
    async def work(self, tensors: Tensors, run: Run) -> Tensors:
        """As :meth:`run`, whatever it raises."""


class ModelNode(Node):
    """Asks a model.

    Args:
        label: See :class:`Node`.
        timeout_s: See :class:`Node`.
        is_soft: See :class:`Node`.
        model: Its name.
        version: Its version.
        sources: Where its inputs come from.
        takes: What it takes.
        outputs: Its outputs by the names that they get.
        parameters: What it gets beside the request's.
        answers_client: The client chooses among its outputs, and they keep their names.
    """

    def __init__(
        self,
        label: str,
        timeout_s: float | None,
        is_soft: bool,
        *,
        model: str,
        version: str,
        sources: Mapping[str, str],
        takes: Sequence[TensorSpec],
        outputs: Mapping[str, str],
        parameters: Mapping[str, ParameterValue],
        answers_client: bool,
    ) -> None:
        super().__init__(label, None, is_soft)
        self._model = model
        self._version = version
        self._limit_s = timeout_s
        self._sources = sources
        self._takes = {spec.name: spec for spec in takes}
        self._outputs = outputs
        self._parameters = parameters
        self._answers_client = answers_client

    async def work(self, tensors: Tensors, run: Run) -> Tensors:
        """See :class:`Node`."""
        inputs = {
            name: self._narrow(name, source, array)
            for name, source in self._sources.items()
            if (array := run.find(source, tensors)) is not None
        }
        outputs = run.asked if self._answers_client else tuple(self._outputs.values())
        parameters = {**run.parameters, **self._parameters} if self._parameters else run.parameters
        request = PeerRequest(self._model, inputs, outputs, parameters, self._version, self._limit_s, run.origin)
        try:
            answers = await get_peers().call(request)
        except DeadlineExceeded as exc:
            raise DeadlineExceeded(exc.timeout_s, f'step "{self.label}" has not answered') from exc
        except InvalidRequest as exc:
            raise InvalidRequest(f'step "{self.label}": {exc}') from exc
        if self._answers_client:
            return answers
        return {name: answers[output] for name, output in self._outputs.items() if output in answers}

    def _narrow(self, name: str, source: str, array: Array) -> Array:
        """An input of the request, which has the wider datatype where another model takes it as well.

        Raises:
            InvalidRequest: A number is out of this model's range: the client's mistake, not the pipeline's.
        """
        spec = self._takes[name]
        if not source.startswith(REQUEST) or array.dtype == DATATYPES[spec.datatype].dtype:
            return array
        own = source.removeprefix(REQUEST)
        try:
            return Signature((replace(spec, name=own),), ()).bind({own: array})[own]
        except InvalidRequest as exc:
            raise InvalidRequest(f'step "{self.label}": {exc}') from exc

    def fails_for_all(self, exc: Exception) -> bool:
        """See :class:`Node`: its model is not there, whoever asks."""
        return isinstance(exc, ModelNotReady) and exc.model == self._model


class PassNode(Node):
    """Hands on what it gets."""

    async def work(self, tensors: Tensors, run: Run) -> Tensors:
        """See :class:`Node`."""
        return tensors


class AbsentNode(Node):
    """A soft step whose model has not been there yet: nobody knows what it takes and gives."""

    async def work(self, tensors: Tensors, run: Run) -> Tensors:
        """See :class:`Node`."""
        return {}


class SequenceNode(Node):
    """One step after the other."""

    def __init__(self, label: str, timeout_s: float | None, is_soft: bool, nodes: Sequence[Node]) -> None:
        super().__init__(label, timeout_s, is_soft)
        self._nodes = nodes

    async def work(self, tensors: Tensors, run: Run) -> Tensors:
        """See :class:`Node`."""
        for node in self._nodes:
            tensors = await node.run(tensors, run)
        return tensors


class EnsembleNode(Node):
    """All steps at the same time; the first that fails hard ends the others."""

    def __init__(self, label: str, timeout_s: float | None, is_soft: bool, nodes: Sequence[Node]) -> None:
        super().__init__(label, timeout_s, is_soft)
        self._nodes = nodes

    async def work(self, tensors: Tensors, run: Run) -> Tensors:
        """See :class:`Node`."""
        answers = await run_together([(node, tensors, run) for node in self._nodes])
        pairs = zip(self._nodes, answers, strict=True)
        return {f"{node.label}.{name}": array for node, answer in pairs for name, array in answer.items()}


Choose: TypeAlias = Callable[[Tensors, Run], Array]
"""The place of the step that each row takes; one for all where there are no rows."""


class ChoiceNode(Node):
    """One step for each row: a switch or a splitter."""

    def __init__(
        self, label: str, timeout_s: float | None, is_soft: bool, nodes: Sequence[Node], choose: Choose
    ) -> None:
        super().__init__(label, timeout_s, is_soft)
        self._nodes = nodes
        self._choose = choose

    async def work(self, tensors: Tensors, run: Run) -> Tensors:
        """See :class:`Node`."""
        chosen = self._choose(tensors, run)
        places = np.unique(chosen)
        if len(places) == 1:
            return await self._nodes[int(places[0])].run(tensors, run)
        groups = [np.flatnonzero(chosen == place) for place in places]
        work = [
            (self._nodes[int(place)], _take(tensors, rows), run.take(rows))
            for place, rows in zip(places, groups, strict=True)
        ]
        answers = await run_together(work)
        order = np.argsort(np.concatenate(groups))
        names = [name for name in answers[0] if all(name in answer for answer in answers)]
        return {name: np.concatenate([answer[name] for answer in answers])[order] for name in names}


class Switch:
    """The first step whose conditions hold.

    Args:
        label: What the switch is called.
        tests: The conditions of each step; none for one that takes what is left.
    """

    def __init__(self, label: str, tests: Sequence[Sequence[Test]]) -> None:
        self._label = label
        self._tests = tests

    def __call__(self, tensors: Tensors, run: Run) -> Array:
        """See :data:`Choose`.

        Raises:
            InvalidRequest: No step's conditions hold for some row.
        """
        rows = len(run.owners) or 1
        chosen = np.full(rows, -1)
        for place, tests in enumerate(self._tests):
            holds = chosen < 0
            for test in tests:
                found = run.parameters.get(test.name) if test.is_parameter else run.find(test.name, tensors)
                holds &= test.holds(found, rows)
            chosen[holds] = place
        if (chosen < 0).any():
            row = int(np.argmax(chosen < 0))
            row = row if run.places is None else int(run.places[row])
            where = f" for row {row}" if not run.is_merged and (rows > 1 or run.places is not None) else ""
            raise InvalidRequest(f'switch "{self._label}": no step\'s condition holds{where}')
        return chosen


class Splitter:
    """A step by chance, the same for all rows of a request.

    Args:
        weights: Of the steps.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._bounds = list(accumulate(weights))

    def __call__(self, tensors: Tensors, run: Run) -> Array:
        """See :data:`Choose`."""
        draws = np.array([self._draw() for _ in run.origin.rows])
        return draws[run.owners] if len(run.owners) else draws[:1]

    def _draw(self) -> int:
        return bisect.bisect_right(self._bounds, _chance.random() * self._bounds[-1], hi=len(self._bounds) - 1)


async def run_together(work: Sequence[tuple[Node, Tensors, Run]]) -> list[Tensors]:
    """Runs steps at the same time; the first error ends the others.

    Raises:
        ModelyardError: The error.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(node.run(tensors, run)) for node, tensors, run in work]
    except BaseExceptionGroup as errors:
        first = next((one for one in errors.exceptions if isinstance(one, ModelyardError)), errors.exceptions[0])
        raise first from None
    return [task.result() for task in tasks]
