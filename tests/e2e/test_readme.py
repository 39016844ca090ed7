# SPDX-License-Identifier: Apache-2.0
"""README's commands and its table, run against the platform."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from platform_process import PlatformProcess

README = (Path(__file__).parents[2] / "README.md").read_text()
TABLE = [line for line in README.splitlines() if line.startswith("|")]
COLUMNS = [cell.strip() for cell in TABLE[0].strip("|").split("|")][2:]
CELLS = [
    (cells[0].strip(" `"), column)
    for cells in (line.strip("|").split("|") for line in TABLE if line.startswith("| `"))
    for column, cell in zip(COLUMNS, cells[2:], strict=True)
    if cell.strip() == "yes"
]
EXPLAINS = {
    cells[0].strip(" `"): cells[COLUMNS.index("`:explain`") + 2].strip()
    for cells in (line.strip("|").split("|") for line in TABLE if line.startswith("| `"))
}
MODELS = {
    "sklearn": ("breast-cancer", 30),
    "xgboost": ("iris-xgboost", 4),
    "lightgbm": ("iris-lightgbm", 4),
    "custom": ("scores", 4),
}
NAMED = {"sklearn": "housing", "xgboost": "iris-xgboost", "lightgbm": "iris-lightgbm", "custom": "scores"}


def localise(text: str, platform: PlatformProcess) -> str:
    """The text with the addresses of this test's platform."""
    return text.replace("http://127.0.0.1:8000", platform.url).replace("127.0.0.1:9000", platform.grpc)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def curls() -> list[str]:
    text = "\n".join(block.replace("$ ", "") for block in blocks("console"))
    return re.findall(r"^curl .*?(?:'\{.*?\}'|\S+)$", text, re.DOTALL | re.MULTILINE)


def test_readme_has_commands_to_test() -> None:
    assert len(curls()) >= 3
    assert len(blocks("python")) >= 2
    assert set(EXPLAINS.values()) == {"yes", "no"}
    assert len(CELLS) == len(MODELS) * len(COLUMNS) - sum(line.count("| no ") for line in TABLE)


@pytest.mark.parametrize("command", curls())
def test_a_curl_command_of_the_readme_is_answered(platform: PlatformProcess, command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", localise(command, platform) + " --fail --silent"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert any(f'"{name}":[' in done.stdout for name in ("predictions", "outputs", "explanations"))


@pytest.mark.parametrize("code", blocks("python"))
def test_a_python_example_of_the_readme_runs(platform: PlatformProcess, code: str) -> None:
    done = subprocess.run([sys.executable, "-c", localise(code, platform)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(("framework", "column"), CELLS)
def test_a_yes_of_the_table_is_true(platform: PlatformProcess, http: httpx.Client, framework: str, column: str) -> None:
    name, width = MODELS[framework]
    rows = np.ones((2, width))
    if column == "v1 HTTP":
        assert (
            len(http.post(f"/v1/models/{name}:predict", json={"instances": rows.tolist()}).json()["predictions"]) == 2
        )
    elif column == "v2 HTTP JSON":
        body = {"inputs": [{"name": "x", "shape": rows.shape, "datatype": "FP64", "data": rows.tolist()}]}
        assert http.post(f"/v2/models/{name}/infer", json=body).json()["outputs"][0]["shape"][0] == 2
    elif column == "v2 HTTP binary":
        client = tritonclient.http.InferenceServerClient(platform.url.removeprefix("http://"))
        tensor = tritonclient.http.InferInput("x", list(rows.shape), "FP64")
        assert client.infer(name, [tensor.set_data_from_numpy(rows)]).as_numpy("output-0").shape[0] == 2
    elif column == "v2 gRPC":
        grpc = tritonclient.grpc.InferenceServerClient(platform.grpc)
        raw = tritonclient.grpc.InferInput("x", list(rows.shape), "FP64")
        assert grpc.infer(name, [raw.set_data_from_numpy(rows)]).as_numpy("output-0").shape[0] == 2
    elif column == "`predict_proba`":
        body = {"instances": rows.tolist(), "outputs": ["predict_proba"]}
        found = http.post(f"/v1/models/{name}:predict", json=body).json()["predictions"]
        assert np.sum(found, axis=1) == pytest.approx([1, 1], abs=1e-5)
    elif column == "`:explain`":
        body = {"instances": rows.tolist()}
        assert len(http.post(f"/v1/models/{name}:explain", json=body).json()["explanations"]) == 2
    else:
        assert column == "columns by name"
        refused = http.post(f"/v1/models/{NAMED[framework]}:predict", json={"instances": [{"this": 1, "that": 2}]})
        expected = refused.json()["error"].partition("expected an object with")[2].partition(";")[0]
        known = re.findall(r'"([^"]+)"', expected)
        assert len(known) >= 4
        record = {name: "gas" if name == "heating" else "north" if name == "district" else 1 for name in known}
        assert http.post(f"/v1/models/{NAMED[framework]}:predict", json={"instances": [record]}).status_code == 200


@pytest.mark.parametrize("framework", [name for name, cell in EXPLAINS.items() if cell == "no"])
def test_what_the_table_says_explains_nothing_is_501(http: httpx.Client, framework: str) -> None:
    name, width = MODELS[framework]
    assert http.post(f"/v1/models/{name}:explain", json={"instances": [[1] * width]}).status_code == 501
