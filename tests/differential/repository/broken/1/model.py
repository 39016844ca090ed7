# SPDX-License-Identifier: Apache-2.0
"""Fails in a way of its own for each of some values; returns the others."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        value = int(pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()[0])
        if value == 1:
            raise ValueError("the value is 1")
        if value == 2:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("the value is 2"))
        if value == 3:
            invalid = pb_utils.TritonError("the value is 3", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=invalid)
        if value == 4:
            return pb_utils.InferenceResponse([pb_utils.Tensor("OTHER", np.array([value], dtype=np.int32))])
        if value == 5:
            return pb_utils.InferenceResponse([])
        if value == 6:
            return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([0.5, 1.5], dtype=np.float64))])
        if value == 7:
            missing = pb_utils.TritonError("the value is 7", pb_utils.TritonError.NOT_FOUND)
            return pb_utils.InferenceResponse(error=missing)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array([value], dtype=np.int32))])
