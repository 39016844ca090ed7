# SPDX-License-Identifier: Apache-2.0
"""What explains an answer adds up to it; a model that has no exact explanation says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest
from modelyard.model import Model, load_model

EXPLAINED = [
    ("xgboost", "binary_logistic"),
    ("xgboost", "multi_softprob"),
    ("xgboost", "multi_target_regression"),
    ("xgboost", "linear_booster"),
    ("lightgbm", "binary"),
    ("lightgbm", "multiclass_with_names"),
    ("lightgbm", "regression"),
]
UNEXPLAINED = [("xgboost", "vector_leaves"), ("lightgbm", "linear_trees"), ("sklearn", "svc_integer_labels")]


@pytest.fixture
def load(tmp_path: Path, trainers: Any) -> Any:
    def load_trained(framework: str, name: str) -> tuple[Model, Any]:
        pytest.importorskip(framework)
        case = trainers(framework)[name](tmp_path)
        return load_model(framework, tmp_path, case.options), case

    return load_trained


def _ask(model: Model, rows: Any, *outputs: str) -> Any:
    return model.predict(model.signature.bind({"x": rows}), outputs, {})


def _raw_scores(framework: str, folder: Path, rows: Any) -> Any:
    path = next(folder.iterdir())
    if framework == "xgboost":
        import xgboost

        booster = xgboost.Booster(model_file=path)
        return booster.predict(xgboost.DMatrix(rows, feature_names=booster.feature_names), output_margin=True)
    import lightgbm

    return lightgbm.Booster(model_file=path).predict(rows, raw_score=True)


@pytest.mark.parametrize(("framework", "name"), EXPLAINED)
def test_contributions_add_up_to_the_raw_score(load: Any, tmp_path: Path, framework: str, name: str) -> None:
    model, case = load(framework, name)
    assert model.signature.explanations == ("contributions",)
    found = _ask(model, case.inputs["x"], "contributions")
    assert list(found) == ["contributions"]
    scores = _raw_scores(framework, tmp_path, case.inputs["x"])
    np.testing.assert_allclose(found["contributions"].sum(axis=-1), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("framework", "name"), UNEXPLAINED)
def test_a_model_without_exact_contributions_offers_none(load: Any, framework: str, name: str) -> None:
    signature = load(framework, name)[0].signature
    assert signature.explanations == ()
    assert "contributions" not in {spec.name for spec in signature.on_request}


def test_infinity_cannot_be_explained_and_is_the_clients_mistake(load: Any) -> None:
    model, case = load("xgboost", "regression")
    rows = case.inputs["x"].copy()
    rows[1, 0] = np.inf
    assert len(_ask(model, rows, "output-0")["output-0"]) == len(rows)
    with pytest.raises(InvalidRequest, match='input "input-0" contains infinity'):
        _ask(model, rows, "contributions")
