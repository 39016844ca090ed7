# SPDX-License-Identifier: Apache-2.0
"""Triton's four clients, with one way to ask any of them."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any

import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from platform_process import PlatformProcess
from tritonclient.utils import np_to_triton_dtype

MODELS = ("iris-sklearn", "iris-xgboost", "iris-lightgbm", "breast-cancer", "housing")
KINDS = {
    "http": tritonclient.http,
    "http-aio": tritonclient.http.aio,
    "grpc": tritonclient.grpc,
    "grpc-aio": tritonclient.grpc.aio,
}

each_client = pytest.mark.parametrize("kind", KINDS)
each_model = pytest.mark.parametrize("model", MODELS)


def ask(kind: str, platform: PlatformProcess, method: str, *args: Any, **kwargs: Any) -> Any:
    """One call of one method; the four clients have the same ones."""
    address = platform.grpc if kind.startswith("grpc") else platform.host
    make = KINDS[kind].InferenceServerClient

    async def ask_async() -> Any:
        async with make(address) as client:
            return await getattr(client, method)(*args, **kwargs)

    if kind.endswith("aio"):
        with warnings.catch_warnings():
            # The client drops replies whose body it does not need; aiohttp warns of their connections when collected.
            warnings.simplefilter("ignore", ResourceWarning)
            result = asyncio.run(ask_async())
            if kind == "http-aio":
                gc.collect()
        return result
    with make(address) as client:
        return getattr(client, method)(*args, **kwargs)


def to_inputs(kind: str, arrays: dict[str, Any]) -> list[Any]:
    module = tritonclient.grpc if kind.startswith("grpc") else tritonclient.http
    inputs = []
    for name, array in arrays.items():
        inputs.append(module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def to_outputs(kind: str, *names: str) -> list[Any]:
    module = tritonclient.grpc if kind.startswith("grpc") else tritonclient.http
    return [module.InferRequestedOutput(name) for name in names]


def to_document(kind: str, platform: PlatformProcess, method: str, *args: Any) -> Any:
    """What a method answers, as JSON whichever client it is; gRPC's has 64-bit numbers as strings and no zeros."""
    as_json = {"as_json": True} if kind.startswith("grpc") else {}
    return ask(kind, platform, method, *args, **as_json)


def metadata(kind: str, platform: PlatformProcess, model: str, version: str = "") -> Any:
    return to_document(kind, platform, "get_model_metadata", model, version)
