# SPDX-License-Identifier: Apache-2.0
"""The one path of a request: find the revision, check the inputs, call it, put the answer in order.

"One request": between the decoders in ``protocol/`` and the transport to the replicas. Every protocol comes through
here, so none can forget a check.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, TypeVar

from modelyard.batching import MAX_PRIORITY, Call
from modelyard.classes import to_top_classes
from modelyard.errors import InvalidRequest, Unsupported
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.openai import MEMBER
from modelyard.routing import RevisionRoute, RouteTable, Sender
from modelyard.signature import Signature
from modelyard.statistics import Statistics
from modelyard.tensor import Array, Parameters, Tensors
from modelyard.trial import Trial, Way

_OWN_PARAMETERS: Final = frozenset(
    {"binary_data_output", "content_type", "headers", "priority", "timeout", "triton_enable_empty_final_response"}
)
"""Parameters that speak to the server; all others are the model's."""
_SIGNATURE_NAME: Final = "signature_name"
_MAX_TIMEOUT_US: Final = 10**15
_INLINE_SCORES: Final = 10_000
"""Up to so many are ranked on the event loop: ten milliseconds at most."""
_T = TypeVar("_T")
_ids: Final = random.Random()  # noqa: S311  # names a reply, guards nothing


def new_id() -> str:
    """A random UUID's text; ``uuid.uuid4`` asks the kernel each time, which shows on the hot path."""
    text = f"{_ids.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


class Transport(Way, Protocol):
    """All that the replicas of a revision are asked."""

    async def statistics(self, revision: RevisionRoute) -> Statistics:
        """What the revision's replicas have counted.

        Raises:
            ModelNotReady: They cannot be asked.
        """


class DataPlane:
    """Answers inference requests against the newest route table.

    Args:
        transport: The way to the replicas.

    Attributes:
        table: The newest route table.
        trial: Counts what becomes of requests to revisions that are on trial.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.trial = Trial(transport)
        self._changed = asyncio.Event()
        self.table = RouteTable()

    def follow(self, table: RouteTable) -> None:
        """Takes a newer table, and wakes who waits for one."""
        self.table = table
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def until(self, find: Callable[[RouteTable], _T | None]) -> _T:
        """What ``find`` finds in this table or in the first later one it finds something in; it may raise."""
        while (found := find(self.table)) is None:
            await self._changed.wait()
        return found

    def get_ready(self, model: str, version: str = "", name: str = "") -> tuple[RevisionRoute, Signature]:
        """The revision that answers now, with its signature.

        Args:
            model: Name of the model.
            version: A revision's number or a label; empty for the active one.
            name: Name of one of the model's signatures; empty for its own.

        Raises:
            ModelNotFound: Unknown model or version.
            ModelNotReady: It cannot answer now.
            SignatureNotFound: It has no such signature.
        """
        route, signature = self.table.get_ready(model, version)
        return route.get_signature(name) if name else (route, signature)

    def choose(
        self, model: str, version: str = "", sender: Sender | None = None, name: str = ""
    ) -> tuple[RevisionRoute, Signature]:
        """The revision that answers one request, with its signature: as the weights have it where it names none.

        Args:
            model: Name of the model.
            version: A revision's number or a label; empty for wherever the traffic goes.
            sender: Whose request it is.
            name: Name of one of the model's signatures; empty for its own.

        Raises:
            ModelNotFound: Unknown model or version.
            ModelNotReady: It cannot answer now.
            SignatureNotFound: It has no such signature.
        """
        route, signature = self.table.choose(model, version, sender)
        return route.get_signature(name) if name else (route, signature)

    async def infer(
        self, revision: RevisionRoute, signature: Signature, request: InferenceRequest, timeout_s: float | None = None
    ) -> InferenceResponse:
        """One request, from decoded tensors to tensors to encode.

        Args:
            revision: From :meth:`get_ready`.
            signature: From :meth:`get_ready`; another one answers where the request's ``signature_name`` parameter says
                so and the model has several.
            request: As a decoder made it.
            timeout_s: The client's own deadline; the smallest of it, the request's ``timeout`` parameter (µs) and the
                model's limit counts.

        Raises:
            InvalidRequest: Inputs or requested outputs do not fit the signature, or the model has none of that name.
            ModelyardError: What the call raised.
        """
        if request.parameters and _SIGNATURE_NAME in request.parameters:
            revision, signature, request = _choose_signature(revision, signature, request)
        _check_adapter(revision)
        if signature.decoupled:
            raise Unsupported(
                f'model "{revision.model}" answers with a stream: use generate_stream (HTTP) or ModelStreamInfer (gRPC)'
            )
        call = to_call(revision.member, signature, request)
        outputs: Tensors
        if call.rows == (0,) and signature.batch_axis:
            outputs = signature.empty_outputs(call.outputs)
        else:
            way = self.trial if revision.is_watched or revision.shadow is not None else self._transport
            outputs = await way.call(revision, call, _timeout_s(revision, request, timeout_s))
        ident = request.id or new_id()
        named = {name: outputs[name] for name in call.outputs if name in outputs}
        if request.outputs:
            named = await _classify(named, request, signature)
        return InferenceResponse(revision.model, revision.version, ident, named)

    async def stream(
        self, revision: RevisionRoute, signature: Signature, request: InferenceRequest, timeout_s: float | None = None
    ) -> AsyncGenerator[InferenceResponse]:
        """One request and all its answers: any number of a decoupled model, exactly one of another.

        Args:
            revision: From :meth:`get_ready`.
            signature: From :meth:`get_ready`.
            request: Decoded, not yet checked against the signature.
            timeout_s: The client's own limit for the whole stream, in seconds.

        Raises:
            InvalidRequest: As for :meth:`infer`.
            ModelyardError: As for :meth:`infer`, also after some answers.
        """
        if request.parameters and _SIGNATURE_NAME in request.parameters:
            revision, signature, request = _choose_signature(revision, signature, request)
        _check_adapter(revision)
        if not signature.decoupled:
            yield await self.infer(revision, signature, request, timeout_s)
            return
        call = to_call(revision.member, signature, request)
        ident = request.id or new_id()
        if call.rows == (0,) and signature.batch_axis:
            empty = await _classify(signature.empty_outputs(call.outputs), request, signature)
            yield InferenceResponse(revision.model, revision.version, ident, empty)
            return
        way = self.trial if revision.is_watched or revision.shadow is not None else self._transport
        answers = way.stream(revision, call, _timeout_s(revision, request, timeout_s))
        async with contextlib.aclosing(answers):
            async for outputs in answers:
                named = {name: outputs[name] for name in call.outputs if name in outputs}
                if request.outputs:
                    named = await _classify(named, request, signature)
                yield InferenceResponse(revision.model, revision.version, ident, named)

    async def statistics(self, revision: RevisionRoute) -> Statistics:
        """What the replicas of one revision have counted.

        Raises:
            ModelNotReady: They cannot be asked.
        """
        return await self._transport.statistics(revision)


def _check_adapter(revision: RevisionRoute) -> None:
    """An adapter is a name of the OpenAI protocol: under it the model itself must not answer in another one.

    Raises:
        Unsupported: It would.
    """
    if revision.adapter and revision.member != MEMBER:
        raise Unsupported(f'adapter "{revision.adapter}" answers the OpenAI protocol alone')


def _choose_signature(
    revision: RevisionRoute, signature: Signature, request: InferenceRequest
) -> tuple[RevisionRoute, Signature, InferenceRequest]:
    """What the parameter ``signature_name`` asks for; a model that has one signature gets the parameter as any other.

    Raises:
        SignatureNotFound: The model has no such signature.
        InvalidRequest: The parameter is no string.
    """
    if signature.saved is None and (revision.publishes_members or not revision.members):
        return revision, signature, request
    parameters = dict(request.parameters)
    name = parameters.pop(_SIGNATURE_NAME)
    if not isinstance(name, str):
        raise InvalidRequest(f'parameter "{_SIGNATURE_NAME}": expected a string, got {name!r}')
    return *revision.get_signature(name), replace(request, parameters=parameters)


def to_call(member: str, signature: Signature, request: InferenceRequest) -> Call:
    """The request as replicas get it, checked.

    Raises:
        InvalidRequest: Inputs, requested outputs or the priority are not what they have to be.
    """
    inputs = signature.bind(request.inputs)
    if request.outputs:
        names = tuple(output.name for output in request.outputs)
        signature.check_outputs(names)
    else:
        names = tuple(spec.name for spec in signature.outputs)
    if signature.batch_axis and not inputs:  # all of them optional
        raise InvalidRequest("inputs: expected at least one, which says how many rows there are, got none")
    rows = next(iter(inputs.values())).shape[0] if signature.batch_axis else 0
    if not request.parameters:
        return Call(inputs, (rows,), names, {}, member=member, via=request.via, affinity=request.affinity)
    parameters, priority = _model_parameters(request.parameters), _priority(request.parameters)
    return Call(inputs, (rows,), names, parameters, priority, member=member, via=request.via, affinity=request.affinity)


async def _classify(outputs: dict[str, Array], request: InferenceRequest, signature: Signature) -> dict[str, Array]:
    """The outputs, those asked for with ``classification`` as their best classes; many scores are ranked in a thread.

    Raises:
        InvalidRequest: It is not a number of classes, or the output has no numbers.
    """
    for output in request.outputs:
        count = output.parameters.get("classification", 0)
        if type(count) is not int or count < 0:
            where = f'output "{output.name}" parameters "classification"'
            raise InvalidRequest(f"{where}: expected a number of classes, got {count!r}")
        if count and output.name in outputs:
            labels = signature.labels.get(output.name, ())
            scores = outputs[output.name]
            rank = partial(to_top_classes, scores, count, labels, signature.batch_axis)
            outputs[output.name] = rank() if scores.size <= _INLINE_SCORES else await asyncio.to_thread(rank)
    return outputs


def _priority(parameters: Parameters) -> int:
    """Source: Triton "Schedule Policy Extension": 1 goes first, 0 is the same as none."""
    priority = parameters.get("priority", 0)
    if type(priority) is not int or not 0 <= priority <= MAX_PRIORITY:
        raise InvalidRequest(f'parameter "priority": expected an integer from 0 to {MAX_PRIORITY}, got {priority!r}')
    return priority


def _model_parameters(parameters: Parameters) -> Parameters:
    if not parameters or parameters.keys() <= _OWN_PARAMETERS:
        return {}
    return {name: value for name, value in parameters.items() if name not in _OWN_PARAMETERS}


def _timeout_s(revision: RevisionRoute, request: InferenceRequest, asked_s: float | None) -> float:
    limits = [revision.request_timeout_s]
    if asked_s is not None:
        limits.append(asked_s)
    timeout_us = request.parameters.get("timeout")
    if timeout_us is not None:
        if not isinstance(timeout_us, int) or isinstance(timeout_us, bool) or timeout_us < 0:
            raise InvalidRequest(f'parameter "timeout": expected microseconds as an integer >= 0, got {timeout_us!r}')
        if timeout_us:  # 0 means none. Source: Triton "Schedule Policy Extension"
            limits.append(min(timeout_us, _MAX_TIMEOUT_US) / 1e6)
    return min(limits)
