# SPDX-License-Identifier: Apache-2.0
"""Models made for one purpose, written as files that the scikit-learn framework loads."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import joblib
import numpy as np
from answers import Array
from ray import cloudpickle
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyRegressor


class Sleeper(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no type information
    """Answers each row's number after sleeping the largest of them in seconds; fails where one is negative."""

    n_features_in_ = 1

    def predict(self, rows: Array) -> Array:
        if (rows < 0).any():
            raise RuntimeError("asked to fail, in /a/secret/path")
        time.sleep(float(rows.max()))
        return rows[:, 0]


class Flagged(Sleeper):
    """Cannot be loaded while a file is not there that is none of its artifact's."""

    def __init__(self, flag: str) -> None:
        self.flag = flag

    def __setstate__(self, state: dict[str, str]) -> None:
        if not Path(state["flag"]).exists():
            raise RuntimeError("it is not time yet")
        super().__setstate__(state)


def write_sleeper(folder: Path) -> None:
    _write(Sleeper(), folder)


def write_flagged(folder: Path, flag: Path) -> None:
    _write(Flagged(str(flag)), folder)


def _write(model: Sleeper, folder: Path) -> None:
    """The class travels in the file: the platform need not have this module."""
    folder.mkdir(parents=True)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        (folder / "model.pkl").write_bytes(cloudpickle.dumps(model))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def write_constant(folder: Path, answer: float) -> None:
    """A model of one feature that always answers the same."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder.with_suffix(".new")
    joblib.dump(DummyRegressor(strategy="constant", constant=answer).fit(np.zeros((1, 1)), [answer]), draft)
    draft.replace(folder / "model.joblib")


def write_broken(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.joblib").write_bytes(b"this is no model")
