# SPDX-License-Identifier: Apache-2.0
"""Twice the row, and its sum."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        rows = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor("OUTPUT", rows * 2),
                pb_utils.Tensor("SUM", rows.sum(axis=1, keepdims=True)),
            ]
        )
