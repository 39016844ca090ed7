# SPDX-License-Identifier: Apache-2.0
"""A Triton model repository: three models of the python backend and an ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelyard_deployments.examples.example import Example

_SCALE_CONFIG: Final = """
backend: "python"
max_batch_size: 64
input [{ name: "measurements" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "scaled" data_type: TYPE_FP32 dims: [4] }]
dynamic_batching {}
instance_group [{ kind: KIND_CPU }]
"""
_NEAREST_CONFIG: Final = """
backend: "python"
max_batch_size: 64
input [{ name: "scaled" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "closeness" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }]
dynamic_batching {}
instance_group [{ kind: KIND_CPU }]
"""
_IRIS_CONFIG: Final = """
platform: "ensemble"
max_batch_size: 64
input [{ name: "measurements" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "closeness" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }]
ensemble_scheduling {
  step [
    {
      model_name: "triton-scale" model_version: -1
      input_map { key: "measurements" value: "measurements" }
      output_map { key: "scaled" value: "scaled" }
    },
    {
      model_name: "triton-nearest" model_version: -1
      input_map { key: "scaled" value: "scaled" }
      output_map { key: "closeness" value: "closeness" }
    }
  ]
}
"""
_SPELL_CONFIG: Final = """
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [{ name: "text_input" data_type: TYPE_STRING dims: [1] }]
output [{ name: "text_output" data_type: TYPE_STRING dims: [1] }]
instance_group [{ kind: KIND_CPU }]
"""
_SCALE: Final = '''"""Measurements as distances from their mean, in standard deviations."""

import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.mean, self.deviation = np.load(os.path.join(folder, "scale.npy"))

    def execute(self, requests):
        return [self.answer(pb_utils.get_input_tensor_by_name(one, "measurements").as_numpy()) for one in requests]

    def answer(self, rows):
        return pb_utils.InferenceResponse([pb_utils.Tensor("scaled", (rows - self.mean) / self.deviation)])
'''
_NEAREST: Final = '''"""How near each row is to the centre of each class."""

import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.centres = np.load(os.path.join(folder, "centres.npy"))

    def execute(self, requests):
        return [self.answer(pb_utils.get_input_tensor_by_name(one, "scaled").as_numpy()) for one in requests]

    def answer(self, rows):
        distances = np.linalg.norm(rows[:, None] - self.centres, axis=2)
        return pb_utils.InferenceResponse([pb_utils.Tensor("closeness", np.exp(-distances))])
'''
_SPELL: Final = '''"""A text, one letter in each answer."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
            for letter in text:
                answer = pb_utils.Tensor("text_output", np.array([letter], dtype=object))
                sender.send(pb_utils.InferenceResponse([answer]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''
_MODELS: Final = {
    "triton-scale": (_SCALE_CONFIG, _SCALE),
    "triton-nearest": (_NEAREST_CONFIG, _NEAREST),
    "triton-iris": (_IRIS_CONFIG, ""),
    "triton-spell": (_SPELL_CONFIG, _SPELL),
}


def write_repository(path: Path) -> None:
    """Flowers by the nearest centre, scaling and comparing apart and as an ensemble; and a model that streams."""
    import numpy as np
    from sklearn.datasets import load_iris

    for name, (config, code) in _MODELS.items():
        version = path / name / "1"
        version.mkdir(parents=True)
        (path / name / "config.pbtxt").write_text(config.lstrip())
        if code:
            (version / "model.py").write_text(code)
    data = load_iris()
    scale = np.array([data.data.mean(axis=0), data.data.std(axis=0)], np.float32)
    scaled = (data.data - scale[0]) / scale[1]
    centres = np.array([scaled[data.target == one].mean(axis=0) for one in range(3)], np.float32)
    np.save(path / "triton-scale" / "1" / "scale.npy", scale)
    np.save(path / "triton-nearest" / "1" / "centres.npy", centres)
    for name in ("triton-nearest", "triton-iris"):
        (path / name / "labels.txt").write_text("\n".join(data.target_names) + "\n")


EXAMPLES: Final[Mapping[str, Example]] = {"triton-demo": Example(".", write_repository)}
