# SPDX-License-Identifier: Apache-2.0
"""Merging requests into one call of a model, and splitting its answer again.

"One request": the ingress merges what waits for the same revision while a call is in flight (coalescing); the replica
merges what several ingresses sent (dynamic batching). Both use the same :class:`Call`. Everything here is pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, TypeVar

import numpy as np

from modelyard.errors import InternalError, ModelyardError
from modelyard.peers import NEVER_NS
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Parameters, Tensors

GroupKey: TypeAlias = tuple[object, ...]
"""Requests with equal keys can travel in one call."""

MAX_PRIORITY: Final = 2**64 - 1
_LAST: Final = MAX_PRIORITY + 1

BATCH_ID: Final = "batchId"
"""An output that no model computes: the same text for all rows that were predicted in one call."""
_BATCH_ID_SPEC: Final = TensorSpec(BATCH_ID, "BYTES", (-1,))

W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Call:
    """One or more requests for the same revision, merged along the batch axis.

    Attributes:
        inputs: Bound to the signature; the rows of all parts one after another.
        rows: Rows of each part. ``(0,)`` for a model without batch axis, which is never merged.
        outputs: Names to compute.
        parameters: The requests' parameters, equal for all parts.
        priority: 1 goes before 2 and so on, and all of them before 0, which is none.
        waited_ns: How long its parts have waited before, altogether, in nanoseconds.
        member: Which of the model's members it is for; empty for the model itself.
        deadline_ns: When nobody waits for any part any more, on this host's ``time.monotonic_ns``.
        via: As ``InferenceRequest.via``; what any of the parts has come by.
        affinity: As ``InferenceRequest.affinity``; of streams, which are never merged.
        resident: Which model of a pool it is for; empty where the replicas have one model.
    """

    inputs: Tensors
    rows: tuple[int, ...]
    outputs: tuple[str, ...]
    parameters: Parameters
    priority: int = 0
    waited_ns: int = 0
    member: str = ""
    deadline_ns: int = NEVER_NS
    via: tuple[str, ...] = ()
    affinity: int = 0
    resident: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call gave: all parts merged, or part by part where some failed.

    Exactly one of the two is set.

    Attributes:
        merged: Outputs with the rows of all parts.
        parts: Outputs or the error of each part.
    """

    merged: Tensors | None = None
    parts: tuple[Tensors | ModelyardError, ...] = ()


def group_key(call: Call) -> GroupKey:
    """Which calls can be merged with this one: same outputs, parameters, names, datatypes and row shapes.

    A parameter's type counts too: 1, 1.0 and true are equal in Python, and not the same to a model.
    """
    parameters: GroupKey = ()
    if call.parameters:
        parameters = tuple(sorted((name, type(value), value) for name, value in call.parameters.items()))
    shapes = tuple((name, array.dtype, array.shape[1:]) for name, array in call.inputs.items())
    return (call.member, call.outputs, parameters, shapes, call.via)


def enqueue(waiting: deque[W], item: W, priority: Callable[[W], int]) -> None:
    """Puts an item behind those of its priority and before those that have less."""
    rank = _rank(priority(item))
    if rank == _LAST:
        waiting.append(item)
        return
    place = next((place for place, other in enumerate(waiting) if _rank(priority(other)) > rank), len(waiting))
    waiting.insert(place, item)


def _rank(priority: int) -> int:
    return priority or _LAST


def merge(calls: Sequence[Call]) -> Call:
    """One call with the parts of all, in order. A view of the only one, otherwise a copy.

    The calls must have equal :func:`group_key`, and come by priority.
    """
    first = calls[0]
    if len(calls) == 1:
        return first
    inputs = {name: np.concatenate([call.inputs[name] for call in calls]) for name in first.inputs}
    rows = tuple(count for call in calls for count in call.rows)
    waited_ns = sum(call.waited_ns for call in calls)
    deadline_ns = max(call.deadline_ns for call in calls)
    via = tuple(dict.fromkeys(application for call in calls for application in call.via))
    return Call(
        inputs,
        rows,
        first.outputs,
        first.parameters,
        first.priority,
        waited_ns,
        first.member,
        deadline_ns,
        via,
        resident=first.resident,
    )


def split(answer: Answer, rows: Sequence[int]) -> list[Tensors | ModelyardError]:
    """Each part's outputs (views on the merged arrays) or error.

    Args:
        answer: What the call gave.
        rows: The call's ``rows``.
    """
    if answer.merged is None:
        return list(answer.parts)
    if len(rows) == 1:
        return [answer.merged]
    parts: list[Tensors | ModelyardError] = []
    start = 0
    for count in rows:
        end = start + count
        parts.append({name: array[start:end] for name, array in answer.merged.items()})
        start = end
    return parts


def part(call: Call, index: int) -> Call:
    """The call of one part alone; a view."""
    if len(call.rows) == 1:
        return call
    start = sum(call.rows[:index])
    end = start + call.rows[index]
    inputs = {name: array[start:end] for name, array in call.inputs.items()}
    return replace(call, inputs=inputs, rows=(call.rows[index],))


def check_rows(outputs: Tensors, call: Call) -> None:
    """Refuses a model's answer that cannot be split back.

    Raises:
        InternalError: An output has not one row for each input row.
    """
    expected = sum(call.rows)
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != expected:
            got = f"shape {list(array.shape)}"
            raise InternalError(f'output "{name}": expected {expected} rows as in the inputs, got {got}')


def report_batch_id(signature: Signature) -> Signature:
    """The signature with :data:`BATCH_ID` to ask for; unchanged where the model streams or has such an output."""
    if signature.decoupled or has_output(signature, BATCH_ID):
        return signature
    return replace(signature, on_request=(*signature.on_request, _BATCH_ID_SPEC))


def reports_batch_id(signature: Signature) -> bool:
    """Whether :func:`report_batch_id` made this signature."""
    last = signature.on_request[-1] if signature.on_request else None
    return last is not None and last.name == BATCH_ID and last == _BATCH_ID_SPEC  # comparing names alone is fast


def has_output(signature: Signature, name: str) -> bool:
    """Whether a client may ask for this output."""
    return any(spec.name == name for spec in (*signature.outputs, *signature.on_request))
