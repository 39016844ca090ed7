# SPDX-License-Identifier: Apache-2.0
"""Says which packages it runs with, and gives arrays back as they came."""

import importlib
import sys

import numpy as np

import modelyard
from modelyard import Signature, TensorSpec


class Versions(modelyard.Model):
    """`modules` names what it imports; their versions are its output `versions`."""

    signature = Signature(
        inputs=(TensorSpec("rows", "FP32", (-1, -1)), TensorSpec("words", "BYTES", (-1,))),
        outputs=(
            TensorSpec("rows", "FP32", (-1, -1)),
            TensorSpec("words", "BYTES", (-1,)),
            TensorSpec("versions", "BYTES", (-1,)),
        ),
        batch_axis=None,
    )

    def load(self, path, settings):
        modules = [importlib.import_module(name) for name in settings["modules"]]
        self.versions = [module.__version__ for module in modules] + [sys.prefix]

    def predict(self, inputs, outputs, parameters):
        return {**inputs, "versions": np.array(self.versions, dtype=object)}
