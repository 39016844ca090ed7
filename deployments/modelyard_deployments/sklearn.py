# SPDX-License-Identifier: Apache-2.0
"""scikit-learn: estimators and pipelines saved with joblib, pickle or skops.

Inputs, as the estimator was trained:

* on a matrix, or on a table of numbers: one FP64 matrix ``input-0`` ``[-1, n]``; a table's columns are accepted too.
* on a table with text columns: one input per column, BYTES or FP64. Which columns are text is read from the fitted
  encoders; the option ``inputs`` says it where they cannot tell.
* on documents (a vectorizer comes first): one BYTES input ``[-1]``.

Outputs: ``output-0`` is the answer of ``predict``. When asked for: ``predict`` (the same), ``predict_proba``,
``decision_function`` and ``transform``, where the estimator has them. A transformer without ``predict`` answers
``transform``.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Parameters, Tensors, datatype_of
from modelyard_deployments._sklearn_files import explain_version, load_pickle, load_skops
from modelyard_deployments._sklearn_inputs import (
    INPUT,
    Inputs,
    derive_inputs,
    inputs_from_option,
    to_array,
    try_methods,
    walk_parts,
)

_OUTPUT: Final = "output-0"
_METHODS: Final = ("predict", "predict_proba", "decision_function", "transform")
_TRIED: Final = (0.0, 1.0, 0.5)
"""Numbers of the made-up row that tells an answer's datatype and shape."""


class InputOption(BaseModel):
    """One input, where the estimator cannot tell it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Name of the input; for a table the name of its column.")
    datatype: str = Field(description="FP64, INT64, BYTES … as the Open Inference Protocol names them.")
    shape: tuple[int, ...] = Field(default=(-1,), description="Dimensions; -1 varies, and the first is the rows.")


class SklearnOptions(Options):
    """Options of a scikit-learn model."""

    n_jobs: int = Field(
        default=1, ge=1, description="Threads of one prediction, whatever the estimator was saved with."
    )
    trusted_types: tuple[str, ...] = Field(
        default=(), description="Types a .skops file may hold besides scikit-learn's own; any other is refused."
    )
    inputs: tuple[InputOption, ...] = Field(
        default=(), description="The inputs, where they cannot be derived from the estimator; empty derives them."
    )


class SklearnModel(Model):
    """A loaded estimator."""

    def __init__(self, estimator: Any, options: SklearnOptions) -> None:
        methods = tuple(name for name in _METHODS if hasattr(estimator, name))
        if not {"predict", "transform"} & set(methods):
            raise ModelLoadError(
                f"expected an estimator with predict or transform, got {type(estimator).__name__}"
                + ("; it can only label the data it was fitted on" if hasattr(estimator, "fit_predict") else "")
            )
        set_n_jobs(estimator, options.n_jobs)
        self._estimator = estimator
        self._threads = _ThreadLimit(options.n_jobs)
        if options.inputs:
            specs = tuple(TensorSpec(option.name, option.datatype, option.shape) for option in options.inputs)
            inputs = inputs_from_option(specs, estimator)
        else:
            inputs = derive_inputs(estimator, methods)
        self._adapt = inputs.adapt
        self._signature = _to_signature(estimator, methods, inputs)

    @property
    def signature(self) -> Signature:
        """One matrix, one list of documents, or one input per column: as the estimator was trained."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Calls one method of the estimator for each output.

        Raises:
            InvalidRequest: A value the estimator refuses: NaN, an unknown category, text that is not UTF-8.
        """
        self._threads.apply()
        data = self._adapt(inputs)
        methods = {name: "predict" if name == _OUTPUT else name for name in outputs}
        try:
            answers = {method: to_array(getattr(self._estimator, method)(data)) for method in {*methods.values()}}
        except ValueError as exc:
            reason = find_client_fault(exc, inputs)
            if reason is None:
                raise
            raise InvalidRequest(reason) from exc
        return {name: answers[method] for name, method in methods.items()}


class SklearnFramework(Framework):
    """Loads pickled estimators, which can run code, and .skops files, which hold trusted types only."""

    suffixes: ClassVar[tuple[str, ...]] = (".joblib", ".pkl", ".pickle", ".skops")
    options: ClassVar[type[Options]] = SklearnOptions
    requires: ClassVar[str] = "sklearn"
    may_share: ClassVar[bool] = True
    distribution: ClassVar[str] = "scikit-learn"
    loads_code: ClassVar[bool] = True

    def load(self, path: Path, options: SklearnOptions) -> SklearnModel:
        """Loads the estimator and derives its signature.

        Raises:
            ModelLoadError: The file is damaged, needs a module that is missing, holds untrusted types, or was written
                by a version of scikit-learn that this one cannot read.
        """
        if path.name.lower().endswith(".skops"):
            return SklearnModel(load_skops(path, options.trusted_types), options)
        estimator = load_pickle(path)
        try:
            return SklearnModel(estimator, options)
        except ModelLoadError as exc:
            raise ModelLoadError(f"{exc}{explain_version(path)}") from exc


class _ThreadLimit:
    """Limits the thread pools of numpy and scikit-learn, once in each thread that predicts (OpenMP's is per thread)."""

    def __init__(self, threads: int) -> None:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # it has no type information

        self._controller = ThreadpoolController()
        self._threads = threads
        self._local = threading.local()

    def apply(self) -> None:
        """Costs one attribute look-up after a thread's first call."""
        if not hasattr(self._local, "limit"):
            self._local.limit = self._controller.limit(limits=self._threads)


def set_n_jobs(estimator: Any, n_jobs: int) -> None:
    """Gives the estimator and those inside it that many threads, where they have such a setting."""
    for part in walk_parts(estimator):
        if vars(part).get("n_jobs") is not None or (n_jobs > 1 and "n_jobs" in vars(part)):
            part.n_jobs = n_jobs


def _to_signature(estimator: Any, methods: Sequence[str], inputs: Inputs) -> Signature:
    specs = {method: _to_spec(estimator, method, inputs) for method in methods}
    example = _find_example(estimator, "predict" if "predict" in specs else "transform", inputs)
    if "predict" in specs:
        outputs = (TensorSpec(_OUTPUT, specs["predict"].datatype, specs["predict"].shape),)
    else:
        outputs = (specs.pop("transform"),)
    return Signature(
        inputs=inputs.specs,
        outputs=outputs,
        on_request=tuple(specs.values()),
        columns=inputs.columns,
        any_input_name=len(inputs.specs) == 1 and inputs.specs[0].name == INPUT,
        example=example,
    )


def _to_spec(estimator: Any, method: str, inputs: Inputs) -> TensorSpec:
    """Datatype and shape of a method's answer, tried on one row; where that fails, what its classes say."""
    for number in _TRIED:
        answers = try_methods(estimator, [method], inputs.to_example(number))
        if answers:
            return TensorSpec(method, datatype_of(answers[0]), (-1, *answers[0].shape[1:]))
    classes = getattr(estimator, "classes_", None)
    if method == "predict":
        return TensorSpec(method, "FP64" if classes is None else datatype_of(np.asarray(classes)), (-1,))
    return TensorSpec(method, "FP64", (-1, -1 if classes is None else len(classes)))


def _find_example(estimator: Any, method: str, inputs: Inputs) -> dict[str, Any]:
    """A row that the estimator answers, by input name; empty where zeros do."""
    for number in _TRIED:
        if try_methods(estimator, [method], inputs.to_example(number)):
            return inputs.to_row(number) if number or inputs.known else {}
    return inputs.to_row(0.0) if inputs.known else {}


_VALUE_FAULTS: Final = (
    "contains infinity",
    "Found array with 0 sample(s)",
    "Found unknown categories",
    "Negative values in data",
    "could not convert string to float",
)


def find_client_fault(exc: ValueError, inputs: Tensors) -> str | None:
    """A sentence for the client where its values are at fault; None where the model itself failed.

    Source: the messages of scikit-learn's ``utils/validation.py`` and ``preprocessing/_encoders.py``.
    """
    reason = str(exc).split("\n", 1)[0].strip()
    if "contains NaN" in reason:
        for name, array in inputs.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                return f'input "{name}" contains NaN: the model takes finite numbers only'
        return None  # the values are fine, the model's own steps make the NaN
    if any(fault in reason for fault in _VALUE_FAULTS):
        return f"a value does not fit the model: {reason}"
    return None
