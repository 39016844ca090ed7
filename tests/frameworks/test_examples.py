# SPDX-License-Identifier: Apache-2.0
"""The example models train, load and answer; a second run does nothing and imports nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modelyard.model import load_model
from modelyard_deployments.examples import PLATFORM, make_examples
from modelyard_deployments.examples.__main__ import main

IRIS = np.array([[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    assert len(make_examples(directory)) == len(PLATFORM)
    return directory


@pytest.mark.parametrize("framework", ["sklearn", "xgboost", "lightgbm"])
def test_iris_answers_as_kserves_example_does(models: Path, framework: str) -> None:
    model = load_model(framework, models / f"iris-{framework}", {})
    answer = model.predict(model.signature.bind({"input-0": IRIS}), ("predict",), {})
    assert answer["predict"].tolist() == [1, 1]


def test_breast_cancer_takes_thirty_named_columns(models: Path) -> None:
    signature = load_model("sklearn", models / "breast-cancer", {}).signature
    assert (signature.inputs[0].shape, signature.columns[0]) == ((-1, 30), "mean radius")
    assert "predict_proba" in [spec.name for spec in signature.on_request]


def test_housing_takes_numbers_and_text(models: Path) -> None:
    signature = load_model("sklearn", models / "housing", {}).signature
    datatypes = {spec.name: spec.datatype for spec in signature.inputs}
    assert datatypes == {
        "area_m2": "FP64",
        "rooms": "FP64",
        "age_years": "FP64",
        "district": "BYTES",
        "heating": "BYTES",
    }


def test_training_again_makes_the_same_files(models: Path, tmp_path: Path) -> None:
    for path in make_examples(tmp_path):
        assert path.read_bytes() == (models / path.relative_to(tmp_path)).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(PLATFORM)


def test_only_the_named_models_are_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path), "--only", "iris-sklearn"])
    assert capsys.readouterr().out == f"trained {tmp_path}/iris-sklearn/model.joblib\n"
    assert [path.name for path in tmp_path.iterdir()] == ["iris-sklearn"]


def test_second_run_imports_no_library(models: Path) -> None:
    code = (
        "import sys; from modelyard_deployments.examples.__main__ import main; main([sys.argv[1]]); "
        "assert not {'sklearn', 'xgboost', 'lightgbm', 'onnx', 'torch', 'tensorflow', 'paddle', 'mlflow'}"
        " & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(models)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
