# SPDX-License-Identifier: Apache-2.0
"""``count`` answers to each request; one of them an error where ``fail_at`` says so."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            self.answer(request)

    def answer(self, request):
        sender = request.get_response_sender()
        text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
        if self.number(request, "raise", 0):
            raise ValueError("the model raised")
        fail_at = self.number(request, "fail_at", -1)
        for index in range(self.number(request, "count", 1)):
            time.sleep(self.number(request, "delay_ms", 0) / 1000)
            sender.send(self.failure(index) if index == fail_at else self.piece(text, index))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def number(self, request, name, default):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        return default if tensor is None else int(tensor.as_numpy()[0])

    def failure(self, index):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"failed at {index}"))

    def piece(self, text, index):
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("text_output", np.array([f"{text}-{index}"], dtype=object)),
                pb_utils.Tensor("index", np.array([index], dtype=np.int32)),
            ]
        )
