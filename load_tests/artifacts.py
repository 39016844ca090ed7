# SPDX-License-Identifier: Apache-2.0
"""The models all servers answer with, the rows they are asked, and the answers that are right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.datasets import load_breast_cancer, load_iris

from load_tests.train import train

IRIS = "iris-sklearn"
BREAST_CANCER = "breast-cancer"
SUFFIXES = (".joblib", ".pkl", ".pickle")


@dataclass(frozen=True, slots=True)
class BenchModel:
    """One model, the rows it is asked (`[n, width]`, FP64) and its own answers to them, computed in this process."""

    name: str
    artifact: Path
    rows: np.ndarray
    answers: list[Any]


def find_artifact(directory: Path) -> Path | None:
    """Return the one model file of `directory`, or None."""
    files = [path for path in sorted(directory.glob("*")) if path.suffix in SUFFIXES]
    return files[0] if len(files) == 1 else None


def load_model(name: str, artifact: Path, rows: np.ndarray) -> BenchModel:
    answers = joblib.load(artifact).predict(rows)
    return BenchModel(name, artifact.resolve(), rows, np.asarray(answers).ravel().tolist())


def get_models(platform_models: Path, own_models: Path) -> dict[str, BenchModel]:
    """Take the platform's artifacts where it has trained them, else train the same kind of model for the benchmark."""
    rows = {IRIS: load_iris().data[50:51], BREAST_CANCER: load_breast_cancer().data[:256]}
    found = {name: find_artifact(platform_models / name) for name in rows}
    if not all(found.values()):
        train(own_models)
    return {
        name: load_model(
            name, found[name] or own_models / name / "model.joblib", np.ascontiguousarray(data, np.float64)
        )
        for name, data in rows.items()
    }
