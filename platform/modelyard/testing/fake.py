# SPDX-License-Identifier: Apache-2.0
"""A framework without a library, for tests of everything around a model.

It implements the same interface as the real ones and is announced by an entry point like them, so nothing has to be
mocked: ``y = sum of the row + bias``, where the bias is what the model's file holds. Two files make two revisions whose
answers tell them apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors


class FakeOptions(Options):
    """What the fake does besides adding up."""

    columns: tuple[str, ...] = Field(default=("a", "b", "c", "d"), description="Names of the matrix's columns.")
    load_s: float = Field(default=0, ge=0, description="How long loading takes.")
    latency_s: float = Field(default=0, ge=0, description="How long each call takes, whatever its rows.")
    latency_per_row_s: float = Field(default=0, ge=0, description="How much longer it takes for each row.")
    refuse_value: float | None = Field(default=None, description="A value that is the client's mistake.")
    fail_on_value: float | None = Field(default=None, description="A value the model breaks on.")
    fail_to_load: str | None = Field(default=None, description="Loading fails with this reason.")
    batch_axis: bool = Field(default=True, description="Rows of several requests may be merged.")
    answers: int | None = Field(
        default=None, ge=0, description="It is decoupled, and gives so many answers: the sums, then one more each time."
    )
    asynchronous: bool = Field(default=False, description="Its answers come from an asynchronous generator.")
    fail_after: int | None = Field(default=None, description="It breaks after so many answers.")
    explains: bool = Field(default=False, description='An output "contributions" has what made the sum: row and bias.')
    tell_rows: bool = Field(
        default=False, description='An output "rows" says how many rows were in the call; shows batching from outside.'
    )


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the fake: how many rows it had, which outputs were asked for, and in which thread."""

    rows: int
    outputs: tuple[str, ...]
    thread: int


class FakeModel(Model):
    """Adds up each row; remembers its calls."""

    def __init__(self, bias: float, options: FakeOptions) -> None:
        self.calls: list[Call] = []
        self.given = 0
        self.ended = 0
        self.is_closed = False
        self._bias = bias
        self._options = options
        self._signature = Signature(
            inputs=(TensorSpec("input-0", "FP64", (-1, len(options.columns))),),
            outputs=(TensorSpec("output-0", "FP64", (-1,)),),
            on_request=(
                *((TensorSpec("rows", "INT64", (-1,)),) if options.tell_rows else ()),
                *((TensorSpec("contributions", "FP64", (-1, len(options.columns) + 1)),) if options.explains else ()),
            ),
            explanations=("contributions",) if options.explains else (),
            columns=options.columns,
            any_input_name=True,
            batch_axis=options.batch_axis and options.answers is None,
            decoupled=options.answers is not None,
        )

    @property
    def signature(self) -> Signature:
        """One FP64 matrix in, its columns named; the sums of the rows out."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """The sums plus the bias, after the configured latency.

        Raises:
            InvalidRequest: The inputs hold ``refuse_value``.
            ArithmeticError: The inputs hold ``fail_on_value``.
        """
        data = inputs["input-0"]
        rows = data.shape[0]
        self.calls.append(Call(rows, outputs, threading.get_ident()))
        time.sleep(self._options.latency_s + rows * self._options.latency_per_row_s)
        if self._options.refuse_value is not None and (data == self._options.refuse_value).any():
            raise InvalidRequest(f'input "input-0": {self._options.refuse_value:g} is not a value this model takes')
        if self._options.fail_on_value is not None and (data == self._options.fail_on_value).any():
            raise ArithmeticError(f"cannot add up {self._options.fail_on_value:g}")
        answers = {
            "output-0": data.sum(axis=1) + self._bias,
            "rows": np.full(rows, rows, dtype=np.int64),
            "contributions": np.column_stack([data, np.full(rows, self._bias)]),
        }
        return {name: answers[name] for name in outputs}

    def stream(
        self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters
    ) -> Iterator[Tensors] | AsyncIterator[Tensors]:
        """As many answers as configured; ``given`` counts them, ``ended`` the streams that are over."""
        self.calls.append(Call(inputs["input-0"].shape[0], outputs, threading.get_ident()))
        steps = self._answers(inputs["input-0"])
        return _in_turns(steps) if self._options.asynchronous else steps

    def _answers(self, data: Array) -> Generator[Tensors]:
        try:
            for index in range(self._options.answers or 0):
                time.sleep(self._options.latency_s)
                if index == self._options.fail_after:
                    raise ArithmeticError(f"cannot count beyond {index}")
                self.given += 1
                yield {"output-0": data.sum(axis=1) + self._bias + index}
        finally:
            self.ended += 1

    def close(self) -> None:
        """Remembers that it was called."""
        self.is_closed = True


async def _in_turns(steps: Generator[Tensors]) -> AsyncGenerator[Tensors]:
    with contextlib.closing(steps):
        for step in steps:
            await asyncio.sleep(0)
            yield step


class FakeFramework(Framework):
    """Loads ``.fake`` files: text with one number, the bias."""

    suffixes: ClassVar[tuple[str, ...]] = (".fake",)
    may_share: ClassVar[bool] = True
    options: ClassVar[type[Options]] = FakeOptions

    def load(self, path: Path, options: FakeOptions) -> FakeModel:
        """Reads the bias.

        Raises:
            ModelLoadError: The file holds no number, or the options say so.
        """
        time.sleep(options.load_s)
        if options.fail_to_load is not None:
            raise ModelLoadError(options.fail_to_load)
        text = path.read_text()
        try:
            return FakeModel(float(text), options)
        except ValueError as exc:
            raise ModelLoadError(f"{path.name}: expected a number, got {text[:20]!r}") from exc
