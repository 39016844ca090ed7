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
