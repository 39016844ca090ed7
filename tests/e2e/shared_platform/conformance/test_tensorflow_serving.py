# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Serving's published stubs, and ``curl`` as its documentation shows it, against a real SavedModel.

The stubs import TensorFlow, so they run in a process of their own: ``tfserving_calls``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from platform_process import PlatformProcess

from modelyard.client import Platform
from modelyard.model import list_frameworks

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow_serving") is None or "tensorflow" not in list_frameworks(),
    reason="no TensorFlow: pip install -e .[tensorflow,dev]",
)

HERE = Path(__file__).parent
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


def run(script: str, *arguments: str, text: str = "") -> str:
    command = [sys.executable, "-P", str(HERE / script), *arguments]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=300, check=False, env=os.environ | QUIET
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(platform: PlatformProcess) -> Iterator[Path]:
    """The base path of ``half_plus_two``, which is served with ``half_plus_three`` beside it."""
    models = platform.folder / "models"
    run("half_plus_two.py", str(models / "half_plus_two" / "00000123"), "2")
    run("half_plus_two.py", str(models / "half_plus_three" / "00000123"), "3")
    with Platform.connect(platform.url) as client:
        for name in ("half_plus_two", "half_plus_three"):
            client.register(name, framework="tensorflow", uri=f"models/{name}", resources={"num_cpus": 0.05})
        for name in ("half_plus_two", "half_plus_three"):
            client.wait_ready(name, timeout_s=180)
        yield models / "half_plus_two"
        for name in ("half_plus_two", "half_plus_three"):
            client.unregister(name, wait=True)


@pytest.fixture(scope="module")
def from_stubs(platform: PlatformProcess, folder: Path) -> dict[str, Any]:
    """What each method answers; one process for all, since importing the stubs takes seconds."""
    newer = platform.folder / "124"
    run("half_plus_two.py", str(newer), "12")
    question = {"grpc": platform.grpc, "folder": str(folder), "newer": str(newer)}
    found: dict[str, Any] = json.loads(run("tfserving_calls.py", text=json.dumps(question)).splitlines()[-1])
    return found


# curl comes first: the stubs' process ends with another version


URL = "http://localhost:8501/v1/models"
SERVED = {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}


def curl(platform: PlatformProcess, command: str) -> tuple[int, str]:
    """Runs a command of the documentation, but for the address, and returns the status and the body."""
    words = shlex.split(command.replace("localhost:8501", platform.host))
    done = subprocess.run([*words, "-s", "-w", "\n%{http_code}"], capture_output=True, text=True, check=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


REGRESS = '{"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": 2.0}]}'
CLASSIFY = '{"signature_name": "classify_x_to_y", "examples": [{"x": 1.0}]}'
PICTURES = '{"signature_name": "pictures", "instances": [{"b64": "/wA="}, "abc"]}'
LENGTHS = [{"length": 2, "same_bytes": {"b64": "/wA="}}, {"length": 3, "same_bytes": {"b64": "YWJj"}}]


@pytest.mark.parametrize(
    ("body", "path", "answer"),
    [
        ('{"instances": [1.0,2.0,5.0]}', "half_plus_three:predict", {"predictions": [3.5, 4.0, 5.5]}),
        (REGRESS, "half_plus_three:regress", {"results": [3.5, 4.0]}),
        ('{"instances": [1.0, 2.0, 5.0]}', "half_plus_two:predict", {"predictions": [2.5, 3.0, 4.5]}),
        ('{"inputs": [1.0, 2.0]}', "half_plus_two/versions/123:predict", {"outputs": [2.5, 3.0]}),
        (CLASSIFY, "half_plus_two/labels/stable:classify", {"results": [[["", 2.5]]]}),
        (PICTURES, "half_plus_two:predict", {"predictions": LENGTHS}),
    ],
)
def test_curl_as_documented(platform: PlatformProcess, folder: Path, body: str, path: str, answer: Any) -> None:
    status, found = curl(platform, f"curl -d '{body}' -X POST {URL}/{path}")
    assert (status, json.loads(found)) == (200, answer)


def test_curl_gets_the_status_as_documented(platform: PlatformProcess, folder: Path) -> None:
    status, body = curl(platform, f"curl {URL}/half_plus_three")
    assert (status, json.loads(body)["model_version_status"]) == (200, [SERVED])


def test_curl_hears_of_an_unknown_model(platform: PlatformProcess) -> None:
    status, body = curl(platform, f"curl -d '{{\"instances\": [1.0,5.0]}}' -X POST {URL}/half:predict")
    assert (status, list(json.loads(body))) == (404, ["error"])


def test_metadata_has_every_signature(http: httpx.Client, folder: Path) -> None:
    document = http.get("/v1/models/half_plus_two/metadata").json()
    assert document["model_spec"] == {"name": "half_plus_two", "signature_name": "", "version": "123"}
    found = document["metadata"]["signature_def"]["signature_def"]
    assert found["serving_default"]["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}], "unknown_rank": False},
        "name": "x:0",
    }
    assert found["regress_x_to_y"]["method_name"] == "tensorflow/serving/regress"
    assert len(found) == 5


# -- the stubs


def test_predict(from_stubs: dict[str, Any]) -> None:
    found = from_stubs["predict"]
    assert found["spec"] == {"name": "half_plus_two", "version": "123", "signatureName": "serving_default"}
    assert found["array"] == found["float_val"] == found["version"] == found["label"] == [2.5, 3, 4.5]
    assert (found["matrix"], found["repeated"]) == ([[2.5], [3]], [2.5, 2.5, 2.5])
    assert (found["bytes"], found["filtered"]) == (["ff00", ""], ["length"])
    assert found["sklearn"] == [0]


def test_classify_regress_and_several_at_once(from_stubs: dict[str, Any]) -> None:
    found = from_stubs["examples"]
    assert (found["classify"], found["regress"]) == ([[2.5], [3]], [2.5, 3])
    assert found["regress spec"] == {"name": "half_plus_two", "version": "123", "signatureName": "regress_x_to_y"}
    assert found["several"] == ["classification_result", "regression_result"]
    assert found["several specs"] == ["classify_x_to_y", "regress_x_to_y"]


def test_metadata_and_status(from_stubs: dict[str, Any]) -> None:
    found = from_stubs["models"]
    regress = "tensorflow/serving/regress"
    assert found["signatures"] == ["classify_x_to_y", "pictures", "regress_x_to_y", "serving_default", regress]
    assert found["input"] == {
        "name": "x:0",
        "dtype": "DT_FLOAT",
        "tensorShape": {"dim": [{"size": "-1"}, {"size": "1"}]},
    }
    assert (found["methods"]["classify_x_to_y"], found["metadata version"]) == ("tensorflow/serving/classify", 123)
    assert found["status"] == [{"version": "123", "state": "AVAILABLE", "status": {}}]


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        ("model", "NOT_FOUND", 'model "nobody" is not found'),
        ("version", "NOT_FOUND", 'has no version "9"'),
        ("signature", "FAILED_PRECONDITION", '"nothing" not found in signature def'),
        ("input", "INVALID_ARGUMENT", 'input "x" is missing'),
        ("datatype", "INVALID_ARGUMENT", "expected FP32 [-1,1], got BYTES"),
        ("bomb", "RESOURCE_EXHAUSTED", "tensors of the request"),
        ("method", "INVALID_ARGUMENT", "expected one classification input"),
        ("field", "INVALID_ARGUMENT", "must specify at least one metadata_field"),
        ("status", "NOT_FOUND", "nobody"),
        ("list", "INVALID_ARGUMENT", "Only ModelConfigList is currently supported"),
        ("name", "INVALID_ARGUMENT", "declared in the configuration file"),
        ("path", "PERMISSION_DENIED", "model_roots"),
    ],
)
def test_errors_have_their_codes(from_stubs: dict[str, Any], what: str, code: str, text: str) -> None:
    found, details = from_stubs["errors"][what]
    assert (found, text in details) == (code, True), details


def test_a_list_of_models_is_served_until_the_next_list(from_stubs: dict[str, Any]) -> None:
    found = from_stubs["reload"]
    assert (found["code"], found["answer"]) == (0, [2.5, 3, 4.5])
    assert found["gone"] in ("UNAVAILABLE", "NOT_FOUND")  # it is being removed, then it is not there


def test_a_new_version_takes_over_without_a_failed_request(from_stubs: dict[str, Any]) -> None:
    found = from_stubs["versions"]
    assert (found["states"], found["seen"], found["in order"]) == ([[124, 30]], [123, 124], True)
    assert found["asked"] > 20
