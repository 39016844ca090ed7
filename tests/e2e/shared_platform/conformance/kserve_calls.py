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


async def error_of(call: Any) -> str:
    """What a call raises, in words."""
    try:
        return f"no error but {await call}"
    except Exception as exc:  # noqa: BLE001  # it is the answer
        return str(exc)


async def ask_rest(question: dict[str, Any]) -> dict[str, Any]:
    """What the REST client can beside plain inference."""
    url, rows = question["url"], {"instances": question["rows"]}
    headers: dict[str, str] = {}
    sent = {"x-request-id": "mine-7"}
    v1, v2 = InferenceRESTClient(RESTConfig(protocol="v1")), InferenceRESTClient(RESTConfig(protocol="v2"))
    name, (datatype, values) = next(iter(question["inputs"].items()))
    tensor = {"name": name, "shape": np.shape(values), "datatype": datatype, "data": np.ravel(values).tolist()}
    model = question["model"]
    found = {
        "explanations": (await v1.explain(url, model, rows, sent, timeout=20))["explanations"],
        "v1 live": await v1.is_server_live(url),
        "headers": (await v1.infer(url, rows, model, sent, headers), headers["x-request-id"])[1],
        "json": from_response(await v2.infer(url, {"inputs": [tensor]}, model, timeout=20)),
        "graph": (await v1.infer(f"{url}/v1/models/{model}:predict", rows, is_graph_endpoint=True))["predictions"],
        "v2 ready of nobody": await v2.is_model_ready(url, "nobody"),
        "v1 ready of nobody": await error_of(v1.is_model_ready(url, "nobody")),
        "infer of nobody": await error_of(v2.infer(url, {"inputs": [tensor]}, "nobody")),
        "explain of a model that cannot": await error_of(v1.explain(url, "iris-sklearn", rows)),
    }
    await v1.close()
    await v2.close()
    return found | {"closed": await error_of(v1.is_server_live(url))}


async def ask_grpc(question: dict[str, Any]) -> dict[str, Any]:
    """What the gRPC client can beside plain inference."""
    client = InferenceGRPCClient(question["grpc"], retries=0)
    request = to_request(question["model"], question["inputs"])
    found = {
        "headers": from_response(await client.infer(request, timeout=20, headers=(("x-request-id", "mine-7"),))),
        "ready of nobody": await error_of(client.is_model_ready("nobody")),
        "infer of nobody": await error_of(client.infer(to_request("nobody", question["inputs"]))),
    }
    await client.close()
    return found | {"closed": await error_of(client.is_server_live())}


async def main() -> None:
    questions = json.load(sys.stdin)
    found = {question["model"]: await ask(question) for question in questions}
    (explained,) = [question for question in questions if question["model"] == "iris-xgboost"]
    found |= {"rest": await ask_rest(explained), "grpc": await ask_grpc(explained)}
    json.dump(found, sys.stdout)


asyncio.run(main())
