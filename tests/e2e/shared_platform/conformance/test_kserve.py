# SPDX-License-Identifier: Apache-2.0
"""The published KServe clients, unmodified, in an environment of their own: see ``install_clients``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import install_clients
import numpy as np
import pytest
from answers import Answers
from platform_process import PlatformProcess
from tritonclient.utils import np_to_triton_dtype

pytestmark = pytest.mark.skipif(
    not install_clients.is_installed(), reason="no kserve environment: python tests/e2e/install_clients.py makes it"
)

MODELS = ("iris-sklearn", "iris-xgboost", "iris-lightgbm", "breast-cancer", "housing")


@pytest.fixture(scope="module")
def from_kserve(platform: PlatformProcess, answers: dict[str, Answers]) -> dict[str, Any]:
    """What each client of KServe answers, by model; one process for all, since importing it takes seconds."""
    questions = [
        {
            "url": platform.url,
            "grpc": platform.grpc,
            "model": model,
            "rows": known.rows,
            "inputs": {name: (np_to_triton_dtype(array.dtype), array.tolist()) for name, array in known.inputs.items()},
        }
        for model, known in answers.items()
    ]
    script = Path(__file__).with_name("kserve_calls.py")
    done = subprocess.run(
        [str(install_clients.PYTHON), "-P", str(script)],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("model", MODELS)
def test_kserve_finds_server_and_model_live_and_ready(from_kserve: dict[str, Any], model: str) -> None:
    assert from_kserve[model]["ready"] == [True] * 7


@pytest.mark.parametrize("protocol", ["v1", "v2", "grpc"])
@pytest.mark.parametrize("model", MODELS)
def test_kserves_answer_is_the_librarys(
    from_kserve: dict[str, Any], model: str, protocol: str, answers: dict[str, Answers]
) -> None:
    found = np.reshape(from_kserve[model][protocol], answers[model].default.shape)
    np.testing.assert_allclose(found, answers[model].default, rtol=1e-6)


def test_the_rest_client_explains(from_kserve: dict[str, Any], answers: dict[str, Answers]) -> None:
    found = from_kserve["rest"]
    assert np.shape(found["explanations"]) == (3, 3, 5)
    assert "cannot explain" in found["explain of a model that cannot"]


def test_the_rest_client_sends_json_headers_and_whole_addresses(
    from_kserve: dict[str, Any], answers: dict[str, Answers]
) -> None:
    found, known = from_kserve["rest"], answers["iris-xgboost"].default
    np.testing.assert_allclose(np.reshape(found["json"], known.shape), known, rtol=1e-6)
    np.testing.assert_allclose(found["graph"], known, rtol=1e-6)
    assert found["headers"] == "mine-7"
    assert found["v1 live"] is True


def test_the_rest_client_hears_of_an_unknown_model(from_kserve: dict[str, Any]) -> None:
    found = from_kserve["rest"]
    assert found["v2 ready of nobody"] is False
    assert 'model "nobody" is not found' in found["v1 ready of nobody"]
    assert 'model "nobody" is not found' in found["infer of nobody"]


def test_the_grpc_client_sends_metadata_and_hears_of_errors(
    from_kserve: dict[str, Any], answers: dict[str, Answers]
) -> None:
    found, known = from_kserve["grpc"], answers["iris-xgboost"].default
    np.testing.assert_allclose(np.reshape(found["headers"], known.shape), known, rtol=1e-6)
    assert "NOT_FOUND" in found["ready of nobody"]
    assert 'model "nobody" is not found' in found["infer of nobody"]


@pytest.mark.parametrize("client", ["rest", "grpc"])
def test_kserves_closed_client_asks_nothing_more(from_kserve: dict[str, Any], client: str) -> None:
    assert "closed" in from_kserve[client]["closed"]
