# SPDX-License-Identifier: Apache-2.0
"""Model repositories with one model each, on the real Triton, whose models are Python."""

from pathlib import Path

import numpy as np
import pytest

from modelyard.testing import Case
from modelyard_deployments._triton_install import default_folder

_HEAD = "import numpy as np\nimport triton_python_backend_utils as pb_utils\n\n\n"
_SCORES = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(pb_utils.get_input_tensor_by_name(one, "x").as_numpy()) for one in requests]

    def answer(self, rows):
        labels = np.array([f"class-{row.argmax()}" for row in rows], dtype=object)
        return pb_utils.InferenceResponse([pb_utils.Tensor("doubled", rows * 2), pb_utils.Tensor("label", labels)])
"""
_ECHO = """
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([self.answer(one) for one in request.inputs()]) for request in requests]

    def answer(self, tensor):
        return pb_utils.Tensor(tensor.name().replace("in", "out"), tensor.as_numpy())
"""
_OPTIONAL = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(one) for one in requests]

    def answer(self, request):
        by = pb_utils.get_input_tensor_by_name(request, "by")
        rows = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("y", rows * (3 if by is None else by.as_numpy()))])
"""
_TYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "u2",
    "UINT32": "u4",
    "UINT64": "u8",
    "INT8": "i1",
    "INT16": "i2",
    "INT32": "i4",
    "INT64": "i8",
    "FP16": "f2",
    "FP32": "f4",
    "FP64": "f8",
    "STRING": "O",
}


def _write(folder: Path, name: str, config: str, code: str) -> dict[str, str]:
    """Options with which this repository is loaded."""
    if not (server := default_folder()).is_installed:
        pytest.skip("the real Triton is not installed: python -m modelyard_deployments.triton install")
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(f'backend: "python"\ninstance_group [{{ kind: KIND_CPU }}]\n{config}')
    (folder / name / "1" / "model.py").write_text(_HEAD + code)
    return {"server": str(server.path)}


def scores(folder: Path) -> Case:
    """Rows, at most two in a request; numbers and texts."""
    config = """max_batch_size: 2
input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]
output [
  { name: "doubled" data_type: TYPE_FP32 dims: [4] },
  { name: "label" data_type: TYPE_STRING dims: [1] reshape { shape: [] } }
]
dynamic_batching {}"""
    options = _write(folder, "scores", config, _SCORES)
    rows = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    labels = np.array([[f"class-{row.argmax()}"] for row in rows], dtype=object)
    return Case({"x": rows}, {"doubled": rows * 2, "label": labels}, options)


def datatypes(folder: Path) -> Case:
    """One input and output of each datatype, without a batch axis."""
    inputs = ", ".join(f'{{ name: "in-{one}" data_type: TYPE_{one} dims: [-1, 2] }}' for one in _TYPES)
    options = _write(folder, "echo", f"input [{inputs}]\noutput [{inputs.replace('in-', 'out-')}]", _ECHO)
    values = np.array([[0, 1], [1, 0], [2, 100]])
    arrays = {one: values.astype(dtype) for one, dtype in _TYPES.items()}
    arrays["STRING"] = np.array([[b"a", b""], ["ä€".encode(), b"\xff\x00"], [b"long " * 1000, b"z"]], dtype=object)
    inputs_by_name = {f"in-{one}": array for one, array in arrays.items()}
    return Case(inputs_by_name, {f"out-{one}": array for one, array in arrays.items()}, options)


def optional(folder: Path) -> Case:
    """An input that may be left out, and is."""
    config = """max_batch_size: 64
input [{ name: "x" data_type: TYPE_INT64 dims: [-1] }, { name: "by" data_type: TYPE_INT64 dims: [1] optional: true }]
output [{ name: "y" data_type: TYPE_INT64 dims: [-1] }]"""
    options = _write(folder, "times", config, _OPTIONAL)
    rows = np.arange(12).reshape(4, 3)
    return Case({"x": rows}, {"y": rows * 3}, options)
