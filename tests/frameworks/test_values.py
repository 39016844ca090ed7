# SPDX-License-Identifier: Apache-2.0
"""Values a model cannot take are the client's mistake; a model that breaks is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest
from modelyard.model import Model, load_model


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def load_fitted(model: Any) -> Model:
        import joblib

        joblib.dump(model, tmp_path / "model.joblib")
        return load_model("sklearn", tmp_path, {})

    return load_fitted


def _predict(model: Model, **inputs: Any) -> Any:
    bound = model.signature.bind({name: np.asarray(value) for name, value in inputs.items()})
    return model.predict(bound, ("output-0",), {})["output-0"]


def test_nan_is_refused_where_the_estimator_refuses_it(load: Any) -> None:
    from sklearn.linear_model import LinearRegression

    model = load(LinearRegression().fit(np.eye(3), [1, 2, 3]))
    with pytest.raises(InvalidRequest, match=r'^input "input-0" contains NaN: the model takes finite numbers only$'):
        _predict(model, x=[[1.0, np.nan, 0.0]])


def test_infinity_is_refused(load: Any) -> None:
    from sklearn.linear_model import LinearRegression

    model = load(LinearRegression().fit(np.eye(3), [1, 2, 3]))
    with pytest.raises(InvalidRequest, match="contains infinity or a value too large for dtype"):
        _predict(model, x=[[1.0, np.inf, 0.0]])


def test_nan_is_taken_where_the_estimator_takes_it(load: Any) -> None:
    from sklearn.tree import DecisionTreeRegressor

    model = load(DecisionTreeRegressor().fit(np.eye(3), [1, 2, 3]))
    assert _predict(model, x=[[np.nan, 0, 0]]).shape == (1,)


def test_nan_made_by_the_model_itself_is_its_failure(load: Any) -> None:
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    model = load(make_pipeline(FunctionTransformer(np.reciprocal), LinearRegression()).fit(1 + np.eye(3), [1, 2, 3]))
    with np.errstate(divide="ignore"), pytest.raises(InvalidRequest, match="infinity"):
        _predict(model, x=[[0.0, 1.0, 1.0]])
    arc = load(make_pipeline(FunctionTransformer(np.arcsin), LinearRegression()).fit(np.eye(3), [1, 2, 3]))
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="contains NaN"):
        _predict(arc, x=[[2.0, 1.0, 1.0]])


def test_unknown_category_is_refused(load: Any) -> None:
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    table = pd.DataFrame({"town": ["Ulm", "Bonn"], "area": [1.0, 2.0]})
    columns = make_column_transformer((OneHotEncoder(), ["town"]), remainder="passthrough")
    model = load(make_pipeline(columns, Ridge()).fit(table, [1, 2]))
    with pytest.raises(InvalidRequest, match=r"unknown categories \['Rom'\]"):
        _predict(model, town=np.array([b"Rom"], dtype=object), area=[1.0])
    with pytest.raises(InvalidRequest, match='input "town": expected UTF-8 text'):
        _predict(model, town=np.array([b"\xff"], dtype=object), area=[1.0])
    with pytest.raises(InvalidRequest, match='input "town": expected BYTES'):
        _predict(model, town=[1.0], area=[1.0])


def test_table_of_numbers_is_predicted_without_building_a_table(tmp_path: Path, trainers: Any) -> None:
    trainers("sklearn")["pipeline_from_table"](tmp_path)
    model: Any = load_model("sklearn", tmp_path, {})
    matrix = np.ones((1, 30))
    assert model._adapt({"input-0": matrix}) is matrix


def test_no_rows_are_refused_by_the_estimator_and_answered_by_the_signature(load: Any) -> None:
    from sklearn.linear_model import LinearRegression

    model = load(LinearRegression().fit(np.eye(3), [1, 2, 3]))
    with pytest.raises(InvalidRequest, match="0 sample"):
        _predict(model, x=np.empty((0, 3)))
    empty = model.signature.empty_outputs(("output-0",))["output-0"]
    assert (empty.shape, empty.dtype) == ((0,), np.float64)
