# SPDX-License-Identifier: Apache-2.0
"""PMML documents, evaluated by pypmml (PMML4S) on a Java virtual machine inside the replica's process.

Inputs: one for each active field, ``[-1]``, by its name and data type. A field that may be missing is optional, NaN is
a missing number, and an empty text a missing text unless the document lists it; so an integer that may be missing is
FP64. Values that the document calls invalid, and does not say what to do with, are refused.

Outputs: one for each result field, ``[-1]``: the predicted value, the probability of each class, whatever else the
document's ``Output`` names. Where the model has no answer it is NaN or an empty text.

scikit-learn-like evaluators of PMML (sklearn-pmml-model) are faster on large batches, but leave out what a document
says of missing and invalid values and of its outputs, so they answer other things, and nothing tells when.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pydantic

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array, Parameters, Tensors, to_bytes_array
from modelyard_deployments._pmml_document import Document, read_document
from modelyard_deployments._pmml_fields import to_datatype, to_field, to_matrix, to_texts
from modelyard_deployments._pmml_java import NO_INTEGER, Evaluator, parse_model, read_names, start_java


class PMMLOptions(Options):
    """Options of a PMML model."""

    heap_mb: int | None = pydantic.Field(
        default=None, ge=16, description="Java's heap, in MiB; null leaves it to Java: a quarter of the memory it sees."
    )


class PMMLModel(Model):
    """A parsed document."""

    def __init__(self, model: Any, document: Document) -> None:
        names = read_names(model)
        self._evaluator = Evaluator(model)
        self._order = list(self._evaluator.names)
        self._fields = {name: to_field(name, kind, name in names.active, document) for name, kind in names.inputs}
        outputs = tuple(TensorSpec(name, to_datatype(kind), (-1,)) for name, kind in names.outputs)
        self._places = {spec.name: (place, spec.datatype) for place, spec in enumerate(outputs)}
        datatypes = {field.spec.datatype for field in self._fields.values()}
        self._has_texts = "BYTES" in datatypes
        self._whole = [name for name, field in self._fields.items() if field.is_whole]
        self._flags = [name for name, field in self._fields.items() if field.spec.datatype == "BOOL"]
        inputs = tuple(field.spec for field in self._fields.values())
        if not inputs or not outputs:
            raise ModelLoadError(f"expected fields and results, got {len(inputs)} and {len(outputs)}")
        known = {name: field.example for name, field in self._fields.items() if field.example is not None}
        self._signature = Signature(inputs, outputs, example=known)

    @property
    def signature(self) -> Signature:
        """One tensor for each field and each result."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Evaluates all rows at once.

        Raises:
            InvalidRequest: A value is invalid or missing where the document does not allow it, or the model has no
                answer that the output's datatype could say.
        """
        if not inputs:
            raise InvalidRequest(f"expected at least one of the fields {', '.join(self._fields)}, got none")
        for name, column in inputs.items():
            self._fields[name].check(column)
        answers = self._evaluate(inputs)
        return {name: self._read(answers, name) for name in outputs}

    def _evaluate(self, inputs: Tensors) -> Any:
        rows = len(next(iter(inputs.values())))
        has_gaps = self._has_gaps(inputs)
        if not has_gaps and not self._has_texts:
            return self._evaluator.evaluate_numbers(to_matrix(self._fields, self._order, inputs, rows))
        columns = [self._to_column(name, inputs, rows) for name in self._order]
        table = [list(row) for row in zip(*columns, strict=True)]
        return self._evaluator.evaluate_gaps(table) if has_gaps else self._evaluator.evaluate_values(table)

    def _has_gaps(self, inputs: Tensors) -> bool:
        """An integer or a boolean is missing, for which no number and no text could stand in Java."""
        if any(name not in inputs for name in (*self._flags, *self._whole)):
            return True
        return any(bool(np.isnan(inputs[name]).any()) for name in self._whole)

    def _to_column(self, name: str, inputs: Tensors, rows: int) -> list[Any]:
        field = self._fields.get(name)
        if field is None or name not in inputs:
            is_float = field is not None and field.spec.datatype in ("FP32", "FP64") and not field.is_whole
            return [np.nan if is_float else None] * rows
        return to_texts(field, inputs[name])

    def _read(self, answers: Any, name: str) -> Array:
        place, datatype = self._places[name]
        if datatype in ("FP32", "FP64"):
            return self._evaluator.read_floats(answers, place).astype(DATATYPES[datatype].dtype, copy=False)
        if datatype == "INT64":
            integers = self._evaluator.read_integers(answers, place)
            _check_answered(integers == NO_INTEGER, name)
            return integers
        values = self._evaluator.read_values(answers, place)
        if datatype == "BOOL":
            _check_answered(np.array([value is None for value in values]), name)
            return np.array([bool(value) for value in values])
        texts = np.empty(len(values), dtype=object)
        texts[:] = ["" if value is None else str(value) for value in values]
        return to_bytes_array(texts)


def _check_answered(missing: Array, name: str) -> None:
    if missing.any():
        raise InvalidRequest(
            f'output "{name}": the model has no answer for row {int(missing.argmax())}: a value that it needs is '
            "missing or not one of those that it knows"
        )


class PMMLFramework(Framework):
    """Reads a document and makes the evaluator."""

    suffixes: ClassVar[tuple[str, ...]] = (".pmml", ".xml")
    options: ClassVar[type[Options]] = PMMLOptions
    requires: ClassVar[str] = "pmml"
    distribution: ClassVar[str] = "pypmml"

    _starting: ClassVar[threading.Lock] = threading.Lock()

    def load(self, path: Path, options: PMMLOptions) -> PMMLModel:
        """Starts Java in this process, parses the document, and evaluates a row.

        Raises:
            ModelLoadError: There is no Java, or the document is damaged or of a kind that the evaluator does not know.
        """
        import pypmml

        document = read_document(path.read_bytes(), path.name)
        with self._starting:
            start_java(options.heap_mb)
        try:
            parsed = parse_model(document.text)
            if not parsed.isScorable():
                raise ModelLoadError("expected a model that can be evaluated, got none")
            model = PMMLModel(parsed, document)
            _try_out(model)
        except ModelLoadError as exc:
            raise ModelLoadError(f"{path.name}: {exc}") from exc
        except Exception as exc:  # Java's exceptions come as many kinds
            raise ModelLoadError(
                f"{path.name}: pypmml {pypmml.__version__} cannot evaluate this document: {_to_reason(exc)}"
            ) from exc
        return model


def _try_out(model: PMMLModel) -> None:
    """Evaluates a made-up row, since much of a document is looked at only then; having no answer is fine."""
    signature = model.signature
    row = {}
    for spec in signature.inputs:
        value = signature.example.get(spec.name, "" if spec.datatype == "BYTES" else 0)
        row[spec.name] = np.array([value.encode() if isinstance(value, str) else value], DATATYPES[spec.datatype].dtype)
    try:
        model.predict(row, tuple(spec.name for spec in signature.outputs), {})
    except InvalidRequest:
        return


def _to_reason(exc: Exception) -> str:
    """Java's class without its packages, and its message's first line."""
    name, _, message = str(exc).strip().partition("\n")[0].partition(": ")
    return f"{name.rpartition('.')[2]}: {message}"[:400] if message else name[:400]
