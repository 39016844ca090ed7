# SPDX-License-Identifier: Apache-2.0
"""What travels between the protocols and the models: one request, one response, named numpy arrays.

"One request": made by a decoder in ``protocol/``, carried by ``dataplane``, turned into bytes again by an encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelyard.tensor import Parameters, Tensors


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output the client asks for by name, with the protocol's parameters for it."""

    name: str
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """One decoded request.

    Attributes:
        inputs: Arrays by name, in the client's order; views on the body where possible, so treat as read-only.
        id: The client's id; empty when it sent none.
        outputs: What the client asks for, in its order; empty means the model's default outputs.
        parameters: The request's own parameters, as sent.
        input_parameters: Parameters of single inputs, by input name; only inputs that carry some.
        via: The applications whose models have called one another to make it, outermost first; see ``peers.Origin``.
        affinity: Streams with the same number go to the same replica where they may: it remembers something of the
            others. 0 for any replica.
    """

    inputs: Tensors
    id: str = ""
    outputs: tuple[RequestedOutput, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    input_parameters: Mapping[str, Parameters] = field(default_factory=dict)
    via: tuple[str, ...] = ()
    affinity: int = 0


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """One answer, before it is encoded.

    Attributes:
        model_name: The model that answered.
        model_version: Its revision's number.
        id: The request's id, or a new one.
        outputs: Protocol arrays by name, in the order the client asked for.
        parameters: What the model says about its answer.
    """

    model_name: str
    model_version: str
    id: str
    outputs: Tensors
    parameters: Parameters = field(default_factory=dict)
