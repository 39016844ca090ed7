# SPDX-License-Identifier: Apache-2.0
"""MLflow models."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelyard_deployments._mlflow_files import import_mlflow, quiet
from modelyard_deployments.examples.example import Example

_PACKAGES: Final = ("scikit-learn", "pandas", "numpy")


def train_wine(path: Path) -> None:
    """A scaler and a logistic regression on thirteen named measurements of wine; three cultivars with their names.

    Args:
        path: A folder, for what ``mlflow.sklearn.save_model`` writes, with a signature and an example of the input.
    """
    import_mlflow()
    logging.getLogger("mlflow.sklearn").setLevel(logging.ERROR)  # it advises skops, whose files are new every time
    import mlflow.sklearn
    from mlflow.models import Model, infer_signature
    from sklearn.datasets import load_wine
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_wine(as_frame=True)
    names = data.target_names[data.target]
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, names)
    # The same description at every training: else mlflow invents an id and notes the time.
    description = Model(model_uuid="wine", model_id=None, utc_time_created="2024-01-01 00:00:00.000000")
    with quiet():
        mlflow.sklearn.save_model(
            estimator,
            path,
            mlflow_model=description,
            serialization_format="cloudpickle",
            signature=infer_signature(data.data, estimator.predict(data.data)),
            input_example=data.data[:2],
            pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in _PACKAGES],
        )


EXAMPLES: Final[Mapping[str, Example]] = {"wine-mlflow": Example(".", train_wine)}
