# SPDX-License-Identifier: Apache-2.0
"""A loaded PyTorch program, scripted or exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelyard.signature import TensorSpec
from modelyard.tensor import Array


@dataclass(frozen=True, slots=True)
class Program:
    """How to call it.

    Attributes:
        inputs: What it takes.
        converters: From an input's array to what it takes.
        call: Answers the values of inputs by name: the leaves of its answer, with their names.
        outputs: What it says it answers; empty where it does not say.
        fixed: The inputs as it knows them, where ``inputs`` supposes that the first dimension is free.
    """

    inputs: tuple[TensorSpec, ...]
    converters: Mapping[str, Callable[..., Any]]
    call: Callable[[Mapping[str, Any]], list[tuple[str, Any]]]
    outputs: tuple[TensorSpec, ...] = ()
    fixed: tuple[TensorSpec, ...] = ()

    def convert(self, inputs: Mapping[str, Array], copy: bool) -> dict[str, Any]:
        """What it takes, by input: views, where ``copy`` does not ask for copies."""
        return {name: self.converters[name](array.copy() if copy else array) for name, array in inputs.items()}
