# SPDX-License-Identifier: Apache-2.0
"""Models that call models: from code and in pipelines, on a platform, with real clients."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from platform_process import PlatformProcess, wait_until

from modelyard.admin import ModelState
from modelyard.client import Platform

STEPS: dict[str, list[dict[str, Any]]] = {
    "both": [
        {
            "ensemble": [
                {"model": "plus-one"},
                {"model": "plus-ten", "on_error": "soft", "timeout_s": 0.5},
            ]
        }
    ],
    "routed": [
        {
            "switch": [
                {"when": {"input": "x", "less": 10}, "model": "plus-one"},
                {"model": "plus-ten", "timeout_s": 0.5},
            ]
        },
        {"model": "plus-one", "inputs": {"x": "y"}, "outputs": {"total": "y"}},
    ],
}
CUSTOM: dict[str, dict[str, Any]] = {
    "plus-one": {"entrypoint": "model:Plus", "settings": {"plus": 1}},
    "plus-ten": {"entrypoint": "model:Plus", "settings": {"plus": 10}},
    "asker": {"entrypoint": "model:Asker"},
    "async-asker": {"entrypoint": "model:AsyncAsker"},
    "front": {"entrypoint": "model:Front", "model": "plus-ten"},
    "speller": {"entrypoint": "model:Speller"},
    "loud": {"entrypoint": "model:Loud", "model": "speller"},
}
BROKEN: dict[str, tuple[str, dict[str, Any], str]] = {
    "misfit": (
        "pipeline",
        {"steps": [{"model": "plus-one"}, {"model": "iris-sklearn"}]},
        'step "iris-sklearn" (model "iris-sklearn"), input',
    ),
    "leaver": (
        "custom",
        {"entrypoint": "model:Leaver"},
        '"model:Leaver" cannot be loaded: SystemExit: the weights are not there (model.py, line ',
    ),
}
"""Framework, options, and why it has failed."""
SMALL = {"num_cpus": 0.05}


def _register(client: Platform, name: str, framework: str, options: dict[str, Any]) -> None:
    uri = "models/chain" if framework == "custom" else ""
    client.register(name, framework=framework, uri=uri, options=options, resources=SMALL)


@pytest.fixture(scope="module")
def chain(platform: PlatformProcess) -> Iterator[PlatformProcess]:
    """Registers everything at once, those that wait for others first."""
    names = [*STEPS, *CUSTOM]
    with Platform.connect(platform.url) as client:
        for name, steps in STEPS.items():
            _register(client, name, "pipeline", {"steps": steps})
        for name, (framework, options, _) in BROKEN.items():
            _register(client, name, framework, options)
        for name, options in reversed(CUSTOM.items()):
            _register(client, name, "custom", options)
        for name in names:
            client.wait_ready(name, timeout_s=300)
        yield platform
        for name in (*names, *BROKEN):
            client.unregister(name)


@pytest.fixture
def ask(chain: PlatformProcess, http: httpx.Client) -> Any:
    def ask(model: str, *values: float, parameters: dict[str, Any] | None = None) -> httpx.Response:
        tensor = {"name": "x", "datatype": "FP64", "shape": [len(values)], "data": values}
        return http.post(f"/v2/models/{model}/infer", json={"inputs": [tensor], "parameters": parameters or {}})

    return ask


def _outputs(reply: httpx.Response) -> dict[str, list[float]]:
    assert reply.status_code == 200, reply.text
    return {output["name"]: output["data"] for output in reply.json()["outputs"]}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("plus-one", {"y": [3, 51]}),
        ("asker", {"y": [3, 51]}),
        ("async-asker", {"y": [30, 510]}),
        ("front", {"y": [14.5, 110.5]}),
        ("both", {"plus-one.y": [3, 51], "plus-ten.y": [12, 60]}),
        ("routed", {"total": [4, 61]}),
    ],
)
def test_models_ask_models(ask: Any, http: httpx.Client, model: str, expected: dict[str, list[float]]) -> None:
    assert _outputs(ask(model, 2, 50)) == expected
    reply = http.post(f"/v1/models/{model}:predict", json={"inputs": {"x": [2, 50]}}).json()
    assert reply["outputs"] == (next(iter(expected.values())) if len(expected) == 1 else expected)


def test_a_pipeline_is_a_model_as_any_other(chain: PlatformProcess, http: httpx.Client) -> None:
    metadata = http.get("/v2/models/both").json()
    assert [one["name"] for one in metadata["inputs"]] == ["x"]
    assert [one["name"] for one in metadata["outputs"]] == ["plus-one.y", "plus-ten.y"]
    client = tritonclient.grpc.InferenceServerClient(chain.grpc)
    given = tritonclient.grpc.InferInput("x", [3], "FP64")
    given.set_data_from_numpy(np.array([1.0, 2.0, 30.0]))
    assert client.infer("routed", [given]).as_numpy("total").tolist() == [3, 4, 41]
    client.close()


ANSWERS: dict[str, Callable[[float], list[float]]] = {
    "asker": lambda x: [x + 1],
    "async-asker": lambda x: [10 * (x + 1)],
    "front": lambda x: [2 * x + 10.5],
    "both": lambda x: [x + 1, x + 10],
    "routed": lambda x: [x + 2 if x < 10 else x + 11],
}


@pytest.mark.parametrize("model", ANSWERS)
def test_eight_clients_get_their_own_rows(ask: Any, model: str) -> None:
    values = [float(one) for one in (*range(12), *range(100, 168))]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda value: _outputs(ask(model, value)), values))
    got = [[data[0] for data in one.values()] for one in answers]
    assert got == [ANSWERS[model](value) for value in values]


def test_calls_are_counted_where_they_arrive(ask: Any, http: httpx.Client) -> None:
    def count() -> int:
        stats = http.get("/v2/models/plus-one/stats").json()["model_stats"]
        return int(stats[0]["inference_stats"]["success"]["count"])

    before = count()
    _outputs(ask("asker", 1))
    assert count() == before + 1


def test_a_hard_failure_is_the_answer(ask: Any) -> None:
    for model, values in (("both", [13]), ("routed", [13])):
        reply = ask(model, *values)
        assert reply.status_code == 500
        assert "cannot add to 13" in reply.json()["error"]


@pytest.mark.parametrize("model", ["plus-one", *ANSWERS])
def test_a_wrong_request_is_the_clients_mistake(ask: Any, http: httpx.Client, model: str) -> None:
    x = {"name": "x", "datatype": "FP64", "shape": [1], "data": [1]}
    wrong = [[], [{**x, "name": "z"}], [{**x, "datatype": "BYTES", "data": ["a"]}], [{**x, "shape": [1, 1, 1]}]]
    for inputs in wrong:
        reply = http.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
        assert reply.status_code == 400, (inputs, reply.text)
    refused = ask(model, 49 if model == "front" else 98)
    assert refused.status_code == 400
    assert "98 is no number to add to" in refused.json()["error"]


def test_a_soft_failure_leaves_the_rest(ask: Any) -> None:
    begun = time.monotonic()
    reply = ask("both", 99)
    assert _outputs(reply) == {"plus-one.y": [100]}
    assert time.monotonic() - begun < 10


def test_a_step_that_takes_too_long_is_a_timeout(ask: Any) -> None:
    reply = ask("routed", 99)
    assert reply.status_code == 504
    assert 'step "plus-ten" has not answered' in reply.json()["error"]


@pytest.mark.parametrize(
    ("model", "status", "text"),
    [
        ("asker", 500, "in a circle: asker@1 → asker@1"),
        ("nothing", 503, 'model "nothing" is not ready: the platform has no model of that name'),
    ],
)
def test_a_call_that_cannot_be_made_says_why(ask: Any, model: str, status: int, text: str) -> None:
    reply = ask("asker", 1, parameters={"model": model})
    assert (reply.status_code, text in reply.json()["error"]) == (status, True), reply.text


def test_a_call_ends_with_the_request(chain: PlatformProcess, http: httpx.Client) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [99]}]}
    begun = time.monotonic()
    reply = http.post("/v2/models/asker/infer", json=body, headers={"x-request-timeout-ms": "300"})
    assert reply.status_code == 504
    assert _outputs(http.post("/v2/models/asker/infer", json=_body(5.0))) == {"y": [6]}
    assert time.monotonic() - begun < 10


def _body(*values: float) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP64", "shape": [len(values)], "data": values}]}


def test_a_pipeline_follows_its_models(chain: PlatformProcess, http: httpx.Client) -> None:
    with Platform.connect(chain.url) as client:
        _register(client, "plus-ten", "custom", {"entrypoint": "model:PlusMore", "settings": {"plus": 10}})
        wait_until(
            lambda: {one["name"] for one in http.get("/v2/models/both").json()["inputs"]} == {"x", "more"},
            60,
            "the pipeline's metadata to change",
        )
        more = {"name": "more", "datatype": "FP64", "shape": [1], "data": [5]}
        body = {"inputs": [*_body(1.0)["inputs"], more]}
        assert _outputs(http.post("/v2/models/both/infer", json=body)) == {"plus-one.y": [2], "plus-ten.y": [16]}
        assert client.status("both").version == "1"


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_loaded_has_failed_with_the_reason(chain: PlatformProcess, name: str) -> None:
    with Platform.connect(chain.url) as client:
        wait_until(lambda: client.status(name).state is ModelState.FAILED, 60, f"{name} to fail")
        assert BROKEN[name][2] in client.status(name).reason


@pytest.mark.parametrize(("model", "expected"), [("speller", ["a", "b", "c"]), ("loud", ["A", "B", "C"])])
def test_a_generator_answers_with_a_stream(
    http: httpx.Client, chain: PlatformProcess, model: str, expected: Any
) -> None:
    with http.stream("POST", f"/v2/models/{model}/generate_stream", json={"text_input": "abc"}) as reply:
        events = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert [json.loads(event)["text_output"] for event in events] == expected
