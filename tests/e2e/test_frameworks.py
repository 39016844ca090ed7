# SPDX-License-Identifier: Apache-2.0
"""`configs/frameworks.yaml`, a model of every framework side by side: each answers what its own library does."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import triton_server
import tritonclient.grpc
import tritonclient.http
import yaml
from conftest import KNOWN_OUTPUT
from platform_process import ROOT, PlatformProcess, running, wait_until
from shared_platform.test_readme import COLUMNS, OF_LANGUAGE_MODELS, ROWS_OF_TABLE
from tritonclient.utils import InferenceServerException

from modelyard.client import Platform
from modelyard_deployments.examples import EXAMPLES

Arrays = Mapping[str, npt.NDArray[Any]]

DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "frameworks.yaml").read_text())
SPECS: dict[str, dict[str, Any]] = {spec["name"]: spec for spec in DOCUMENT["applications"][0]["args"]["models"]}
HAVE_LIBRARIES = [name for name, spec in SPECS.items() if spec["framework"] not in ("custom", "pipeline", "triton")]
"""Models whose answers a library can be asked for."""
ROWS = 24
SMALL = {"num_cpus": 0.05}


PARTS = {"1 row": slice(0, 1), "5 rows": slice(1, 6), "all rows": slice(0, ROWS)}
"""Of the rows of a question; the library is asked for each by itself."""


@dataclass(frozen=True)
class Known:
    """A question of many rows and the library's answers to its parts; outputs in the model's order."""

    inputs: Arrays
    answers: Mapping[str, Arrays]

    def rows(self, chosen: slice) -> tuple[Arrays, Arrays]:
        """A part of the question and of the answer to the whole."""
        return _part(self.inputs, chosen), _part(self.answers["all rows"], chosen)


def _part(arrays: Arrays, chosen: slice) -> Arrays:
    return {name: array[chosen] for name, array in arrays.items()}


@pytest.fixture(scope="module")
def side_by_side() -> Iterator[PlatformProcess]:
    """The configuration as it is, its models trained by the command that its first lines give."""
    folder = Path(tempfile.mkdtemp(prefix="my-"))
    train = [sys.executable, "-m", "modelyard_deployments.examples", "models", "--all"]
    trained = subprocess.run(train, cwd=folder, capture_output=True, text=True, check=True)
    assert trained.stderr == ""
    if not triton_server.INSTALLED.is_installed:
        pytest.skip(triton_server.NOT_INSTALLED)
    with running(PlatformProcess(folder, DOCUMENT), timeout_s=300) as process:
        yield process
        assert process.stop() == 0
        assert process.unexplained(KNOWN_OUTPUT) == []
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def client(side_by_side: PlatformProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=side_by_side.url, timeout=60) as client:
        yield client


def _question(metadata: Mapping[str, Any]) -> Arrays:
    """Rows of measurements between 0 and 7, or images of points between 0 and 1, as the example models take them."""
    random = np.random.default_rng(7)
    numbers = {"FP32": np.float32, "FP64": np.float64}
    return {
        one["name"]: random.uniform(0.1, 7 if len(one["shape"]) < 3 else 1, size=(ROWS, *one["shape"][1:])).astype(
            numbers[one["datatype"]]
        )
        for one in metadata["inputs"]
    }


@pytest.fixture(scope="module")
def known(side_by_side: PlatformProcess, client: httpx.Client) -> Callable[[str], Known]:
    """Asks a model's library, once, in a process of its own."""
    found: dict[str, Known] = {}

    def ask(name: str) -> Known:
        if name not in found:
            spec, metadata = SPECS[name], client.get(f"/v2/models/{name}").json()
            inputs, names = _question(metadata), [one["name"] for one in metadata["outputs"]]
            answers = _ask_library(spec, [_part(inputs, chosen) for chosen in PARTS.values()], side_by_side.folder)
            named = [one if set(one) == set(names) else dict(zip(names, one.values(), strict=True)) for one in answers]
            ordered = [{output: one[output] for output in names} for one in named]
            found[name] = Known(inputs, dict(zip(PARTS, ordered, strict=True)))
        return found[name]

    return ask


def _ask_library(spec: Mapping[str, Any], questions: list[Arrays], folder: Path) -> list[Arrays]:
    question, answer = folder / "question.pickle", folder / "answer.pickle"
    question.write_bytes(pickle.dumps(questions))
    script = [sys.executable, str(Path(__file__).with_name("ask_library.py")), spec["framework"]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [*script, spec["uri"], str(question), str(answer)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[Arrays] = pickle.loads(answer.read_bytes())
    return answers


def _text(array: npt.NDArray[Any]) -> list[Any]:
    return [one.decode() if isinstance(one, bytes) else one for one in array.ravel().tolist()]


def _check(got: Arrays, expected: Arrays, rtol: float = 1e-6) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape
        if array.dtype.kind == "f":
            np.testing.assert_allclose(got[name].astype(np.float64), array, rtol=rtol, atol=1e-9)
        else:
            assert _text(got[name]) == _text(array)


def _to_instances(inputs: Arrays) -> list[Any]:
    columns = {name: array.tolist() for name, array in inputs.items()}
    if len(columns) == 1:
        rows: list[Any] = next(iter(columns.values()))
        return rows
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def ask_v1(platform: PlatformProcess, model: str, inputs: Arrays) -> Arrays:
    instances = {"instances": _to_instances(inputs)}
    reply = httpx.post(f"{platform.url}/v1/models/{model}:predict", json=instances, timeout=60)
    assert reply.status_code == 200, reply.text
    predictions = reply.json()["predictions"]
    if isinstance(predictions[0], dict):
        return {name: np.array([one[name] for one in predictions]) for name in predictions[0]}
    (name,) = [one["name"] for one in httpx.get(f"{platform.url}/v2/models/{model}").json()["outputs"]]
    return {name: np.array(predictions)}


def _datatype(array: npt.NDArray[Any]) -> str:
    return {"float32": "FP32", "float64": "FP64"}[array.dtype.name]


def ask_v2_json(platform: PlatformProcess, model: str, inputs: Arrays) -> Arrays:
    tensors = [
        {"name": name, "shape": array.shape, "datatype": _datatype(array), "data": array.tolist()}
        for name, array in inputs.items()
    ]
    reply = httpx.post(f"{platform.url}/v2/models/{model}/infer", json={"inputs": tensors}, timeout=60)
    assert reply.status_code == 200, reply.text
    return {one["name"]: np.reshape(one["data"], one["shape"]) for one in reply.json()["outputs"]}


def _ask_triton(module: Any, client: Any, model: str, inputs: Arrays, names: list[str]) -> Arrays:
    tensors = [
        module.InferInput(name, list(array.shape), _datatype(array)).set_data_from_numpy(array)
        for name, array in inputs.items()
    ]
    with client:
        answer = client.infer(model, tensors, outputs=[module.InferRequestedOutput(name) for name in names])
        return {name: answer.as_numpy(name) for name in names}


def ask_v2_binary(platform: PlatformProcess, model: str, inputs: Arrays, names: list[str]) -> Arrays:
    client = tritonclient.http.InferenceServerClient(platform.host, network_timeout=60)
    return _ask_triton(tritonclient.http, client, model, inputs, names)


def ask_grpc(platform: PlatformProcess, model: str, inputs: Arrays, names: list[str]) -> Arrays:
    client = tritonclient.grpc.InferenceServerClient(platform.grpc)
    return _ask_triton(tritonclient.grpc, client, model, inputs, names)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("model", HAVE_LIBRARIES)
def test_every_protocol_answers_what_the_library_does(
    side_by_side: PlatformProcess, known: Callable[[str], Known], model: str, part: str
) -> None:
    inputs, expected = _part(known(model).inputs, PARTS[part]), known(model).answers[part]
    _check(ask_v1(side_by_side, model, inputs), expected)
    _check(ask_v2_json(side_by_side, model, inputs), expected)
    _check(ask_v2_binary(side_by_side, model, inputs, list(expected)), expected)
    _check(ask_grpc(side_by_side, model, inputs, list(expected)), expected)


@pytest.mark.parametrize("model", HAVE_LIBRARIES)
def test_eight_clients_get_their_own_rows(
    side_by_side: PlatformProcess, known: Callable[[str], Known], model: str
) -> None:
    """Of one to four rows each: what waits together is predicted together."""
    parts = [known(model).rows(slice(start, start + 1 + start % 4)) for start in range(ROWS - 4)] * 4
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda part: ask_v2_json(side_by_side, model, part[0]), parts))
    for answer, (_, expected) in zip(answers, parts, strict=True):
        _check(answer, expected, rtol=1e-4)  # a convolution rounds with the number of rows; other rows are far off


@pytest.mark.parametrize("model", HAVE_LIBRARIES)
def test_wrong_inputs_are_the_clients_mistake(
    side_by_side: PlatformProcess, client: httpx.Client, known: Callable[[str], Known], model: str
) -> None:
    inputs, _ = known(model).rows(slice(0, 2))
    name, array = next(iter(inputs.items()))
    wider = {**inputs, name: np.stack([array, array], axis=-1)}
    tensors = [
        {"name": one, "shape": data.shape, "datatype": _datatype(data), "data": data.tolist()}
        for one, data in inputs.items()
    ]
    bodies: list[tuple[str, Any]] = [
        (f"/v1/models/{model}:predict", {"instances": [["no number"]]}),
        (f"/v1/models/{model}:predict", {"instances": [{"nosuch": 1, "nor this": 2}]}),
        (f"/v2/models/{model}/infer", {"inputs": [{**tensors[0], "data": ["a"] * array.size}, *tensors[1:]]}),
        (f"/v2/models/{model}/infer", {"inputs": [{**tensors[0], "shape": [7, 7, 7]}, *tensors[1:]]}),
        (f"/v2/models/{model}/infer", {"inputs": [*tensors, {**tensors[0], "name": "nosuch"}]}),
        (f"/v2/models/{model}/infer", {"inputs": tensors, "outputs": [{"name": "nosuch"}]}),
    ]
    for path, body in bodies:
        reply = client.post(path, json=body)
        assert reply.status_code == 400, (body, reply.text)
        assert reply.json()["error"]
    for ask in (ask_v2_binary, ask_grpc):
        with pytest.raises(InferenceServerException) as caught:
            ask(side_by_side, model, wider, [])
        assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def _is_answered(reply: httpx.Response, key: str) -> bool:
    if reply.status_code in (400, 501):
        return False
    return len(reply.raise_for_status().json()[key]) == ROWS


def _observe(platform: PlatformProcess, client: httpx.Client, model: str) -> dict[str, str]:
    """The cells of one row of README's table, as they should be."""
    metadata = client.get(f"/v2/models/{model}").json()
    inputs, names = _question(metadata), [one["name"] for one in metadata["outputs"]]
    answers = [
        next(iter(answer.values())).shape[0] == ROWS
        for answer in (
            ask_v1(platform, model, inputs),
            ask_v2_json(platform, model, inputs),
            ask_v2_binary(platform, model, inputs, names),
            ask_grpc(platform, model, inputs, names),
        )
    ]
    predict, explain = (f"/v1/models/{model}:{verb}" for verb in ("predict", "explain"))
    rows = {"instances": _to_instances(inputs)}
    proba = client.post(predict, json={**rows, "outputs": ["predict_proba"]})
    if proba.status_code == 200:
        assert np.sum(proba.json()["predictions"], axis=1) == pytest.approx(np.ones(ROWS), abs=1e-5)
    paths = client.get(f"/v2/models/{model}/openapi.json").json()["paths"]
    (shown,) = paths[predict]["post"]["requestBody"]["content"]["application/json"]["example"]["instances"]
    has_columns = isinstance(shown, dict) and len(shown) > 1
    answers += [
        _is_answered(proba, "predictions"),
        _is_answered(client.post(explain, json=rows), "explanations"),
        has_columns and _is_answered(client.post(predict, json={"instances": [shown] * ROWS}), "predictions"),
    ]
    return {column: "yes" if holds else "no" for column, holds in zip(COLUMNS, answers, strict=True)}


ASKED = {spec["framework"]: name for name, spec in SPECS.items()} | {"triton": "triton-iris"}
"""Whom to ask of each framework; of a Triton repository one of its models."""


@pytest.mark.parametrize("framework", [name for name in ROWS_OF_TABLE if name not in OF_LANGUAGE_MODELS])
def test_a_row_of_readmes_table_is_true(side_by_side: PlatformProcess, client: httpx.Client, framework: str) -> None:
    assert _observe(side_by_side, client, ASKED[framework]) == ROWS_OF_TABLE[framework]


def _damage(folder: Path) -> None:
    """Every file of a model is cut to its first half."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_what_cannot_be_loaded_says_why_and_harms_nobody(
    side_by_side: PlatformProcess, known: Callable[[str], Known]
) -> None:
    damaged = [name for name in SPECS if name in EXAMPLES]
    with Platform.connect(side_by_side.url) as client:
        for name in damaged:
            folder = side_by_side.folder / "models" / f"broken-{name}"
            shutil.copytree(side_by_side.folder / "models" / name, folder)
            _damage(folder)
            options = SPECS[name].get("options", {})
            client.register(
                f"broken-{name}", framework=SPECS[name]["framework"], uri=str(folder), options=options, resources=SMALL
            )
        for name in damaged:
            status = wait_until(lambda name=name: _ended(client, f"broken-{name}"), 240, f"broken-{name} to fail")
            assert status.state.value == "failed", name
            assert status.reason, name
            for internal in ("Traceback", str(side_by_side.folder), 'File "'):
                assert internal not in status.reason, (name, status.reason)
        for name in HAVE_LIBRARIES:
            inputs, expected = known(name).rows(slice(0, 3))
            _check(ask_v2_json(side_by_side, name, inputs), expected)
        for name in damaged:
            client.unregister(f"broken-{name}")


def _ended(client: Platform, name: str) -> Any:
    status = client.status(name)
    return status if status.state.value in ("failed", "ready") else None
