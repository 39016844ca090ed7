# SPDX-License-Identifier: Apache-2.0
"""What the libraries themselves answer from the example models' files: the platform must say the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import numpy.typing as npt
import pandas as pd
import xgboost
from sklearn.datasets import load_breast_cancer, load_iris

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """One model's question and its library's answers.

    Attributes:
        inputs: By input name, in the datatypes of the model's metadata.
        default: What a request that names no output gets.
        proba: Of ``predict_proba``; None where the model has none.
    """

    inputs: dict[str, Array]
    default: Array
    proba: Array | None = None

    @property
    def rows(self) -> list[Any]:
        """The question as v1 instances."""
        if len(self.inputs) == 1:
            rows: list[Any] = next(iter(self.inputs.values())).tolist()
            return rows
        columns = {name: array.tolist() for name, array in self.inputs.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


HOUSES = pd.DataFrame(
    {
        "area_m2": [31.5, 120.0, 200.25],
        "rooms": [1, 4, 7],
        "age_years": [100, 12, 0],
        "district": ["centre", "north", "harbour"],
        "heating": ["gas", "heat pump", "district"],
    }
)


def ask_libraries(models: Path) -> dict[str, Answers]:
    """Answers of all example models, straight from their files."""
    flowers = load_iris().data[[0, 60, 120]]
    single = flowers.astype(np.float32)
    cells = load_breast_cancer(as_frame=True).data.iloc[[0, 19, 200]]
    svc = joblib.load(models / "iris-sklearn" / "model.joblib")
    boosted = xgboost.Booster(model_file=models / "iris-xgboost" / "model.json")
    leaves = lightgbm.Booster(model_file=models / "iris-lightgbm" / "model.txt")
    logistic = joblib.load(models / "breast-cancer" / "model.joblib")
    ridge = joblib.load(models / "housing" / "model.joblib")
    from_xgboost, from_lightgbm = (
        boosted.predict(xgboost.DMatrix(single, feature_names=boosted.feature_names)),
        np.asarray(leaves.predict(flowers)),
    )
    columns = {name: HOUSES[name].to_numpy() for name in HOUSES}
    columns |= {name: HOUSES[name].to_numpy(np.float64) for name in ("area_m2", "rooms", "age_years")}
    columns |= {name: HOUSES[name].to_numpy(object) for name in ("district", "heating")}
    return {
        "iris-sklearn": Answers({"input-0": flowers}, svc.predict(flowers)),
        "iris-xgboost": Answers({"input-0": single}, from_xgboost, from_xgboost),
        "iris-lightgbm": Answers({"input-0": flowers}, from_lightgbm, from_lightgbm),
        "breast-cancer": Answers({"input-0": cells.to_numpy()}, logistic.predict(cells), logistic.predict_proba(cells)),
        "housing": Answers(columns, ridge.predict(HOUSES)),
    }
