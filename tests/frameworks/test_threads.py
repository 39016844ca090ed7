# SPDX-License-Identifier: Apache-2.0
"""One thread predicts unless an option says otherwise, whatever the model was saved with."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelyard.model import load_model

PROGRAM = """
import pathlib, sys, threading
import numpy as np
from modelyard.model import load_model

framework, folder = sys.argv[1:]
model = load_model(framework, pathlib.Path(folder), {})
rows = model.signature.bind({"x": np.random.default_rng(0).random((50_000, 4))})
counts = []

def predict():
    tasks = pathlib.Path("/proc/self/task")
    before = len(list(tasks.iterdir()))
    model.predict(rows, ("output-0",), {})
    counts.append(len(list(tasks.iterdir())) - before)

thread = threading.Thread(target=predict)
thread.start()
thread.join()
print(counts[0])
"""

CASES = {
    "forest": ("sklearn", "forest_saved_with_all_threads"),
    "boosting": ("sklearn", "boosting_saved_with_all_threads"),
    "xgboost": ("xgboost", "regression"),
    "lightgbm": ("lightgbm", "regression"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("key", CASES)
def test_prediction_starts_no_thread(key: str, tmp_path: Path, trainers: Any) -> None:
    framework, case = CASES[key]
    trainers(framework)[case](tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, framework, str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("0", 0), done.stderr


def test_more_threads_are_an_option(tmp_path: Path, trainers: Any) -> None:
    trainers("sklearn")["forest_saved_with_all_threads"](tmp_path)
    model: Any = load_model("sklearn", tmp_path, {"n_jobs": 2})
    assert model._estimator.n_jobs == 2
