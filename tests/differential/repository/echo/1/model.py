# SPDX-License-Identifier: Apache-2.0
"""Each tensor that was given, as it was given."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        return pb_utils.InferenceResponse(
            output_tensors=[
                pb_utils.Tensor(tensor.name().replace("IN_", "OUT_"), tensor.as_numpy()) for tensor in request.inputs()
            ]
        )
