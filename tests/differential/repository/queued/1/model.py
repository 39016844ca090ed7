# SPDX-License-Identifier: Apache-2.0
"""Sleeps as long as it is told; the others wait, those of priority 1 before those of 2."""

import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        delay_ms = pb_utils.get_input_tensor_by_name(request, "delay_ms").as_numpy()
        time.sleep(delay_ms[0, 0] / 1000)
        return pb_utils.InferenceResponse([pb_utils.Tensor("delay_ms_was", delay_ms)])
