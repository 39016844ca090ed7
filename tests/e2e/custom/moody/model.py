# SPDX-License-Identifier: Apache-2.0
"""Answers what its settings say, fails now and then, may take long to load: a revision for each mood."""

import threading
import time

import numpy as np

import modelyard
from modelyard import Signature, TensorSpec


class Moody(modelyard.Model):
    """`answer`: what it says. `fails_every`: each so-many-th request fails. `loads_s`: seconds to load.

    `depth`: the load that it reports of itself.
    """

    signature = Signature((TensorSpec("x", "FP64", (-1,)),), (TensorSpec("y", "FP64", (-1,)),))

    def load(self, path, settings):
        time.sleep(settings.get("loads_s", 0))
        self.answer = settings.get("answer", 0.0)
        self.fails_every = settings.get("fails_every", 0)
        self.depth = settings.get("depth", 0.0)
        self.asked = 0
        self.lock = threading.Lock()

    def report_load(self):
        return {"depth": self.depth}

    def predict(self, inputs, outputs, parameters):
        with self.lock:
            self.asked += 1
            fails = self.fails_every and self.asked % self.fails_every == 0
        if fails:
            raise ValueError("not in the mood")
        return {"y": np.full(len(inputs["x"]), self.answer)}
