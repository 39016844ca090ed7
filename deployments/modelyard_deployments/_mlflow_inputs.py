# SPDX-License-Identifier: Apache-2.0
"""MLflow: from a model's schema to named tensors, and from these to what its pyfunc takes.

A column is one input ``[-1]``; columns without names, all of one type, are a matrix; a tensor is itself. Types without
a datatype are BYTES: dates as ISO 8601 text, binary as it is, objects and maps as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.signature import TensorSpec
from modelyard.tensor import DATATYPES, Array, Tensors, datatype_of

INPUT: Final = "input-0"

Convert: TypeAlias = Callable[[str, Array], Any]
"""The input's name and array to what the table's column is made of."""

_SCALARS: Final = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "binary": "BYTES",
    "datetime": "BYTES",
}
_CONTENT_TYPES: Final = {"binary": "base64", "datetime": "datetime"}
_DATE: Final = "2024-12-31T23:59:59"
_ZEROS: Final = {"boolean": False, "float": 0.0, "double": 0.0, "string": "", "binary": "", "datetime": _DATE}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model takes.

    Attributes:
        specs: Its inputs.
        adapt: Named tensors to the argument of ``predict``.
        any_input_name: The one input has no name of its own.
        is_numbers: A table of numbers, or a tensor of them: what libraries take as a matrix.
        is_checked: mlflow itself has to look into the values: objects, and type hints of Python models.
        example: Values of a row that are not zero, since their type has a form of its own.
    """

    specs: tuple[TensorSpec, ...]
    adapt: Callable[[Tensors], Any]
    any_input_name: bool = False
    is_numbers: bool = False
    is_checked: bool = False
    example: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a table's columns; empty where the input is a matrix or a tensor."""
        return () if self.any_input_name else tuple(spec.name for spec in self.specs if spec.shape == (-1,))


def inputs_from_schema(schema: Any, is_list: bool) -> Inputs:
    """The inputs of a model with a signature.

    Args:
        schema: ``mlflow.types.Schema``.
        is_list: The model's function was written with type hints, so it takes a list.

    Raises:
        ModelLoadError: A type cannot be carried.
    """
    if schema.is_tensor_spec():
        return tensor_inputs([_tensor_spec(spec, index) for index, spec in enumerate(schema.inputs)], schema.inputs)
    if is_list:
        return _list_inputs(schema.inputs[0])
    if schema.has_input_names():
        return _table(schema.inputs, [str(spec.name) for spec in schema.inputs], list(schema.input_names()))
    types = {repr(spec.type) for spec in schema.inputs}
    if len(schema.inputs) > 1 and len(types) == 1 and types <= _SCALARS.keys() - _CONTENT_TYPES.keys():
        return _matrix(_SCALARS[types.pop()], len(schema.inputs))
    names = [f"input-{index}" for index in range(len(schema.inputs))]
    return _table(schema.inputs, names, list(range(len(names))))


def inputs_from_specs(specs: Sequence[TensorSpec]) -> Inputs:
    """The inputs as the option tells them: a table where all are columns, else tensors.

    Raises:
        ModelLoadError: There is no such datatype.
    """
    for spec in specs:
        if spec.datatype not in DATATYPES:
            raise ModelLoadError(f'option inputs: "{spec.datatype}" of "{spec.name}" is not a datatype')
    if any(len(spec.shape) != 1 for spec in specs):
        return tensor_inputs(specs, None)
    converts: dict[str, Convert] = {spec.name: _to_texts if spec.datatype == "BYTES" else _as_is for spec in specs}
    return Inputs(tuple(specs), _frame_adapter(converts, [spec.name for spec in specs]), is_numbers=_numbers(specs))


def tensor_inputs(specs: Sequence[TensorSpec], schema: Sequence[Any] | None) -> Inputs:
    """Arrays by name; the one array itself where it has no name.

    Args:
        specs: The inputs.
        schema: mlflow's specs, in the same order; None where the option told the inputs.
    """
    dtypes = {spec.name: None if schema is None else schema[index].type for index, spec in enumerate(specs)}

    def convert(name: str, array: Array) -> Array:
        dtype = dtypes[name]
        if array.dtype != object or (dtype is not None and dtype.kind == "S"):
            return array
        texts = np.array(_to_texts(name, array.reshape(-1)), dtype=object).reshape(array.shape)
        return texts if dtype is None or dtype.kind == "O" else texts.astype(dtype)

    if len(specs) == 1 and (schema is None or schema[0].name is None):
        name = specs[0].name
        return Inputs(tuple(specs), lambda inputs: convert(name, inputs[name]), schema is not None, _numbers(specs))
    return Inputs(tuple(specs), lambda inputs: {name: convert(name, array) for name, array in inputs.items()})


def unknown_inputs(width: int) -> Inputs:
    """A matrix of numbers as a table without names, for a model that tells nothing.

    Args:
        width: Number of columns; -1 is any.
    """
    return _matrix("FP64", width)


def to_example(specs: Sequence[TensorSpec], saved: Any) -> dict[str, Any]:
    """A row that the model takes, by input, as JSON values.

    Args:
        specs: The inputs.
        saved: The example saved with the model, as mlflow loads it; only tables are looked at.
    """
    found: dict[str, Any] = {}
    if type(saved).__name__ != "DataFrame" or not len(saved):
        return found
    row: dict[str, Any] = {str(name): saved[name].iloc[0] for name in saved.columns}
    for spec in specs:
        value = row.get(spec.name)
        value = value.item() if isinstance(value, np.generic) else value  # a number or text of Python's own
        if spec.content_type == "json":
            found[spec.name] = json.dumps(value, default=str)
        elif spec.content_type == "datetime":
            found[spec.name] = str(value)
        elif isinstance(value, (str, bool, int, float)) and value == value:
            found[spec.name] = value
    return found


def _numbers(specs: Sequence[TensorSpec]) -> bool:
    return all(spec.datatype != "BYTES" and not spec.optional and len(spec.shape) <= 2 for spec in specs)


def _matrix(datatype: str, width: int) -> Inputs:
    import pandas as pd

    def adapt(inputs: Tensors) -> Any:
        array = inputs[INPUT]
        if array.dtype != object:
            return pd.DataFrame(array)
        return pd.DataFrame(np.array(_to_texts(INPUT, array.reshape(-1)), dtype=object).reshape(array.shape))

    spec = TensorSpec(INPUT, datatype, (-1, width))
    return Inputs((spec,), adapt, any_input_name=True, is_numbers=datatype != "BYTES")


def _table(columns: Sequence[Any], names: Sequence[str], labels: Sequence[Any]) -> Inputs:
    """One input for each column.

    Args:
        columns: mlflow's specs.
        names: Of the inputs.
        labels: Of the table's columns.
    """
    made = [_column(spec, name) for spec, name in zip(columns, names, strict=True)]
    specs = tuple(spec for spec, _ in made)
    converts = {spec.name: convert for spec, convert in made}
    is_checked = any(spec.content_type == "json" for spec in specs)
    is_numbers = all(spec.shape == (-1,) for spec in specs) and _numbers(specs)
    adapt = _frame_adapter(converts, labels)
    is_single = len(specs) == 1 and not isinstance(labels[0], str)
    return Inputs(specs, adapt, is_single, is_numbers, is_checked, _forms(columns, specs))


def _frame_adapter(converts: Mapping[str, Convert], labels: Sequence[Any]) -> Callable[[Tensors], Any]:
    import pandas as pd

    columns = list(zip(converts.items(), labels, strict=True))

    def adapt(inputs: Tensors) -> Any:
        # Copies: a model may change its table, and the tensors may be views on a request.
        return pd.DataFrame(
            {label: convert(name, inputs[name]) for (name, convert), label in columns if name in inputs}
        )

    return adapt


def _list_inputs(column: Any) -> Inputs:
    spec, convert = _column(column, INPUT)

    def adapt(inputs: Tensors) -> Any:
        values = convert(INPUT, inputs[INPUT])
        return list(values) if isinstance(values, list) else values.tolist()

    return Inputs((spec,), adapt, any_input_name=True, is_checked=True, example=_forms([column], [spec]))


def _column(column: Any, name: str) -> tuple[TensorSpec, Convert]:
    """An input, and how its array becomes a column.

    Raises:
        ModelLoadError: Its type cannot be carried.
    """
    kind, depth = column.type, 0
    while type(kind).__name__ == "Array":
        kind, depth = kind.dtype, depth + 1
    scalar = getattr(kind, "name", "")
    optional = not column.required
    if scalar in _SCALARS and not (depth and scalar in _CONTENT_TYPES):
        gaps = optional and not depth and scalar in ("float", "double")  # NaN, as in a table of pandas
        shape, content_type = (-1,) * (depth + 1), _CONTENT_TYPES.get(scalar, "")
        spec = TensorSpec(name, _SCALARS[scalar], shape, optional, content_type, gaps)
        return spec, _to_lists if depth else _CONVERTS.get(scalar, _as_is)
    if type(kind).__name__ == "SparkMLVector":
        raise ModelLoadError(f'MLmodel: input "{name}" is a Spark vector, which no request can carry')
    return TensorSpec(name, "BYTES", (-1,), optional, "json"), _to_values


def _forms(columns: Sequence[Any], specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Values for the inputs that do not take an empty text."""
    found = {spec.name: _DATE for spec in specs if spec.content_type == "datetime"}
    made = {
        spec.name: json.dumps(_to_zero(column.type))
        for column, spec in zip(columns, specs, strict=True)
        if spec.content_type == "json"
    }
    return {**found, **made}


def _to_zero(kind: Any) -> Any:
    """The smallest JSON value of a type; an object has all its properties."""
    if hasattr(kind, "properties"):
        return {one.name: _to_zero(one.dtype) for one in kind.properties}
    if hasattr(kind, "to_pandas"):
        return _ZEROS.get(kind.name, 0)
    return {"Array": [], "Map": {}}.get(type(kind).__name__)


def _tensor_spec(spec: Any, index: int) -> TensorSpec:
    """An input or output of the same dtype and shape.

    Raises:
        ModelLoadError: The dtype has no datatype.
    """
    name = f"input-{index}" if spec.name is None else str(spec.name)
    try:
        return TensorSpec(name, datatype_of(np.empty(0, spec.type)), tuple(map(int, spec.shape)))
    except TypeError as exc:
        raise ModelLoadError(f'MLmodel: tensor "{name}" is of {spec.type}, which no request can carry') from exc


def _as_is(name: str, array: Array) -> Array:
    return array


def _to_texts(name: str, array: Array) -> list[str]:
    try:
        return [item.decode() for item in array.tolist()]
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f'input "{name}": expected UTF-8 text, got {exc.object[:20]!r}') from exc


def _to_dates(name: str, array: Array) -> Any:
    import pandas as pd

    try:
        dates = pd.to_datetime(pd.Series(_to_texts(name, array)), format="ISO8601")
        if dates.dt.tz is None:
            return dates.dt.as_unit("ns")
    except (ValueError, OverflowError, AttributeError) as exc:
        reason = str(exc).split(". ")[0]
        raise InvalidRequest(f'input "{name}": expected dates such as "2024-12-31T23:59:59", {reason}') from exc
    raise InvalidRequest(f'input "{name}": expected dates without a time zone, which the model knows nothing of')


def _to_lists(name: str, array: Array) -> list[Any]:
    """One list for each row, of Python's own numbers and texts."""
    if array.dtype != object:
        listed: list[Any] = array.tolist()
        return listed
    texts = np.array(_to_texts(name, array.reshape(-1)), dtype=object)
    return list(texts.reshape(array.shape).tolist())


def _to_values(name: str, array: Array) -> list[Any]:
    values = []
    for index, text in enumerate(array.tolist()):
        try:
            values.append(json.loads(text))
        except ValueError as exc:
            raise InvalidRequest(f'input "{name}"[{index}]: expected a JSON text, {exc}') from exc
    return values


_CONVERTS: Final[Mapping[str, Convert]] = {"string": _to_texts, "datetime": _to_dates}
