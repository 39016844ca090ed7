# SPDX-License-Identifier: Apache-2.0
"""Calls a function with type hints: from named arrays to its arguments, and from what it returns to named arrays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._custom_answers import to_array
from modelyard_deployments._custom_hints import Argument, Hints, Kind

_ACCEPTED: Final[Mapping[type, tuple[type, ...]]] = {float: (int, float)}
_ROWS_AT_ONCE: Final = 64
_WORDS: Final = {str: "a text", bytes: "a text", int: "an integer", float: "a number", bool: "true or false"}


class TypedCall:
    """A method with type hints, in the form that the platform calls.

    Args:
        method: Bound to its model.
        hints: What its hints say.
    """

    def __init__(self, method: Callable[..., Any], hints: Hints) -> None:
        self._method = method
        self._hints = hints

    @property
    def hook(self) -> Callable[[Tensors, Parameters], Any]:
        """What calls the method, plain or asynchronous as it is."""
        return self._call_async if self._hints.is_async else self._call

    @property
    def predict(self) -> Callable[[Tensors, tuple[str, ...], Parameters], Any]:
        """The same in the form of ``Model.predict``; all outputs are computed, whichever are asked for."""
        if self._hints.is_async:

            async def predict_async(inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
                return await self._call_async(inputs, parameters)

            return predict_async
        return lambda inputs, outputs, parameters: self._call(inputs, parameters)

    @property
    def stream(self) -> Callable[[Tensors, tuple[str, ...], Parameters], Any]:
        """In the form of ``Model.stream``, of a generator."""
        if self._hints.is_async:

            async def stream_async(
                inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters
            ) -> AsyncIterator[Tensors]:
                async with contextlib.aclosing(self._stream_async(inputs, parameters)) as answers:
                    async for answer in answers:
                        yield answer

            return stream_async
        return lambda inputs, outputs, parameters: self._stream(inputs, parameters)

    def _call(self, inputs: Tensors, parameters: Parameters) -> Tensors:
        """Calls a plain method: once, or for each row."""
        if self._hints.all_rows:
            return self._to_outputs(self._method(**self._to_arguments(inputs, parameters)))
        return self._merge([self._method(**arguments) for arguments in self._to_rows(inputs, parameters)])

    async def _call_async(self, inputs: Tensors, parameters: Parameters) -> Tensors:
        """Calls an asynchronous method: once, or for many rows at the same time."""
        if self._hints.all_rows:
            return self._to_outputs(await self._method(**self._to_arguments(inputs, parameters)))
        rows = list(self._to_rows(inputs, parameters))
        answers: list[Any] = [None] * len(rows)
        left = iter(enumerate(rows))

        async def work() -> None:
            for place, arguments in left:
                answers[place] = await self._method(**arguments)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(rows), _ROWS_AT_ONCE)):
                    group.create_task(work())
        except BaseExceptionGroup as errors:  # the first one ended the others
            raise errors.exceptions[0] from None
        return self._merge(answers)

    def _stream(self, inputs: Tensors, parameters: Parameters) -> Iterator[Tensors]:
        """The answers of a plain generator."""
        source = self._method(**self._to_request(inputs, parameters))
        try:
            for answer in source:
                yield self._to_answer(answer)
        finally:
            if hasattr(source, "close"):
                source.close()

    async def _stream_async(self, inputs: Tensors, parameters: Parameters) -> AsyncGenerator[Tensors]:
        """The answers of an asynchronous generator."""
        source = self._method(**self._to_request(inputs, parameters))
        try:
            async for answer in source:
                yield self._to_answer(answer)
        finally:
            if hasattr(source, "aclose"):
                await source.aclose()

    # -- arguments

    def _to_arguments(self, inputs: Tensors, parameters: Parameters) -> dict[str, Any]:
        """For a call with all rows; what was left out has the function's own default."""
        found = {one.name: _to_column(inputs[one.name], one.kind) for one in self._hints.inputs if one.name in inputs}
        for one in self._hints.settings:
            if one.name in parameters:
                found[one.name] = _to_setting(one, parameters[one.name])
            elif not one.is_optional:
                raise InvalidRequest(f'parameter "{one.name}" is missing: expected {_word(one.kind)}')
        return self._with_parameters(found, parameters)

    def _to_rows(self, inputs: Tensors, parameters: Parameters) -> Iterator[dict[str, Any]]:
        """For a call with each row; an input that was left out may be a parameter, the same for all rows."""
        columns = {one.name: _to_column(inputs[one.name], one.kind) for one in self._hints.inputs if one.name in inputs}
        others = {
            one.name: _to_setting(one, parameters[one.name])
            for one in self._hints.inputs
            if one.name not in inputs and one.name in parameters
        }
        others = self._with_parameters(others, parameters)
        for values in zip(*columns.values(), strict=True):
            yield {**dict(zip(columns, values, strict=True)), **others}

    def _to_request(self, inputs: Tensors, parameters: Parameters) -> dict[str, Any]:
        """For a stream, whose request has no rows."""
        found: dict[str, Any] = {}
        for one in self._hints.inputs:
            if one.name in inputs:
                column = _to_column(inputs[one.name], one.kind)
                found[one.name] = column if one.kind.all_rows or one.kind.shape else column[0]
            elif one.name in parameters:
                found[one.name] = _to_setting(one, parameters[one.name])
        return self._with_parameters(found, parameters)

    def _with_parameters(self, arguments: dict[str, Any], parameters: Parameters) -> dict[str, Any]:
        return {**arguments, "parameters": parameters} if self._hints.takes_parameters else arguments

    # -- answers

    def _fields(self, answer: Any) -> Mapping[str, Any]:
        """The outputs in one answer."""
        if not self._hints.is_named:
            return {next(iter(self._hints.outputs)): answer}
        if isinstance(answer, Mapping):
            return answer
        return {name: getattr(answer, name) for name in self._hints.outputs if hasattr(answer, name)}

    def _to_outputs(self, answer: Any) -> Tensors:
        fields = self._fields(answer)
        return {
            name: to_array(fields[name], kind.datatype, name)
            for name, kind in self._hints.outputs.items()
            if name in fields
        }

    def _merge(self, answers: Sequence[Any]) -> Tensors:
        rows = [self._fields(answer) for answer in answers]
        return {
            name: _stack([row[name] for row in rows], kind, name)
            for name, kind in self._hints.outputs.items()
            if all(name in row for row in rows)
        }

    def _to_answer(self, answer: Any) -> Tensors:
        """One answer of a stream; a single value is ``[1]``."""
        fields = self._fields(answer)
        return {
            name: np.atleast_1d(to_array(fields[name], kind.datatype, name))
            for name, kind in self._hints.outputs.items()
            if name in fields
        }


def _to_column(array: Array, kind: Kind) -> Any:
    """An array of all rows for who wants that, else a list of values."""
    if kind.python is None:
        return array
    values = array.tolist()
    return _decode(values) if kind.python is str else values


def _decode(texts: list[bytes]) -> list[str]:
    try:
        return [text.decode() for text in texts]
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"expected texts in UTF-8, got bytes that are none: {exc.reason}") from exc


def _to_setting(one: Argument, value: object) -> Any:
    """One of the request's parameters as the argument's type.

    Raises:
        InvalidRequest: It is of another type.
    """
    python = one.kind.python
    if python is None:
        raise InvalidRequest(f'"{one.name}" is an input, not a parameter')
    if python is bytes and isinstance(value, str):
        return value.encode()
    if not isinstance(value, _ACCEPTED.get(python, (python,))) or (python is not bool and isinstance(value, bool)):
        raise InvalidRequest(f'parameter "{one.name}": expected {_word(one.kind)}, got {value!r}')
    return python(value)


def _word(kind: Kind) -> str:
    return _WORDS[kind.python] if kind.python else kind.datatype


def _stack(values: Sequence[Any], kind: Kind, name: str) -> Array:
    """The values of all rows as one array, rows first."""
    if not kind.shape:
        return to_array(values, kind.datatype, name)
    arrays = [to_array(value, kind.datatype, name) for value in values]
    for array in arrays:
        if len(array.shape) != len(kind.shape) or any(
            want not in (-1, got) for want, got in zip(kind.shape, array.shape, strict=True)
        ):
            raise TypeError(f'output "{name}": expected shape {list(kind.shape)} in each row, got {list(array.shape)}')
    return np.stack(arrays)
