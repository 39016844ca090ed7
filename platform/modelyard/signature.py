# SPDX-License-Identifier: Apache-2.0
"""What a model takes and gives, and the one place where a request's tensors are checked against it.

Source of the metadata's shape: Open Inference Protocol, "Model Metadata Response JSON Object" (``-1`` is a variable
dimension).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest, InvalidTensor
from modelyard.tensor import DATATYPES, Array, Tensors, datatype_of, describe, element_count

DEFAULT_SIGNATURE: Final = "serving_default"
"""Name of the signature that every model has. Source: TensorFlow ``saved_model/signature_constants.py``."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, datatype and shape of one input or output.

    Attributes:
        name: Its name, unique among the inputs or the outputs.
        datatype: One of :data:`~modelyard.tensor.DATATYPES`.
        shape: Its dimensions; ``-1`` is a variable one.
        optional: An input may be left out; an output may be missing in an answer.
        content_type: What the datatype does not say, for protocols that have a form of their own for it: ``base64``
            (BYTES that are no text), ``datetime`` (ISO 8601), ``json`` (one JSON text in each element), ``pd`` (an
            output that is a column of a table). The words are MLServer's.
        gaps: A row of this input may have no value, ``null`` in JSON: NaN among floats, an empty text in BYTES. Where
            it is optional, a row may leave it out while others have it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    content_type: str = ""
    gaps: bool = False

    def __str__(self) -> str:
        return describe(self.datatype, self.shape)


@dataclass(frozen=True, slots=True)
class SavedSignature:
    """What a SavedModel says of one signature beyond datatypes and shapes; TensorFlow Serving's clients see it.

    Where a signature has one, TensorFlow Serving's own JSON rules hold for the model.

    Attributes:
        name: The signature's name in the SavedModel (``serving_default``).
        method: ``tensorflow/serving/predict``, ``tensorflow/serving/classify`` or ``tensorflow/serving/regress``.
        inputs: Names of the inputs' tensors in the graph (``serving_default_x:0``) by input name.
        outputs: Those of the outputs (``StatefulPartitionedCall:0``) by output name.
        unknown_ranks: Inputs whose number of dimensions the SavedModel leaves open: any is taken, and their shape is
            one that the model takes.
        unknown_output_ranks: Outputs of which the same is true.
    """

    name: str
    method: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    unknown_ranks: frozenset[str] = frozenset()
    unknown_output_ranks: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Signature:
    """The named tensors of a model.

    Attributes:
        inputs: What the model takes, in order.
        outputs: What it answers when the client asks for nothing in particular, in order.
        on_request: Outputs computed only when a client asks for them by name (``predict_proba``).
        columns: Feature names of a model whose single input is a matrix ``[-1, len(columns)]``; a client may send
            these as separate inputs instead. Empty where the model knows none.
        any_input_name: The input that can come alone (:attr:`bare`) has no name of its own (classic models trained on a
            matrix), so whatever the client calls it is accepted.
        exact_datatypes: Refuse instead of casting numbers between kinds that fit (FP32 → FP64).
        batch_axis: Rows are dimension 0 of every input and output, and several requests may be merged there.
        decoupled: One request is answered by none, one or many responses (``Model.stream``): text, chunks, progress.
        explanations: Names of those outputs in ``on_request`` that explain an answer; empty where the model cannot.
        labels: Names of the classes by an output's name, in the order of its last dimension.
        example: One valid row by input name (or column), as JSON values; empty where nothing better than zeros is
            known. Shown in the documentation.
        saved: What a SavedModel says of the signature; ``None`` for every other model.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    on_request: tuple[TensorSpec, ...] = ()
    columns: tuple[str, ...] = ()
    any_input_name: bool = False
    exact_datatypes: bool = False
    batch_axis: bool = True
    decoupled: bool = False
    explanations: tuple[str, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    example: Mapping[str, Any] = field(default_factory=dict)
    saved: SavedSignature | None = None

    @property
    def name(self) -> str:
        """The name that clients of TensorFlow Serving know it by."""
        return self.saved.name if self.saved is not None else DEFAULT_SIGNATURE

    @property
    def bare(self) -> TensorSpec | None:
        """The input that a client may send alone, as a value without its name: the only one that it has to send."""
        needed = self.inputs if len(self.inputs) == 1 else [spec for spec in self.inputs if not spec.optional]
        return needed[0] if len(needed) == 1 else None

    def bind(self, tensors: Tensors) -> dict[str, Array]:
        """The model's inputs out of a request's tensors, in the signature's order and datatypes.

        Columns are assembled into the matrix, an unnamed input is named, ``[n,1]`` is accepted for ``[n]``, numbers
        are cast where the kinds fit, and memory is aligned, which a view on a body need not be but native libraries
        rely on. Arrays are views unless one of these needs a copy.

        Raises:
            InvalidRequest: A tensor is missing or unknown.
            InvalidTensor: A datatype, shape or number does not fit, or the inputs differ in rows.
        """
        if self.columns and len(self.inputs) == 1 and self.inputs[0].name not in tensors and self._is_columns(tensors):
            tensors = {self.inputs[0].name: self._stack_columns(tensors)}
        elif self.any_input_name and len(tensors) == 1 and self.bare is not None and not self._has_input(tensors):
            tensors = {self.bare.name: next(iter(tensors.values()))}
        bound: dict[str, Array] = {}
        for spec in self.inputs:
            array = tensors.get(spec.name)
            if array is None:
                if spec.optional:
                    continue
                raise InvalidRequest(
                    f"input {_quoted(spec.name)} is missing: expected {self._names()}, got {_names(tensors)}"
                )
            bound[spec.name] = self._fit(spec, array)
        if len(bound) != len(tensors):
            unknown = [name for name in tensors if name not in bound]
            raise InvalidRequest(f"unknown input {_names(unknown)}: expected {self._names()}")
        if self.batch_axis and len(bound) > 1:
            self._check_rows(bound)
        return bound

    def check_outputs(self, names: tuple[str, ...]) -> None:
        """Refuses requested outputs the model does not have.

        Raises:
            InvalidRequest: With the names that exist.
        """
        for name in names:
            if not any(name == spec.name for spec in (*self.outputs, *self.on_request)):
                known = _names([spec.name for spec in (*self.outputs, *self.on_request)])
                raise InvalidRequest(f"unknown requested output {_quoted(name)}: expected one of {known}")

    def empty_outputs(self, names: tuple[str, ...]) -> dict[str, Array]:
        """The answer to a request without rows, which no model needs to be asked for.

        Args:
            names: Outputs of the signature; other variable dimensions than the rows are empty as well.
        """
        specs = {spec.name: spec for spec in (*self.outputs, *self.on_request)}
        return {
            name: np.empty(tuple(max(dim, 0) for dim in specs[name].shape), dtype=DATATYPES[specs[name].datatype].dtype)
            for name in names
        }

    def _has_input(self, tensors: Tensors) -> bool:
        return any(spec.name in tensors for spec in self.inputs)

    def _is_columns(self, tensors: Tensors) -> bool:
        if len(tensors) == 1 and len(self.columns) > 1 and next(iter(tensors)) not in self.columns:
            return False
        return len(tensors) > 1 or next(iter(tensors), "") in self.columns

    def _stack_columns(self, tensors: Tensors) -> Array:
        missing = [name for name in self.columns if name not in tensors]
        unknown = [name for name in tensors if name not in self.columns]
        if missing or unknown:
            parts = [f"missing {_names(missing)}"] if missing else []
            parts += [f"unknown {_names(unknown)}"] if unknown else []
            raise InvalidRequest(f"columns do not fit: {', '.join(parts)}; expected {_names(self.columns)}")
        dtype = DATATYPES[self.inputs[0].datatype].dtype
        fitted = [self._fit(TensorSpec(name, self.inputs[0].datatype, (-1,)), tensors[name]) for name in self.columns]
        self._check_rows(dict(zip(self.columns, fitted, strict=True)))
        return np.stack(fitted, axis=1).astype(dtype, copy=False)

    def _fit(self, spec: TensorSpec, array: Array) -> Array:
        shape = array.shape
        if not self._takes_shape(spec, shape):
            if len(shape) == len(spec.shape) + 1 and shape[-1] == 1 and _shape_fits(spec.shape, shape[:-1]):
                array = array.reshape(shape[:-1])
            elif shape == () and array.size == 1 and element_count(tuple(abs(d) for d in spec.shape)) == 1:
                array = array.reshape((1,) * len(spec.shape))
            else:
                raise InvalidTensor(f"input {_quoted(spec.name)}", str(spec), describe(datatype_of(array), shape))
        wanted = DATATYPES[spec.datatype].dtype
        if array.dtype == wanted:
            return array if array.flags.aligned else array.copy()
        if self.exact_datatypes or not _castable(array.dtype, wanted):
            raise InvalidTensor(f"input {_quoted(spec.name)}", str(spec), describe(datatype_of(array), shape))
        return _cast(array, wanted, spec)

    def _takes_shape(self, spec: TensorSpec, shape: tuple[int, ...]) -> bool:
        if self.saved is not None and spec.name in self.saved.unknown_ranks:
            return bool(shape) or not self.batch_axis
        return _shape_fits(spec.shape, shape)

    def _check_rows(self, arrays: Tensors) -> None:
        rows = {name: array.shape[0] for name, array in arrays.items() if array.ndim}
        if len(set(rows.values())) > 1:
            got = ", ".join(f"{_quoted(name)} {count}" for name, count in list(rows.items())[:8])
            raise InvalidTensor("inputs", "the same number of rows in each", got)

    def _names(self) -> str:
        return _names([spec.name for spec in self.inputs])


@dataclass(frozen=True, slots=True)
class Description:
    """What a replica tells of its model.

    Attributes:
        signature: The model's own.
        members: Those of its members, by name; see ``Model.members``.
        publishes_members: Its members are models of the platform, under their own names.
        concurrency: How many calls a replica runs at once; the most of the model's and its members'.
        may_change: It has to be asked again and again; see ``Model.signature_may_change``.
        openai_routes: What it answers of the OpenAI protocol; see ``openai.OpenAIModel``.
        adapters: Further names that it answers to in the OpenAI protocol.
        properties: What else there is to know of it; see ``Model.properties``.
    """

    signature: Signature
    members: Mapping[str, Signature] = field(default_factory=dict)
    publishes_members: bool = False
    concurrency: int = 1
    may_change: bool = False
    openai_routes: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)


def _castable(have: np.dtype[Any], want: np.dtype[Any]) -> bool:
    if "O" in (have.kind, want.kind):
        return False
    return np.can_cast(have, want, "same_kind")


def _cast(array: Array, wanted: np.dtype[Any], spec: TensorSpec) -> Array:
    """The array in another dtype; a number that does not fit is refused, not wrapped or made infinite. A copy.

    Raises:
        InvalidTensor: A number is out of the dtype's range.
    """
    if wanted.kind in "iu" and array.size and not np.can_cast(array.dtype, wanted):
        bounds = np.iinfo(wanted)
        for value in (int(array.min()), int(array.max())):
            if not bounds.min <= value <= bounds.max:
                raise _out_of_range(spec, value)
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    if wanted.kind in "fV":
        lost = np.isinf(cast) & np.isfinite(array)
        if lost.any():
            raise _out_of_range(spec, array[lost][0])
    return cast


def _out_of_range(spec: TensorSpec, value: object) -> InvalidTensor:
    return InvalidTensor(f"input {_quoted(spec.name)}", f"numbers in the range of {spec.datatype}", f"{value}")


def _shape_fits(spec: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(spec) != len(shape):
        return False
    return all(want in (-1, got) for want, got in zip(spec, shape, strict=True))


def _quoted(name: str) -> str:
    return f'"{name}"'


def _names(names: Iterable[str]) -> str:
    listed = [_quoted(name) for name in names]
    shown = ", ".join(listed[:20])
    return f"{shown} and {len(listed) - 20} more" if len(listed) > 20 else shown or "none"
