# SPDX-License-Identifier: Apache-2.0
"""PMML documents."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelyard_deployments.examples.example import Example

_COLUMNS: Final = ["sepal_length", "sepal_width", "petal_length", "petal_width"]


def train_iris(path: Path) -> None:
    """A decision tree on the four measurements of iris flowers; three classes with their names."""
    from sklearn.datasets import load_iris
    from sklearn.pipeline import make_pipeline
    from sklearn.tree import DecisionTreeClassifier

    data = load_iris()
    tree = make_pipeline(DecisionTreeClassifier(max_depth=3, random_state=7))
    tree.fit(data.data, data.target_names[data.target])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nyoka's imports, and the file that it does not close
        from nyoka import skl_to_pmml

        skl_to_pmml(tree, _COLUMNS, "species", str(path))
    path.write_text(re.sub(r"<Timestamp>.*?</Timestamp>", "", path.read_text()))  # the same file at every training


EXAMPLES: Final[Mapping[str, Example]] = {"iris-pmml": Example("model.pmml", train_iris)}
