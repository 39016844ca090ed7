# SPDX-License-Identifier: Apache-2.0
"""What the models of ``repository`` use of Triton's module of this name, so that the same files run on the platform."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: Any) -> None:
        self._name = name
        self._array = array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class TritonError(Exception):
    """An error that a model answers with."""

    INTERNAL, INVALID_ARG, NOT_FOUND = range(3)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class InferenceResponse:
    """One answer."""

    output_tensors: Sequence[Tensor] = ()
    error: TritonError | None = None


@dataclass
class Sender:
    """Takes the answers of a decoupled model."""

    take: Callable[[InferenceResponse], None]

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if response is not None:
            self.take(response)


@dataclass
class Request:
    """What the platform gives a model, in Triton's clothes. The client's id and deadline are not the model's."""

    tensors: Mapping[str, Any]
    outputs: Sequence[str]
    given: Mapping[str, Any]
    sender: Sender = field(default_factory=lambda: Sender(lambda _: None))

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self.tensors.items()]

    def requested_output_names(self) -> Sequence[str]:
        return self.outputs

    def parameters(self) -> str:
        return json.dumps(dict(self.given))

    def get_response_sender(self) -> Sender:
        return self.sender

    def request_id(self) -> str:
        return ""

    def correlation_id(self) -> int:
        return 0

    def flags(self) -> int:
        return 0

    def timeout(self) -> int:
        return 0


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    array = request.tensors.get(name)
    return None if array is None else Tensor(name, array)
