# SPDX-License-Identifier: Apache-2.0
"""The one path of a request: find the revision, check the inputs, call it, put the answer in order.

"One request": between the decoders in ``protocol/`` and the transport to the replicas. Every protocol comes through
here, so none can forget a check.
"""

from __future__ import annotations

import random
from typing import Final, Protocol

from modelyard.batching import Call
from modelyard.errors import InvalidRequest
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.routing import RevisionRoute, RouteTable
from modelyard.signature import Signature
from modelyard.tensor import Parameters, Tensors

_OWN_PARAMETERS: Final = frozenset({"binary_data_output", "content_type", "timeout", "priority", "headers"})
"""Parameters that speak to the server; all others are the model's."""
_MAX_TIMEOUT_US: Final = 10**15
_ids: Final = random.Random()  # noqa: S311  # names a reply, guards nothing


def new_id() -> str:
    """A random UUID's text; ``uuid.uuid4`` asks the kernel each time, which shows on the hot path."""
    text = f"{_ids.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


class Transport(Protocol):
    """How a call reaches the replicas of a revision."""

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        """Sends one call and waits for its outputs.

        Raises:
            ModelyardError: The model's, the replica's or the transport's.
        """


class DataPlane:
    """Answers inference requests against the newest route table.

    Args:
        transport: The way to the replicas.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.table = RouteTable()

    def get_ready(self, model: str, version: str = "") -> tuple[RevisionRoute, Signature]:
        """The revision that answers now, with its signature.

        Raises:
            ModelNotFound: Unknown model or version.
            ModelNotReady: It cannot answer now.
        """
        return self.table.get_ready(model, version)

    async def infer(
        self, revision: RevisionRoute, signature: Signature, request: InferenceRequest, timeout_s: float | None = None
    ) -> InferenceResponse:
        """One request, from decoded tensors to tensors to encode.

        Args:
            revision: From :meth:`get_ready`.
            signature: From :meth:`get_ready`.
            request: As a decoder made it.
            timeout_s: The client's own deadline; the smallest of it, the request's ``timeout`` parameter (µs) and the
                model's limit counts.

        Raises:
            InvalidRequest: Inputs or requested outputs do not fit the signature.
            ModelyardError: What the call raised.
        """
        inputs = signature.bind(request.inputs)
        if request.outputs:
            names = tuple(output.name for output in request.outputs)
            signature.check_outputs(names)
        else:
            names = tuple(spec.name for spec in signature.outputs)
        rows = next(iter(inputs.values())).shape[0] if signature.batch_axis else 0
        outputs: Tensors
        if signature.batch_axis and rows == 0:
            outputs = signature.empty_outputs(names)
        else:
            parameters = _model_parameters(request.parameters)
            call = Call(inputs, (rows,), names, parameters)
            outputs = await self._transport.call(revision, call, _timeout_s(revision, request, timeout_s))
        ident = request.id or new_id()
        return InferenceResponse(revision.model, revision.version, ident, {name: outputs[name] for name in names})


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
