# SPDX-License-Identifier: Apache-2.0
"""Classic models on tables: scikit-learn, XGBoost, LightGBM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelyard_deployments.examples.example import Example

_IRIS_COLUMNS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]


def train_iris_sklearn(path: Path) -> None:
    """A support vector classifier on the four measurements of iris flowers; three classes."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.svm import SVC

    features, target = load_iris(return_X_y=True)
    joblib.dump(SVC(gamma="scale").fit(features, target), path)


def train_iris_xgboost(path: Path) -> None:
    """A boosted classifier on iris, saved as JSON; ``multi:softprob``."""
    import xgboost
    from sklearn.datasets import load_iris

    features, target = load_iris(return_X_y=True)
    params = {"objective": "multi:softprob", "num_class": 3, "max_depth": 3, "nthread": 1, "seed": 7}
    table = xgboost.DMatrix(features, label=target, feature_names=_IRIS_COLUMNS)
    xgboost.train(params, table, num_boost_round=20).save_model(path)


def train_iris_lightgbm(path: Path) -> None:
    """A boosted classifier on iris, saved as text; ``multiclass``."""
    import lightgbm
    from sklearn.datasets import load_iris

    features, target = load_iris(return_X_y=True)
    params = {"objective": "multiclass", "num_class": 3, "num_threads": 1, "verbosity": -1, "seed": 7}
    table = lightgbm.Dataset(features, target, feature_name=_IRIS_COLUMNS)
    lightgbm.train(params, table, num_boost_round=20).save_model(path)


def train_breast_cancer(path: Path) -> None:
    """A scaler and a logistic regression, trained on a table with 30 named columns; two classes."""
    import joblib
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_breast_cancer(as_frame=True)
    joblib.dump(make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, data.target), path)


def train_housing(path: Path) -> None:
    """A price model on a generated table with columns of numbers and of text."""
    import joblib
    import numpy as np
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(7)
    rows = 2000
    table = pd.DataFrame(
        {
            "area_m2": rng.uniform(25, 240, rows).round(1),
            "rooms": rng.integers(1, 8, rows),
            "age_years": rng.integers(0, 120, rows),
            "district": rng.choice(["centre", "harbour", "north", "south"], rows),
            "heating": rng.choice(["district", "gas", "heat pump"], rows),
        }
    )
    price = (
        1500 * table["area_m2"]
        + 6000 * table["rooms"]
        - 400 * table["age_years"]
        + table["district"].map({"centre": 90_000, "harbour": 60_000, "north": 10_000, "south": 25_000}).astype(float)
        + table["heating"].map({"district": 8_000, "gas": 0, "heat pump": 15_000}).astype(float)
        + rng.normal(0, 10_000, rows)
    )
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["area_m2", "rooms", "age_years"]),
            ("texts", OneHotEncoder(), ["district", "heating"]),
        ]
    )
    joblib.dump(make_pipeline(columns, Ridge()).fit(table, price), path)


EXAMPLES: Final[Mapping[str, Example]] = {
    "iris-sklearn": Example("model.joblib", train_iris_sklearn),
    "iris-xgboost": Example("model.json", train_iris_xgboost),
    "iris-lightgbm": Example("model.txt", train_iris_lightgbm),
    "breast-cancer": Example("model.joblib", train_breast_cancer),
    "housing": Example("model.joblib", train_housing),
}
