# SPDX-License-Identifier: Apache-2.0
"""MLflow: any folder with an ``MLmodel`` file that has the flavour ``python_function``.

Inputs are what the model's signature says: one input for each column, a matrix where columns have no names, a tensor as
it is. Without a signature they are derived from the estimator or the saved input example, or told by the option
``inputs``. Outputs have the signature's names, else ``output-0``; ``predict_proba`` when asked for, where the model is
an estimator that has it. The signature's ``params`` are parameters of the request.

Models of scikit-learn, XGBoost and LightGBM are called themselves where they answer as their pyfunc does.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import Field

from modelyard.errors import InvalidRequest
from modelyard.model import Framework, Model, Options
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors, datatype_of
from modelyard_deployments._mlflow_answers import OUTPUT, Answer, fit_answer, outputs_from_schema, to_answer, to_specs
from modelyard_deployments._mlflow_files import import_mlflow, load_pyfunc, quiet, read_mlmodel
from modelyard_deployments._mlflow_inputs import (
    Inputs,
    inputs_from_schema,
    inputs_from_specs,
    to_example,
    unknown_inputs,
)
from modelyard_deployments._mlflow_native import Native, check_files, find_known, find_native, find_raw, find_width
from modelyard_deployments._trial import Trial, find_batch_axis, try_out
from modelyard_deployments.sklearn import InputOption, find_client_fault

_LOG: Final = logging.getLogger(__name__)
_PROBA: Final = "predict_proba"
_PREDICT: Final = "predict"
_CLIENT_FAULTS: Final = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
_SERIES: Final = ("prophet", "pmdarima", "statsmodels")
"""Loaders of models whose answers to rows depend on the other rows."""


class MLflowOptions(Options):
    """Options of an MLflow model."""

    n_jobs: int = Field(
        default=1, ge=1, description="Threads of one prediction of an estimator, whatever it was saved with."
    )
    inputs: tuple[InputOption, ...] = Field(
        default=(),
        description="The inputs, where the model has no signature: those of shape [-1] are columns of a table.",
    )
    batch_axis: bool | None = Field(
        default=None,
        description="Requests may share a call of the model, because each row is answered by itself; found out where "
        "it is not said.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="MLflow's `model_config`, over what was saved with the model."
    )


@dataclass(frozen=True, slots=True)
class _Caller:
    """How the pyfunc is asked.

    Attributes:
        predict: Its argument and checked parameters to its answer.
        params: The schema of its parameters; None where it takes none.
    """

    predict: Callable[[Any, dict[str, Any] | None], Any]
    params: Any


class MLflowModel(Model):
    """A loaded pyfunc."""

    def __init__(self, pyfunc: Any, options: MLflowOptions) -> None:
        description = pyfunc.metadata
        config = description.flavors["python_function"]
        method = config.get("predict_fn", _PREDICT)
        raw = find_raw(pyfunc, config["loader_module"], options.n_jobs)
        self._inputs = _find_inputs(pyfunc, raw, options)
        self._caller = _to_caller(pyfunc, self._inputs, method)
        self._native: Native | None = None
        if raw is not None and self._caller.params is None:
            self._native = find_native(raw, pyfunc, method, self._inputs, options.n_jobs)
        self._signature = self._to_signature(pyfunc, raw, options)

    @property
    def signature(self) -> Signature:
        """The model's own, in the platform's words."""
        return self._signature

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Asks the model once, and once more for its probabilities where they are wanted.

        Raises:
            InvalidRequest: A parameter is of the wrong type, or a value is none that the model takes.
        """
        params = self._check_params(parameters)
        try:
            answers = self._answer(inputs, outputs, params)
        except ValueError as exc:
            reason = find_client_fault(exc, inputs)
            if reason is None:
                raise
            raise InvalidRequest(reason) from exc
        if _PREDICT in outputs and _PREDICT not in answers:
            answers[_PREDICT] = answers[OUTPUT]
        return answers

    def _answer(self, inputs: Tensors, outputs: tuple[str, ...], params: dict[str, Any] | None) -> dict[str, Array]:
        native = self._native
        if native is None:
            return fit_answer(self._ask(inputs, params), self._signature.outputs)
        data = native.adapt(inputs)
        answers: dict[str, Array] = {}
        if outputs != (_PROBA,):
            answer = native.predict(data)
            answers = fit_answer(Answer({OUTPUT: answer}), self._signature.outputs)
        if _PROBA in outputs and native.predict_proba is not None and _PROBA not in answers:
            answers[_PROBA] = native.predict_proba(data)
        return answers

    def _ask(self, inputs: Tensors, params: dict[str, Any] | None) -> Answer:
        from mlflow.exceptions import MlflowException

        try:
            return to_answer(self._caller.predict(self._inputs.adapt(inputs), params))
        except MlflowException as exc:
            if exc.error_code not in _CLIENT_FAULTS:
                raise
            raise InvalidRequest(_first_sentence(exc.message)) from exc

    def _check_params(self, parameters: Parameters) -> dict[str, Any] | None:
        """Those the schema has, checked by mlflow, with its defaults; others are not the model's.

        Raises:
            InvalidRequest: One is of the wrong type.
        """
        schema = self._caller.params
        if schema is None:
            return None
        from mlflow.exceptions import MlflowException

        checked = {}
        for spec in schema.params:
            if spec.name not in parameters:
                checked[spec.name] = spec.default
                continue
            value = _to_param(parameters[spec.name], spec)
            try:
                checked[spec.name] = spec.validate_param_spec(value, spec)
            except MlflowException as exc:
                shape = " (a list, as JSON text)" if spec.shape else ""
                raise InvalidRequest(
                    f'parameter "{spec.name}": expected {spec.dtype!r}{shape}, got {value!r:.40}'
                ) from exc
        return checked

    def _to_signature(self, pyfunc: Any, raw: Any, options: MLflowOptions) -> Signature:
        declared = pyfunc.metadata.get_output_schema()
        specs = () if declared is None else outputs_from_schema(declared)
        is_open = not specs or _may_be_series(declared)
        loader = pyfunc.metadata.flavors["python_function"]["loader_module"]
        depends = loader.removeprefix("mlflow.") in _SERIES
        wanted = False if depends and options.batch_axis is None else options.batch_axis
        trial, answer = Trial(), Answer({})
        if is_open or wanted is None:
            trial, answer = self._try_out(() if is_open else specs)
            wanted = _find_wanted(wanted, trial, is_estimator=raw is not None)
        if not specs or (answer.is_table and specs[0].name == OUTPUT):
            specs = to_specs(answer, trial.outputs) or (TensorSpec(OUTPUT, "FP64", (-1,)),)
        known = find_known(raw, self._inputs.columns) if raw is not None else {}
        example = {
            **trial.example,
            **self._inputs.example,
            **known,
            **to_example(self._inputs.specs, pyfunc.input_example),
        }
        return Signature(
            inputs=self._inputs.specs,
            outputs=specs,
            on_request=self._to_on_request(specs),
            any_input_name=self._inputs.any_input_name,
            batch_axis=find_batch_axis((*self._inputs.specs, *specs), trial, wanted),
            example=example,
        )

    def _try_out(self, specs: Sequence[TensorSpec]) -> tuple[Trial, Answer]:
        """What the model answers to made-up rows; nothing where it takes none of them.

        Args:
            specs: The outputs that its signature tells; empty where it tells none, or not for sure.
        """
        found: list[Answer] = []

        def run(inputs: Tensors) -> Tensors:
            try:
                with quiet():
                    params = self._check_params({})
                    native = self._native
                    answer = (
                        self._ask(inputs, params) if native is None else to_answer(native.predict(native.adapt(inputs)))
                    )
                    arrays = fit_answer(answer, specs) if specs else answer.arrays
            except Exception as exc:  # made-up rows: the model may raise anything
                raise InvalidRequest(f"{type(exc).__name__}: {exc}") from exc
            found.append(answer)
            return arrays

        trial = try_out(run, self._inputs.specs)
        if not trial.answers and not specs:
            _LOG.warning("the model's outputs are not known: it takes no made-up rows: %s", trial.reason)
        return trial, found[0] if found and trial.answers else Answer({})

    def _to_on_request(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        found = [replace(specs[0], name=_PREDICT)] if len(specs) == 1 and specs[0].name == OUTPUT else []
        native = self._native
        if native is not None and native.predict_proba is not None:
            rows = {spec.name: np.zeros((1, *spec.shape[1:]), dtype=np.float64) for spec in self._inputs.specs}
            with quiet():
                answer = np.asarray(native.predict_proba(native.adapt(rows)))
            if answer.ndim == 2:
                found.append(TensorSpec(_PROBA, datatype_of(answer), (-1, answer.shape[1])))
        return tuple(found)


class MLflowFramework(Framework):
    """Loads folders with an MLmodel file; most hold pickles, which can run code."""

    options: ClassVar[type[Options]] = MLflowOptions
    requires: ClassVar[str] = "mlflow"
    distribution: ClassVar[str] = "mlflow-skinny"
    loads_code: ClassVar[bool] = True

    def load(self, path: Path, options: MLflowOptions) -> MLflowModel:
        """Reads the description, then has mlflow load the model.

        Raises:
            ModelLoadError: It is no MLflow model, or it cannot be loaded with the packages that are installed.
        """
        import_mlflow()
        description = read_mlmodel(path)
        check_files(path, description)
        return MLflowModel(load_pyfunc(path, description, options.settings), options)


def _find_inputs(pyfunc: Any, raw: Any | None, options: MLflowOptions) -> Inputs:
    """From the signature, the option, the saved example, the estimator, in this order."""
    metadata = pyfunc.metadata
    schema = metadata.get_input_schema()
    if schema is not None and len(schema.inputs):
        return inputs_from_schema(schema, metadata._is_signature_from_type_hint())
    if options.inputs:
        return inputs_from_specs([TensorSpec(one.name, one.datatype, one.shape) for one in options.inputs])
    example = pyfunc.input_example
    if example is not None:
        from mlflow.models import infer_signature

        with quiet():
            return inputs_from_schema(infer_signature(example).inputs, is_list=False)
    if raw is not None:
        width, names = find_width(raw)
        return inputs_from_names(raw, names) if names else unknown_inputs(width)
    _LOG.warning("the model has no signature: it takes a matrix of numbers; the option inputs tells it otherwise")
    return unknown_inputs(-1)


def inputs_from_names(raw: Any, names: Sequence[str]) -> Inputs:
    """One column for each name: text where the model's encoders know text there, else numbers."""
    known = find_known(raw, names)
    datatypes = {name: "BYTES" if isinstance(known.get(name), str) else "FP64" for name in names}
    return inputs_from_specs([TensorSpec(name, datatypes[name], (-1,)) for name in names])


def _to_caller(pyfunc: Any, inputs: Inputs, method: str) -> _Caller:
    """The model's own function, past mlflow's checks of what is checked already; with them where they are needed."""
    metadata = pyfunc.metadata
    schema = metadata.get_params_schema()
    if inputs.is_checked or metadata._is_type_hint_from_example():
        return _Caller(lambda data, params: pyfunc.predict(data, params=params), schema)
    function = getattr(pyfunc._model_impl, method)
    parameter = inspect.signature(function).parameters.get("params")
    if parameter is not None and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
        return _Caller(lambda data, params: function(data, params=params), schema)
    return _Caller(lambda data, params: function(data), schema)


def _find_wanted(wanted: bool | None, trial: Trial, *, is_estimator: bool) -> bool | None:
    """The option ``batch_axis``; that of a model of which nothing was found out, and which may look at all its rows."""
    if wanted is not None or trial.answers or is_estimator:
        return wanted
    _LOG.warning(
        "the model takes no made-up rows (%s), so requests do not share its calls; "
        "the option batch_axis: true lets them",
        trial.reason[:200],
    )
    return False


def _may_be_series(declared: Any) -> bool:
    """A single column without a name is a list of the model, or a series, which is a table."""
    return not declared.is_tensor_spec() and len(declared.inputs) == 1 and not declared.has_input_names()


def _to_param(value: Any, spec: Any) -> Any:
    """Lists and objects come as JSON text, since a request's parameters are single values."""
    is_nested = spec.shape is not None or not hasattr(spec.dtype, "to_pandas")
    if not is_nested or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _first_sentence(message: str) -> str:
    """Without the data, which mlflow repeats, and of bounded length."""
    _, found, reason = message.rpartition("Error: ")
    return f"the input does not fit the model's signature: {reason if found else message}"[:500]
