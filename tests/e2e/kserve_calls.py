# SPDX-License-Identifier: Apache-2.0
"""Run by the Python of the kserve environment: questions on standard input, the answers of its clients on output."""

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def to_request(model: str, inputs: dict[str, Any]) -> InferRequest:
    tensors = []
    for name, (datatype, values) in inputs.items():
        array = np.array(values, object if datatype == "BYTES" else {"FP32": np.float32, "FP64": np.float64}[datatype])
        tensors.append(InferInput(name, list(array.shape), datatype))
        tensors[-1].set_data_from_numpy(array, binary_data=True)
    return InferRequest(model, tensors)


def from_response(response: Any) -> Any:
    return response.outputs[0].as_numpy().tolist()


async def ask(question: dict[str, Any]) -> dict[str, Any]:
    """Every client's answer for one model, by client."""
    url, model = question["url"], question["model"]
    v1, v2 = InferenceRESTClient(RESTConfig(protocol="v1")), InferenceRESTClient(RESTConfig(protocol="v2"))
    async with InferenceGRPCClient(question["grpc"]) as grpc:
        request = to_request(model, question["inputs"])
        ready = [
            await v2.is_server_live(url),
            await v2.is_server_ready(url),
            await v1.is_model_ready(url, model),
            await v2.is_model_ready(url, model),
            await grpc.is_server_live(),
            await grpc.is_server_ready(),
            await grpc.is_model_ready(model),
        ]
        return {
            "ready": ready,
            "v1": (await v1.infer(url, {"instances": question["rows"]}, model))["predictions"],
            "v2": from_response(await v2.infer(url, request, model)),
            "grpc": from_response(await grpc.infer(to_request(model, question["inputs"]))),
        }


async def main() -> None:
    found = {question["model"]: await ask(question) for question in json.load(sys.stdin)}
    json.dump(found, sys.stdout)


asyncio.run(main())
