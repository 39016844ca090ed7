# SPDX-License-Identifier: Apache-2.0
"""MLflow: models of scikit-learn, XGBoost and LightGBM, called themselves where they answer as their pyfunc does.

A pyfunc checks the signature again and makes a table of each request: 1,000 µs for a row of ten columns, where the
estimator takes 70 µs for the same row as a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from modelyard.classes import pick_labels, to_probabilities
from modelyard.errors import ModelLoadError
from modelyard.signature import TensorSpec
from modelyard.tensor import DATATYPES, Array, Tensors
from modelyard_deployments._mlflow_files import quiet
from modelyard_deployments._mlflow_inputs import Inputs
from modelyard_deployments._sklearn_inputs import find_known_values, forget_names, is_same, to_array
from modelyard_deployments.lightgbm import check_text
from modelyard_deployments.sklearn import set_n_jobs
from modelyard_deployments.xgboost import check_file

_LOADERS: Final = ("mlflow.sklearn", "mlflow.xgboost", "mlflow.lightgbm")
_PROBA: Final = "predict_proba"
_ROWS: Final = 3


@dataclass(frozen=True, slots=True)
class Native:
    """The library's own model.

    Attributes:
        adapt: Named tensors to its argument.
        predict: Its argument to its answer, as the pyfunc gives it.
        predict_proba: Its argument to probabilities; None where it has none.
    """

    adapt: Callable[[Tensors], Any]
    predict: Callable[[Any], Any]
    predict_proba: Callable[[Any], Any] | None = None


def check_files(folder: Path, description: Any) -> None:
    """Refuses model files that end the process of the library that reads them.

    Raises:
        ModelLoadError: The file is missing, empty or truncated.
    """
    for flavor, suffixes in (("xgboost", (".ubj", ".json", ".xgb")), ("lightgbm", (".lgb", ".txt"))):
        name = str(description.flavors.get(flavor, {}).get("data", ""))
        if not name.endswith(suffixes):
            continue
        path = folder / name
        if not path.is_file():
            raise ModelLoadError(f"MLmodel names the file {name}, which is not there")
        if flavor == "lightgbm":
            check_text(path)
            continue
        import xgboost

        check_file(path.read_bytes(), name, xgboost.__version__)


def find_raw(pyfunc: Any, loader: str, n_jobs: int) -> Any | None:
    """The library's model inside a pyfunc, limited to so many threads; None where it is of another library."""
    if loader not in _LOADERS:
        return None
    raw = pyfunc.get_raw_model()
    if hasattr(raw, "get_params"):
        set_n_jobs(raw, n_jobs)
    booster = raw.get_booster() if hasattr(raw, "get_booster") else raw
    if loader == "mlflow.xgboost" and hasattr(booster, "set_param"):
        booster.set_param({"nthread": n_jobs})
    return raw


def find_width(raw: Any) -> tuple[int, tuple[str, ...]]:
    """Number and names of the columns that a model was trained on; -1 where it does not tell."""
    names = getattr(raw, "feature_names_in_", None)
    if names is None:
        names = raw.feature_name() if hasattr(raw, "feature_name") else getattr(raw, "feature_names", None)
    count = getattr(raw, "n_features_in_", None)
    for method in ("num_features", "num_feature"):
        count = getattr(raw, method)() if count is None and hasattr(raw, method) else count
    listed = () if names is None else tuple(map(str, names))
    return (len(listed) or -1 if count is None else int(count)), listed


def find_known(raw: Any, names: Sequence[str]) -> dict[str, Any]:
    """Values that the model's encoders know, by column."""
    if not hasattr(raw, "get_params"):
        return {}
    return {names[index]: value for index, value in find_known_values(raw, range(len(names)), names).items()}


def find_native(raw: Any, pyfunc: Any, method: str, inputs: Inputs, n_jobs: int) -> Native | None:
    """The fastest way to ask the model that answers made-up rows as the pyfunc does; None where there is no other.

    Args:
        raw: From :func:`find_raw`.
        pyfunc: What its answers are held against.
        method: What the pyfunc calls.
        inputs: What it takes.
        n_jobs: Threads of one prediction.
    """
    if not inputs.is_numbers or any(-1 in spec.shape[1:] for spec in inputs.specs):
        return None
    rows = _make_rows(inputs.specs)
    expected = _ask(lambda: pyfunc.predict(inputs.adapt(rows)))
    if not isinstance(expected, np.ndarray):
        return None
    adapt = _matrix_adapter(inputs)
    if hasattr(raw, "get_params"):
        forget_names(raw, [method], inputs.columns or ())
    native = Native(adapt, *_functions(raw, method, n_jobs))
    got = _ask(lambda: native.predict(native.adapt(rows)))
    if isinstance(got, np.ndarray) and got.dtype == expected.dtype and is_same(got, expected):
        return native
    return None


Function: TypeAlias = Callable[[Any], Any]


def _functions(raw: Any, method: str, n_jobs: int) -> tuple[Function, Function | None]:
    """What predicts, and what gives probabilities, of a matrix."""
    if hasattr(raw, "booster_"):
        return _lightgbm_functions(raw, n_jobs)
    if hasattr(raw, "get_params"):
        return getattr(raw, method), getattr(raw, _PROBA, None)
    if hasattr(raw, "inplace_predict"):
        return lambda data: raw.inplace_predict(data, validate_features=False), None
    return lambda data: raw.predict(data, num_threads=n_jobs), None


def _lightgbm_functions(raw: Any, n_jobs: int) -> tuple[Function, Function | None]:
    """Of its booster: the estimator itself complains about a matrix where it was trained on a table."""

    def score(data: Any) -> Any:
        return raw.booster_.predict(data, num_threads=n_jobs)

    if not hasattr(raw, "classes_"):
        return score, None
    labels = np.asarray(raw.classes_)
    return lambda data: pick_labels(score(data), labels), lambda data: to_probabilities(score(data))


def _matrix_adapter(inputs: Inputs) -> Callable[[Tensors], Array]:
    names = [spec.name for spec in inputs.specs]
    if len(names) == 1:
        (name,) = names
        return lambda given: given[name].reshape(given[name].shape[0], -1)
    return lambda given: np.stack([given[name] for name in names], axis=1)


def _make_rows(specs: Sequence[TensorSpec]) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    return {
        spec.name: (rng.random((_ROWS, *spec.shape[1:])) * 4).astype(DATATYPES[spec.datatype].dtype) for spec in specs
    }


def _ask(function: Callable[[], Any]) -> Any:
    try:
        with quiet():
            return to_array(function())
    except Exception:  # noqa: BLE001  # made-up rows: whatever it raises means that this way is not taken
        return None
