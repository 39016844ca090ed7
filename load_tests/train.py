# SPDX-License-Identifier: Apache-2.0
"""Train the two benchmark models: a script of its own, so that it also runs in a peer's environment.

Run with `python -P load_tests/train.py OUTPUT_DIRECTORY`. Needs scikit-learn only. The parameters are fixed and the
data sets ship with scikit-learn, so two environments get models that answer alike.
"""

import sys
from pathlib import Path

import joblib
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC


def train(directory: Path) -> None:
    """Write `iris-sklearn/model.joblib` and `breast-cancer/model.joblib` below `directory`."""
    iris, cancer = load_iris(), load_breast_cancer()
    models = {
        "iris-sklearn": SVC(gamma="scale").fit(iris.data, iris.target),
        "breast-cancer": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(
            cancer.data, cancer.target
        ),
    }
    for name, model in models.items():
        (directory / name).mkdir(parents=True, exist_ok=True)
        joblib.dump(model, directory / name / "model.joblib")


if __name__ == "__main__":
    train(Path(sys.argv[1]))
