# SPDX-License-Identifier: Apache-2.0
"""LightGBM: each function trains one model into a folder and says what the library answers."""

from pathlib import Path
from typing import Any

import numpy as np

from modelyard.testing import Case


def _data() -> tuple[Any, Any]:
    from sklearn.datasets import load_iris

    features, target = load_iris(return_X_y=True)
    return features, target


def _train(folder: Path, objective: str, target: Any, **params: Any) -> Any:
    import lightgbm

    features, _ = _data()
    dataset = lightgbm.Dataset(features, target, feature_name=params.pop("feature_name", "auto"))
    settings = {"objective": objective, "num_threads": 1, "verbosity": -1, **params}
    booster = lightgbm.train(settings, dataset, num_boost_round=4)
    booster.save_model(folder / "model.txt")
    return booster.predict(_rows(), num_threads=1)


def _rows() -> Any:
    return _data()[0][::30]


def _contributions(folder: Path, classes: int = 1, rows: Any = None) -> Any:
    import lightgbm

    rows = _rows() if rows is None else rows
    flat = lightgbm.Booster(model_file=next(folder.iterdir())).predict(rows, pred_contrib=True, num_threads=1)
    return flat if classes == 1 else np.stack(np.split(flat, classes, axis=1), axis=1)


def binary(folder: Path) -> Case:
    raw = _train(folder, "binary", _data()[1] == 1)
    both = np.stack([1 - raw, raw], axis=1)
    expected = {"output-0": raw, "predict": (raw > 0.5).astype(int), "predict_proba": both}
    return Case({"x": _rows()}, expected | {"contributions": _contributions(folder)})


def multiclass_with_names(folder: Path) -> Case:
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    raw = _train(folder, "multiclass", _data()[1], num_class=3, feature_name=names)
    expected = {"output-0": raw, "predict": raw.argmax(axis=1), "predict_proba": raw}
    return Case({"x": _rows()}, expected | {"contributions": _contributions(folder, classes=3)})


def one_against_all(folder: Path) -> Case:
    raw = _train(folder, "multiclassova", _data()[1], num_class=3)
    expected = {"output-0": raw, "predict": raw.argmax(axis=1), "contributions": _contributions(folder, classes=3)}
    return Case({"x": _rows()}, expected, is_normalized=False)


def string_classes(folder: Path) -> Case:
    raw = _train(folder, "binary", _data()[1] == 1)
    expected = {"predict": np.where(raw > 0.5, "yes", "no")}
    return Case({"x": _rows()}, expected, options={"classes": ["no", "yes"]})


def regression(folder: Path) -> Case:
    raw = _train(folder, "regression", _data()[0][:, 3])
    return Case({"x": _rows()}, {"output-0": raw, "predict": raw})


def quantile_forest(folder: Path) -> Case:
    params = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}
    raw = _train(folder, "quantile", _data()[0][:, 3], **params)
    return Case({"x": _rows()}, {"output-0": raw, "contributions": _contributions(folder)})


def linear_trees(folder: Path) -> Case:
    raw = _train(folder, "regression", _data()[0][:, 3], linear_tree=True)
    return Case({"x": _rows()}, {"output-0": raw})


def saved_by_sklearn_interface(folder: Path) -> Case:
    import lightgbm

    features, target = _data()
    model = lightgbm.LGBMClassifier(n_estimators=4, n_jobs=1, verbose=-1).fit(features, target)
    model.booster_.save_model(folder / "model.bst")
    chances = model.booster_.predict(_rows())
    return Case({"x": _rows()}, {"output-0": chances, "predict": chances.argmax(axis=1), "predict_proba": chances})


def ranker(folder: Path) -> Case:
    import lightgbm

    features, target = _data()
    model = lightgbm.LGBMRanker(n_estimators=3, n_jobs=1, verbose=-1).fit(features, target, group=[50, 50, 50])
    model.booster_.save_model(folder / "model.txt")
    return Case({"x": _rows()}, {"output-0": model.booster_.predict(_rows())})


def missing_values(folder: Path) -> Case:
    import lightgbm

    _train(folder, "regression", _data()[0][:, 3])
    rows = _rows()
    rows[1, 2] = np.nan
    raw = lightgbm.Booster(model_file=folder / "model.txt").predict(rows)
    return Case({"x": rows}, {"output-0": raw, "contributions": _contributions(folder, rows=rows)})
