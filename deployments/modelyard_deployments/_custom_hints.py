# SPDX-License-Identifier: Apache-2.0
"""A signature out of the type hints of a function: what each annotation says, in one place.

=====================================================  ==============================================================
annotation                                             meaning
=====================================================  ==============================================================
``str bytes int float bool``, ``np.float32`` …         one value of a row
``Annotated[NDArray[np.float32], (28, 28)]``           one array of a row, of this shape; a name is any size
``list[str]`` …                                        a column: the values of all rows
``Annotated[NDArray[np.float32], ("rows", 4)]``        an array of all rows
=====================================================  ==============================================================

A function that takes rows one by one has the first two, one that takes all of them at once the last two.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import numpy as np

from modelyard.errors import ModelLoadError
from modelyard.signature import TensorSpec
from modelyard.tensor import datatype_of

ROWS: Final = "rows"
OUTPUT: Final = "output-0"

_SCALARS: Final = {str: "BYTES", bytes: "BYTES", int: "INT64", float: "FP64", bool: "BOOL"}
_STREAMS: Final = (collections.abc.Iterator, collections.abc.Iterable, collections.abc.Generator)
_ASYNC_STREAMS: Final = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)
_HOW: Final = (
    "write str, bytes, int, float, bool or a numpy type for one value of a row, "
    "Annotated[NDArray[np.float32], (28, 28)] for one array of a row, list[str] for the values of all rows, or "
    'Annotated[NDArray[np.float32], ("rows", 4)] for an array of all rows; or give the class a signature'
)
_HOW_SEVERAL: Final = "a TypedDict, a dataclass or a NamedTuple names several outputs and says what each is"


@dataclass(frozen=True, slots=True)
class Kind:
    """What one annotation says.

    Attributes:
        datatype: The protocol's.
        shape: Of one row's value: ``()`` for a single one, ``-1`` where any size will do.
        all_rows: It holds all rows at once.
        python: ``str``, ``bytes``, ``int``, ``float`` or ``bool`` where it is that or a list of it; else None.
    """

    datatype: str
    shape: tuple[int, ...] = ()
    all_rows: bool = False
    python: type | None = None

    def to_spec(self, name: str, *, is_stream: bool = False, optional: bool = False) -> TensorSpec:
        """The tensor: rows first, but for streams, whose requests have none; a single value is then ``[1]``."""
        own = (1,) if is_stream and not self.shape and not self.all_rows else self.shape
        rows = (-1,) if self.all_rows or not is_stream else ()
        return TensorSpec(name, self.datatype, (*rows, *own), optional)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a function.

    Attributes:
        name: Its name, and that of the input.
        kind: What it takes.
        default: What it has when nothing is sent; ``inspect.Parameter.empty`` where it is needed.
    """

    name: str
    kind: Kind
    default: Any = inspect.Parameter.empty

    @property
    def is_optional(self) -> bool:
        """It may be left out."""
        return self.default is not inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Hints:
    """What the hints of a function say.

    Attributes:
        inputs: Arguments that are inputs.
        settings: Arguments that come from the request's parameters, one value for all rows.
        outputs: What it answers, by name.
        is_named: It answers with an object that has the outputs, not with the only one itself.
        is_stream: It gives one answer after the other.
        is_async: It runs on the event loop.
        all_rows: It takes all rows at once.
        takes_parameters: It has an argument ``parameters``, for all of the request's.
    """

    inputs: tuple[Argument, ...]
    settings: tuple[Argument, ...]
    outputs: dict[str, Kind]
    is_named: bool
    is_stream: bool
    is_async: bool
    all_rows: bool
    takes_parameters: bool

    def input_specs(self) -> tuple[TensorSpec, ...]:
        """The inputs as a signature has them."""
        return tuple(
            one.kind.to_spec(one.name, is_stream=self.is_stream, optional=one.is_optional) for one in self.inputs
        )

    def example(self) -> dict[str, Any]:
        """What inputs have when nothing is sent, as values of an example."""
        known = {one.name: one.default for one in self.inputs if isinstance(one.default, str | int | float)}
        return {name: [value] for name, value in known.items()} if self.is_stream else known

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The outputs as a signature has them."""
        return tuple(kind.to_spec(name, is_stream=self.is_stream) for name, kind in self.outputs.items())


def read_hints(function: Callable[..., Any], where: str, output: str = OUTPUT) -> Hints:
    """What the type hints of a method say.

    Args:
        function: The method, with ``self`` as its first argument.
        where: Its name in messages.
        output: The name of an only output.

    Raises:
        ModelLoadError: Something is not annotated, or nothing follows from it; with what to write.
    """
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as exc:  # an annotation is any expression, so it raises anything
        raise ModelLoadError(f"{where}: its type hints cannot be read: {type(exc).__name__}: {exc}") from exc
    arguments, takes_parameters = _read_arguments(function, hints, where)
    answer = hints.get("return")
    if answer is None:
        raise ModelLoadError(f"{where}: the type of its answer is missing: {_HOW}; {_HOW_SEVERAL}")
    is_stream, is_async = _find_form(function, get_origin(answer), where)
    if is_stream:
        answer = get_args(answer)[0]
    outputs, is_named = _read_outputs(answer, where, output)
    all_rows = any(argument.kind.all_rows for argument in arguments)
    if all_rows and not is_stream:
        inputs = tuple(one for one in arguments if one.kind.all_rows)
        settings = tuple(one for one in arguments if not one.kind.all_rows)
    else:
        inputs, settings = tuple(arguments), ()
    found = Hints(inputs, settings, outputs, is_named, is_stream, is_async, all_rows, takes_parameters)
    _check(found, where)
    return found


def _find_form(function: Callable[..., Any], answer: Any, where: str) -> tuple[bool, bool]:
    """Whether it streams, and whether it runs on the event loop.

    Raises:
        ModelLoadError: What it does and what its answer is called do not go together.
    """
    is_generator, is_async_generator = inspect.isgeneratorfunction(function), inspect.isasyncgenfunction(function)
    yields = "AsyncIterator" if is_async_generator else "Iterator" if is_generator else ""
    named = "AsyncIterator" if answer in _ASYNC_STREAMS else "Iterator" if answer in _STREAMS else ""
    if yields and yields != named:
        raise ModelLoadError(f"{where}: it yields, so the type of its answer is {yields}[…]")
    is_coroutine = inspect.iscoroutinefunction(function)
    if named and is_coroutine:
        raise ModelLoadError(f"{where}: the type of its answer is {named}, so it has to yield each answer")
    return bool(named), is_coroutine or named == "AsyncIterator"


def _check(hints: Hints, where: str) -> None:
    """Refuses a mixture of one row and all rows."""
    if not hints.inputs:
        raise ModelLoadError(f"{where}: expected at least one argument besides self, which is an input, got none")
    if hints.is_stream:
        return
    for one in hints.settings:
        if one.kind.python is None:
            raise ModelLoadError(
                f'{where}, argument "{one.name}": expected its first dimension to be "{ROWS}", as others have all rows'
            )
    for name, kind in hints.outputs.items():
        if kind.all_rows != hints.all_rows:
            got, had = ("all rows", "one row") if kind.all_rows else ("one row", "all rows")
            raise ModelLoadError(f'{where}, output "{name}": it is for {got}, the arguments are for {had}; {_HOW}')


def _read_arguments(function: Callable[..., Any], hints: dict[str, Any], where: str) -> tuple[list[Argument], bool]:
    arguments: list[Argument] = []
    takes_parameters = False
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        at = f'{where}, argument "{parameter.name}"'
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ModelLoadError(f"{at}: expected one that can be given by name")
        if parameter.name == "parameters":
            takes_parameters = True
            continue
        if parameter.name not in hints:
            raise ModelLoadError(f"{at}: it has no type hint: {_HOW}")
        arguments.append(Argument(parameter.name, _read_kind(hints[parameter.name], at), parameter.default))
    return arguments, takes_parameters


def _read_outputs(answer: Any, where: str, output: str) -> tuple[dict[str, Kind], bool]:
    is_class = isinstance(answer, type)
    is_named = typing.is_typeddict(answer) or (
        is_class and (dataclasses.is_dataclass(answer) or (issubclass(answer, tuple) and hasattr(answer, "_fields")))
    )
    if is_named:
        fields = get_type_hints(answer, include_extras=True)
        return {name: _read_kind(hint, f'{where}, output "{name}"') for name, hint in fields.items()}, True
    if answer in (dict, list, tuple) or get_origin(answer) in (dict, tuple, collections.abc.Mapping):
        raise ModelLoadError(f"{where}, answer: {answer} does not say what its outputs are: {_HOW_SEVERAL}")
    return {output: _read_kind(answer, f"{where}, answer")}, False


def _read_kind(hint: Any, where: str) -> Kind:
    shape: tuple[Any, ...] | None = None
    hint = _without_none(hint)
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        shape = next((note for note in notes if isinstance(note, tuple)), None)
        hint = _without_none(hint)
    if shape is None and isinstance(hint, type) and get_origin(hint) is None:
        if hint in _SCALARS:
            return Kind(_SCALARS[hint], python=hint)
        if issubclass(hint, np.generic):
            return Kind(_to_datatype(hint, where))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (list, collections.abc.Sequence) and shape is None and arguments and arguments[0] in _SCALARS:
        return Kind(_SCALARS[arguments[0]], all_rows=True, python=arguments[0])
    if origin is np.ndarray:
        return _read_array(arguments, shape, where)
    raise ModelLoadError(f"{where}: nothing follows from the type hint {_show(hint)}: {_HOW}")


def _read_array(arguments: tuple[Any, ...], shape: tuple[Any, ...] | None, where: str) -> Kind:
    dims, dtype = arguments
    if shape is None and get_origin(dims) is tuple and Ellipsis not in get_args(dims):
        shape = (ROWS, *(None for _ in get_args(dims)[1:]))
    element = next(iter(get_args(dtype)), None)
    if shape is None or element is Any or not isinstance(element, type):
        raise ModelLoadError(f"{where}: the array's {'dtype' if shape is not None else 'shape'} is missing: {_HOW}")
    all_rows = shape[:1] == (ROWS,)
    rest = tuple(size if isinstance(size, int) else -1 for size in (shape[1:] if all_rows else shape))
    return Kind(_to_datatype(element, where), rest, all_rows)


def _to_datatype(element: type, where: str) -> str:
    try:
        return datatype_of(np.empty(0, dtype=element))
    except TypeError as exc:
        raise ModelLoadError(f"{where}: {exc}") from exc


def _without_none(hint: Any) -> Any:
    """``X`` of ``X | None``."""
    if get_origin(hint) in (Union, types.UnionType):
        others = [one for one in get_args(hint) if one is not types.NoneType]
        if len(others) == 1:
            return others[0]
    return hint


def _show(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
