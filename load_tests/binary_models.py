# SPDX-License-Identifier: Apache-2.0
"""Two models that cost next to nothing, the same for every server: what is measured is the way of their tensors.

This file is the `model.py` of Triton's python backend and of `framework: custom`, and `binary_kserve` imports it.
"""

SHAPES = {"table": ([256, 30], "FP64"), "image": ([1, 3, 224, 224], "FP32")}
INPUT, OUTPUT = "x", "y"


def answer(tensor):
    """The sum of each row of a table, or the mean of each channel of an image."""
    return tensor.sum(axis=1) if tensor.ndim == 2 else tensor.mean(axis=(2, 3))


try:
    import triton_python_backend_utils as pb_utils
except ImportError:
    pb_utils = None


class TritonPythonModel:
    """For Triton."""

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(OUTPUT, answer(pb_utils.get_input_tensor_by_name(request, INPUT).as_numpy()))]
            )
            for request in requests
        ]


try:
    import modelyard
except ImportError:
    modelyard = None

if modelyard is not None:

    class _Ours(modelyard.Model):
        def predict(self, inputs, outputs, parameters):
            return {OUTPUT: answer(inputs[INPUT])}

    class Table(_Ours):
        """For Modelyard: 30 numbers a row."""

        signature = modelyard.Signature(
            inputs=(modelyard.TensorSpec(INPUT, "FP64", (-1, 30)),),
            outputs=(modelyard.TensorSpec(OUTPUT, "FP64", (-1,)),),
        )

    class Image(_Ours):
        """For Modelyard: an image with three channels a row."""

        signature = modelyard.Signature(
            inputs=(modelyard.TensorSpec(INPUT, "FP32", (-1, 3, 224, 224)),),
            outputs=(modelyard.TensorSpec(OUTPUT, "FP32", (-1, 3)),),
        )
