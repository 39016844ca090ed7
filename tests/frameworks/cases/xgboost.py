# SPDX-License-Identifier: Apache-2.0
"""XGBoost: each function trains one model into a folder and says what the library answers."""

from pathlib import Path
from typing import Any

import numpy as np

from modelyard.testing import Case


def _data() -> tuple[Any, Any]:
    from sklearn.datasets import load_iris

    features, target = load_iris(return_X_y=True)
    return features.astype(np.float32), target


def _train(objective: str, target: Any, **params: Any) -> Any:
    import xgboost

    features, _ = _data()
    names = params.pop("feature_names", None)
    matrix = xgboost.DMatrix(features, label=target, feature_names=names)
    settings = {"objective": objective, "max_depth": 2, "nthread": 1, **params}
    return xgboost.train(settings, matrix, num_boost_round=4)


def _rows() -> Any:
    return _data()[0][::30]


def _raw(booster: Any, margin: bool = False) -> Any:
    import xgboost

    matrix = xgboost.DMatrix(_rows(), feature_names=booster.feature_names)
    return booster.predict(matrix, output_margin=margin)


def _contributions(booster: Any, rows: Any = None) -> Any:
    import xgboost

    matrix = xgboost.DMatrix(_rows() if rows is None else rows, feature_names=booster.feature_names)
    return booster.predict(matrix, pred_contribs=True)


def _columns(binary: Any) -> Any:
    return np.stack([1 - binary, binary], axis=1)


def binary_logistic(folder: Path) -> Case:
    booster = _train("binary:logistic", _data()[1] == 1)
    booster.save_model(folder / "model.json")
    raw = _raw(booster)
    expected = {"output-0": raw, "predict": (raw > 0.5).astype(int), "predict_proba": _columns(raw)}
    return Case({"x": _rows()}, expected | {"contributions": _contributions(booster)})


def binary_logitraw(folder: Path) -> Case:
    booster = _train("binary:logitraw", _data()[1] == 1, eta=0.02)
    booster.save_model(folder / "model.ubj")
    raw = _raw(booster)
    assert ((raw > 0) & (raw < 0.5)).any()  # a margin's middle is 0, not 0.5
    chance = 1 / (1 + np.exp(-raw))
    return Case({"x": _rows()}, {"output-0": raw, "predict": (raw > 0).astype(int), "predict_proba": _columns(chance)})


def binary_hinge(folder: Path) -> Case:
    booster = _train("binary:hinge", _data()[1] == 1)
    booster.save_model(folder / "model.ubj")
    raw = _raw(booster)
    return Case({"x": _rows()}, {"output-0": raw, "predict": raw.astype(int)})


def multi_softprob(folder: Path) -> Case:
    booster = _train("multi:softprob", _data()[1], num_class=3, feature_names=["a", "b", "c", "d"])
    booster.save_model(folder / "model.json")
    raw = _raw(booster)
    expected = {"output-0": raw, "predict": raw.argmax(axis=1), "predict_proba": raw}
    return Case({"x": _rows()}, expected | {"contributions": _contributions(booster)})


def multi_softmax(folder: Path) -> Case:
    booster = _train("multi:softmax", _data()[1], num_class=3)
    booster.save_model(folder / "model.ubj")
    raw = _raw(booster)
    powers = np.exp(_raw(booster, margin=True))
    chances = powers / powers.sum(axis=1, keepdims=True)
    return Case({"x": _rows()}, {"output-0": raw, "predict": raw.astype(int), "predict_proba": chances})


def saved_by_sklearn_interface(folder: Path) -> Case:
    import xgboost

    features, target = _data()
    model = xgboost.XGBClassifier(n_estimators=40, learning_rate=1.0, early_stopping_rounds=1, n_jobs=1)
    model.fit(features[::2], target[::2], eval_set=[(features[1::2], target[1::2])], verbose=False)
    assert model.best_iteration < model.get_booster().num_boosted_rounds() - 1
    model.save_model(folder / "model.json")
    chances = model.predict_proba(_rows())
    expected = {"output-0": chances, "predict": model.predict(_rows()), "predict_proba": chances}
    best = model.get_booster()[: model.best_iteration + 1]
    return Case({"x": _rows()}, expected | {"contributions": _contributions(best)})


def saved_by_training_interface(folder: Path) -> Case:
    import xgboost

    features, target = _data()
    train, test = (xgboost.DMatrix(features[part::2], label=target[part::2]) for part in (0, 1))
    params = {"objective": "multi:softprob", "num_class": 3, "eta": 1.0, "nthread": 1}
    booster = xgboost.train(params, train, 40, evals=[(test, "t")], early_stopping_rounds=1, verbose_eval=False)
    assert booster.best_iteration < booster.num_boosted_rounds() - 1
    booster.save_model(folder / "model.ubj")
    return Case({"x": _rows()}, {"output-0": _raw(booster)})


def string_classes(folder: Path) -> Case:
    booster = _train("multi:softprob", _data()[1], num_class=3)
    booster.save_model(folder / "model.json")
    labels = np.array(["setosa", "versicolor", "virginica"])
    return Case({"x": _rows()}, {"predict": labels[_raw(booster).argmax(axis=1)]}, options={"classes": labels.tolist()})


def regression(folder: Path) -> Case:
    booster = _train("reg:squarederror", _data()[0][:, 3])
    booster.save_model(folder / "model.ubj")
    return Case({"x": _rows()}, {"output-0": _raw(booster), "predict": _raw(booster)})


def multi_target_regression(folder: Path) -> Case:
    booster = _train("reg:squarederror", _data()[0][:, 2:])
    booster.save_model(folder / "model.ubj")
    expected = {"output-0": _raw(booster), "predict": _raw(booster)}
    return Case({"x": _rows()}, expected | {"contributions": _contributions(booster)})


def vector_leaves(folder: Path) -> Case:
    booster = _train("reg:squarederror", _data()[0][:, 2:], multi_strategy="multi_output_tree", tree_method="hist")
    booster.save_model(folder / "model.ubj")
    return Case({"x": _rows()}, {"output-0": _raw(booster)})


def linear_booster(folder: Path) -> Case:
    booster = _train("reg:squarederror", _data()[0][:, 3], booster="gblinear", updater="coord_descent")
    booster.save_model(folder / "model.json")
    return Case({"x": _rows()}, {"output-0": _raw(booster), "contributions": _contributions(booster)})


def dart_booster(folder: Path) -> Case:
    booster = _train("reg:squarederror", _data()[0][:, 3], booster="dart", rate_drop=0.2)
    booster.save_model(folder / "model.json")
    return Case({"x": _rows()}, {"output-0": _raw(booster), "contributions": _contributions(booster)})


def json_named_bst(folder: Path) -> Case:
    booster = _train("reg:squarederror", _data()[0][:, 3])
    booster.save_model(folder / "model.json")
    (folder / "model.json").rename(folder / "model.bst")
    return Case({"x": _rows()}, {"output-0": _raw(booster)})


def ranker(folder: Path) -> Case:
    import xgboost

    features, target = _data()
    model = xgboost.XGBRanker(n_estimators=3, n_jobs=1).fit(features, target, qid=np.repeat(range(15), 10))
    model.save_model(folder / "model.ubj")
    return Case({"x": _rows()}, {"output-0": model.predict(_rows())})


def missing_values(folder: Path) -> Case:
    booster = _train("reg:squarederror", _data()[0][:, 3])
    booster.save_model(folder / "model.ubj")
    import xgboost

    rows = _rows()
    rows[1, 2] = np.nan
    expected = {"output-0": booster.predict(xgboost.DMatrix(rows)), "contributions": _contributions(booster, rows)}
    return Case({"x": rows}, expected)


def category_numbers(folder: Path) -> Case:
    import pandas as pd
    import xgboost

    table = pd.DataFrame({"kind": pd.Categorical(["a", "b", "c", "b"] * 10), "size": np.arange(40.0)})
    matrix = xgboost.DMatrix(table, label=table["kind"].cat.codes, enable_categorical=True)
    booster = xgboost.train({"max_depth": 3, "nthread": 1}, matrix, num_boost_round=5)
    booster.save_model(folder / "model.ubj")
    numbers = table.assign(kind=table["kind"].cat.codes).to_numpy(dtype=np.float32)
    explained = booster.predict(matrix, pred_contribs=True)
    return Case({"x": numbers}, {"output-0": booster.predict(matrix), "contributions": explained})
