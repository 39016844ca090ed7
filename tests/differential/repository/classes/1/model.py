# SPDX-License-Identifier: Apache-2.0
"""What was given as probabilities, in each form that can be classified, and in one that can not."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
        outputs = {
            "PROBS": given,
            "PARTLY": given,
            "BARE": given,
            "WHOLE": given.astype(np.int32),
            "DOUBLE": given.astype(np.float64),
            "GRID": given[:, None, :],
            "WORDS": given.astype(str).astype(object),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
