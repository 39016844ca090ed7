# SPDX-License-Identifier: Apache-2.0
"""The user's own classes, written to a folder as users would."""

from pathlib import Path

import numpy as np

from modelyard.testing import Case

_SCALER = """
import json

import numpy as np

import modelyard
from {helper} import scale


class Scaler(modelyard.Model):
    signature = modelyard.Signature(
        inputs=(modelyard.TensorSpec("x", "FP64", (-1, 2)),),
        outputs=(modelyard.TensorSpec("scaled", "FP64", (-1, 2)),),
        on_request=(modelyard.TensorSpec("factor", "FP64", (-1,)),),
    )

    def load(self, path, settings):
        self.factor = json.loads((path / "factor.json").read_text()) * settings.get("times", 1)

    def predict(self, inputs, outputs, parameters):
        rows = len(inputs["x"])
        return {{"scaled": scale(inputs["x"], self.factor), "factor": np.full(rows, float(self.factor))}}
"""
_HELPER = "def scale(x, factor):\n    return x * factor\n"


def scaler(folder: Path) -> Case:
    """A module that imports another one of its folder, with a file beside it and settings."""
    (folder / "scaler_model.py").write_text(_SCALER.format(helper="scaler_helper"))
    (folder / "scaler_helper.py").write_text(_HELPER)
    (folder / "factor.json").write_text("3")
    rows = np.arange(8.0).reshape(4, 2)
    options = {"entrypoint": "scaler_model:Scaler", "settings": {"times": 2}}
    return Case({"x": rows}, {"scaled": rows * 6, "factor": np.full(4, 6.0)}, options)


def packaged(folder: Path) -> Case:
    """The same in a package."""
    package = folder / "my_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "churn.py").write_text(_SCALER.format(helper="my_models.helper"))
    (package / "helper.py").write_text(_HELPER)
    (folder / "factor.json").write_text("2")
    rows = np.arange(6.0).reshape(3, 2)
    return Case({"x": rows}, {"scaled": rows * 2}, {"entrypoint": "my_models.churn:Scaler"})
