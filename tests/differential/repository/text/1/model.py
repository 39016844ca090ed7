# SPDX-License-Identifier: Apache-2.0
"""The text in upper case, with a suffix where one is given."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode().upper()
        suffix = pb_utils.get_input_tensor_by_name(request, "suffix")
        if suffix is not None:
            text += suffix.as_numpy()[0].decode()
        return pb_utils.InferenceResponse([pb_utils.Tensor("text_output", np.array([text], dtype=object))])
