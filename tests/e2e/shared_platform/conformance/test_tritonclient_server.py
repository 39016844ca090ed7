# SPDX-License-Identifier: Apache-2.0
"""What Triton's four clients ask of a server beside inference: configuration, statistics, repository, plug-ins."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any

import numpy as np
import pytest
from answers import Answers
from platform_process import PlatformProcess, wait_until
from shared_platform.conformance.triton import KINDS, ask, each_client, to_document, to_inputs, to_outputs
from tritonclient.http import InferenceServerClientPlugin
from tritonclient.http.auth import BasicAuth
from tritonclient.utils import InferenceServerException

# -- configuration


@each_client
def test_the_configuration_has_the_batch_limit_and_the_inputs(kind: str, platform: PlatformProcess) -> None:
    document = to_document(kind, platform, "get_model_config", "breast-cancer")
    config = document["config"] if kind.startswith("grpc") else document
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("breast-cancer", "sklearn", 1024)
    (tensor,) = config["input"]
    assert (tensor["data_type"], [int(dim) for dim in tensor["dims"]]) == ("TYPE_FP64", [30])
    assert document == to_document(kind, platform, "get_model_config", "breast-cancer", "1")


@each_client
def test_the_configuration_says_that_a_model_is_decoupled(kind: str, platform: PlatformProcess) -> None:
    document = to_document(kind, platform, "get_model_config", "words")
    config = document["config"] if kind.startswith("grpc") else document
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert config.get("max_batch_size", 0) == 0


# -- statistics


def counts(kind: str, platform: PlatformProcess, model: str, version: str = "") -> dict[str, int]:
    (found,) = to_document(kind, platform, "get_inference_statistics", model, version)["model_stats"]
    assert (found["name"], found["version"]) == (model, "1")
    times = found.get("inference_stats", {})
    numbers = {key: times.get(key, {}).get("count", 0) for key in ("success", "fail")}
    return {key: int(value) for key, value in {"rows": found.get("inference_count", 0), **numbers}.items()}


@each_client
def test_statistics_grow_by_what_was_asked(kind: str, platform: PlatformProcess, answers: dict[str, Answers]) -> None:
    inputs = to_inputs(kind, answers["iris-lightgbm"].inputs)
    before = counts(kind, platform, "iris-lightgbm")
    for _ in range(2):
        ask(kind, platform, "infer", "iris-lightgbm", inputs)
    after = counts(kind, platform, "iris-lightgbm", "1")
    assert {key: after[key] - before[key] for key in after} == {"rows": 6, "success": 2, "fail": 0}


@each_client
def test_statistics_without_a_name_are_of_all_models(kind: str, platform: PlatformProcess) -> None:
    found = to_document(kind, platform, "get_inference_statistics")["model_stats"]
    assert {entry["name"] for entry in found} >= set(platform.models)


# -- repository


def state_of(kind: str, platform: PlatformProcess, model: str) -> str:
    index = to_document(kind, platform, "get_model_repository_index")
    entries = index["models"] if kind.startswith("grpc") else index
    (state,) = [entry["state"] for entry in entries if entry["name"] == model]
    return str(state)


@each_client
def test_the_index_has_every_model_of_the_file(kind: str, platform: PlatformProcess) -> None:
    assert {state_of(kind, platform, model) for model in platform.models} == {"READY"}


@pytest.mark.parametrize(("unloader", "loader"), [("http-aio", "grpc-aio"), ("grpc-aio", "http-aio")])
def test_a_model_is_really_unloaded_and_really_loaded(unloader: str, loader: str, platform: PlatformProcess) -> None:
    """The sync clients' turn is in ``test_repository``."""
    inputs = to_inputs(unloader, {"features": np.array([[1.0, 2.0, 3.0, 4.0]])})
    ask(unloader, platform, "unload_model", "scores", unload_dependents=True)
    try:
        assert not ask(unloader, platform, "is_model_ready", "scores")
        with pytest.raises(InferenceServerException, match="unloaded"):
            ask(unloader, platform, "infer", "scores", inputs)
        wait_until(lambda: not platform.replicas("scores@1"), 20, "the process to end")
        wait_until(lambda: state_of(unloader, platform, "scores") == "UNAVAILABLE", 30, "the index to say so")
    finally:
        ask(loader, platform, "load_model", "scores")
    assert ask(loader, platform, "is_model_ready", "scores")
    assert state_of(loader, platform, "scores") == "READY"
    assert ask(unloader, platform, "infer", "scores", inputs).as_numpy("output-0").tolist() == [[1.0, 4.0, 13.0]]
    assert len(platform.replicas("scores@1")) == 1


# -- what is not supported, and says so

HANDLE = base64.b64encode(b"handle")
UNSUPPORTED: list[tuple[str, tuple[Any, ...], str]] = [
    ("get_system_shared_memory_status", (), "shared memory is not supported"),
    ("get_system_shared_memory_status", ("region",), "shared memory is not supported"),
    ("register_system_shared_memory", ("region", "/region", 64), "shared memory is not supported"),
    ("unregister_system_shared_memory", (), "shared memory is not supported"),
    ("unregister_system_shared_memory", ("region",), "shared memory is not supported"),
    ("get_cuda_shared_memory_status", (), "shared memory is not supported"),
    ("get_cuda_shared_memory_status", ("region",), "shared memory is not supported"),
    ("register_cuda_shared_memory", ("region", HANDLE, 0, 64), "shared memory is not supported"),
    ("unregister_cuda_shared_memory", (), "shared memory is not supported"),
    ("unregister_cuda_shared_memory", ("region",), "shared memory is not supported"),
    ("get_trace_settings", (), "trace settings are not supported"),
    ("get_trace_settings", ("iris-sklearn",), "trace settings are not supported"),
    ("update_trace_settings", (None, {"trace_rate": "10"}), "trace settings are not supported"),
    ("update_trace_settings", ("iris-sklearn", {"trace_rate": "10"}), "trace settings are not supported"),
    ("get_log_settings", (), "log settings cannot be changed"),
    ("update_log_settings", ({"log_verbose_level": 1},), "log settings cannot be changed"),
]


@pytest.mark.parametrize(("method", "arguments", "reason"), UNSUPPORTED, ids=[case[0] for case in UNSUPPORTED])
@each_client
def test_what_is_not_supported_says_so(
    kind: str, platform: PlatformProcess, method: str, arguments: tuple[Any, ...], reason: str
) -> None:
    with pytest.raises(InferenceServerException, match=reason) as caught:
        ask(kind, platform, method, *arguments)
    assert caught.value.status() == ("StatusCode.UNIMPLEMENTED" if kind.startswith("grpc") else "501")


@each_client
def test_a_tensor_in_shared_memory_is_refused_with_the_reason(kind: str, platform: PlatformProcess) -> None:
    (tensor,) = to_inputs(kind, {"input-0": np.zeros((1, 4))})
    tensor.set_shared_memory("region", 32)
    with pytest.raises(InferenceServerException, match='input "input-0": shared memory is not supported'):
        ask(kind, platform, "infer", "iris-sklearn", [tensor])
    (output,) = to_outputs(kind, "output-0")
    output.set_shared_memory("region", 32)
    with pytest.raises(InferenceServerException, match='output "output-0": shared memory is not supported'):
        ask(kind, platform, "infer", "iris-sklearn", to_inputs(kind, {"input-0": np.zeros((1, 4))}), outputs=[output])


# -- plug-ins and the end


def address_of(kind: str, platform: PlatformProcess) -> str:
    return platform.grpc if kind.startswith("grpc") else platform.host


async def finished(result: Any) -> Any:
    """What a method of a sync or an async client returned."""
    return await result if asyncio.iscoroutine(result) else result


@each_client
def test_a_plugin_is_asked_before_each_request_until_it_is_taken_away(kind: str, platform: PlatformProcess) -> None:
    sent: list[dict[str, str]] = []

    class Watched(BasicAuth):  # type: ignore[misc]  # untyped library
        def __call__(self, request: Any) -> None:
            super().__call__(request)
            sent.append(dict(request.headers))

    async def use() -> None:
        client = KINDS[kind].InferenceServerClient(address_of(kind, platform))
        client.register_plugin(Watched("reader", "secret"))
        assert isinstance(client.plugin(), Watched)
        assert (await finished(client.get_model_metadata("housing"))) is not None
        client.unregister_plugin()
        assert client.plugin() is None
        assert await finished(client.is_server_ready())
        await finished(client.close())

    asyncio.run(use())
    credentials = "Basic " + base64.b64encode(b"reader:secret").decode()
    assert [headers["authorization"] for headers in sent] == [credentials]


@pytest.mark.parametrize("kind", ["http", "http-aio"])
def test_what_a_plugin_adds_reaches_the_server(kind: str, platform: PlatformProcess) -> None:
    class Hurried(InferenceServerClientPlugin):  # type: ignore[misc]  # untyped library
        def __call__(self, request: Any) -> None:
            request.headers["x-request-timeout-ms"] = "nonsense"

    async def use() -> None:
        client = KINDS[kind].InferenceServerClient(platform.host)
        client.register_plugin(Hurried())
        try:
            await finished(client.infer("iris-sklearn", to_inputs(kind, {"input-0": np.zeros((1, 4))})))
        finally:
            await finished(client.close())

    with pytest.raises(InferenceServerException, match=re.escape("x-request-timeout-ms")):
        asyncio.run(use())


@each_client
def test_a_closed_client_asks_nothing_more(kind: str, platform: PlatformProcess) -> None:
    async def use() -> None:
        client = KINDS[kind].InferenceServerClient(address_of(kind, platform))
        assert await finished(client.is_server_live())
        await finished(client.close())
        with pytest.raises(Exception, match="closed"):  # each transport has an error of its own
            await finished(client.is_server_live())

    asyncio.run(use())
