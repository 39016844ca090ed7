# SPDX-License-Identifier: Apache-2.0
"""What a model is given: parameters and inputs, as text; and one output of each kind that JSON writes differently."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        inputs = {tensor.name(): self.written(tensor.as_numpy()) for tensor in request.inputs()}
        about = {
            "id": request.request_id(),
            "correlation_id": str(request.correlation_id()),
            "flags": request.flags(),
            "timeout": request.timeout(),
            "outputs": list(request.requested_output_names()),
            "parameters": json.loads(request.parameters() or "null"),
        }
        texts = {"parameters_seen": json.dumps(about), "inputs_seen": json.dumps(inputs)}
        outputs = [pb_utils.Tensor(name, np.array([[text]], dtype=object)) for name, text in texts.items()]
        outputs.append(pb_utils.Tensor("numbers", np.array([[1, 2]], dtype=np.int64)))
        outputs.append(pb_utils.Tensor("one", np.array([[0.5]], dtype=np.float32)))
        outputs.append(pb_utils.Tensor("yes", np.array([[True]])))
        return pb_utils.InferenceResponse(outputs)

    def written(self, array):
        values = [value.decode() if isinstance(value, bytes) else value for value in array.ravel().tolist()]
        return {"dtype": str(array.dtype), "shape": list(array.shape), "values": values}
