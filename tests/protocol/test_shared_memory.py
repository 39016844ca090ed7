# SPDX-License-Identifier: Apache-2.0
"""A tensor that is in shared memory, or is to go there, is refused with the reason."""

from __future__ import annotations

import json

import pytest
from tritonclient.grpc import service_pb2 as pb

from modelyard.errors import Unsupported
from modelyard.protocol import grpc, v2

REGION = {"shared_memory_region": "region", "shared_memory_byte_size": 32}
REASON = "shared memory is not supported"


@pytest.mark.parametrize("where", ["input", "output"])
def test_over_http(where: str) -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]}
    output: dict[str, object] = {"name": "x"}
    (tensor if where == "input" else output)["parameters"] = REGION
    body = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    with pytest.raises(Unsupported, match=f'{where} "x": {REASON}'):
        v2.decode_infer(body, None)


@pytest.mark.parametrize("where", ["input", "output"])
def test_over_grpc(where: str) -> None:
    message = pb.ModelInferRequest(
        inputs=[pb.ModelInferRequest.InferInputTensor(name="x", shape=[1], datatype="FP64")],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="x")],
    )
    entry = message.inputs[0] if where == "input" else message.outputs[0]
    entry.parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(Unsupported, match=f'{where} "x": {REASON}'):
        grpc.decode_infer(message)
