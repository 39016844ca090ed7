# SPDX-License-Identifier: Apache-2.0
"""The models all servers answer with, the rows they are asked, and the answers that are right."""

from __future__ import annotations

import os
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.datasets import load_breast_cancer, load_iris

import modelyard_deployments
from modelyard_deployments.examples import EXAMPLES, make_examples

IRIS = "iris-sklearn"
BREAST_CANCER = "breast-cancer"


@dataclass(frozen=True, slots=True)
class BenchModel:
    """One model, the rows it is asked (`[n, width]`, FP64) and its own answers to them, computed in this process."""

    name: str
    artifact: Path
    rows: np.ndarray
    answers: list[Any]


def load_model(name: str, artifact: Path, rows: np.ndarray) -> BenchModel:
    with warnings.catch_warnings():
        # trained on a table with column names, asked with a matrix: the answers are the same
        warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
        answers = joblib.load(artifact).predict(rows)
    return BenchModel(name, artifact.resolve(), rows, np.asarray(answers).ravel().tolist())


def get_models(directory: Path) -> dict[str, BenchModel]:
    """Load the platform's example models, trained first where they are missing: all servers get these files."""
    rows = {IRIS: load_iris().data[50:51], BREAST_CANCER: load_breast_cancer().data[:256]}
    make_examples(directory, list(rows))
    return {
        name: load_model(name, directory / name / EXAMPLES[name].file, np.ascontiguousarray(data, np.float64))
        for name, data in rows.items()
    }


def train_elsewhere(python: str, directory: Path) -> dict[str, Path]:
    """Train the same models with another environment's scikit-learn; return the files by model.

    Raises:
        subprocess.CalledProcessError: when that environment cannot train them.
    """
    names = (IRIS, BREAST_CANCER)
    source = str(Path(modelyard_deployments.__path__[0]).parent)
    command = [python, "-P", "-m", "modelyard_deployments.examples", str(directory), "--only", *names]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": source})
    return {name: (directory / name / EXAMPLES[name].file).resolve() for name in names}
