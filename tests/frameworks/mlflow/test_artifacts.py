# SPDX-License-Identifier: Apache-2.0
"""Folders that are no whole MLflow model fail to load with a sentence that says why; none of them ends the process."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from modelyard.errors import ModelLoadError
from modelyard.model import load_model
from modelyard_deployments._mlflow_files import import_mlflow, quiet

FILES = {
    "sklearn_table": "model.skops",
    "sklearn_texts": "model.pkl",
    "xgboost_booster": "model.ubj",
    "lightgbm_booster": "model.lgb",
    "lightgbm_classifier": "model.skops",
    "python_params": "python_model.pkl",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, trainers: Any) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def save(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp(case)
            trainers("mlflow")[case](made[case])
        return made[case]

    return save


@pytest.fixture
def copy(saved: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    def make(case: str) -> Path:
        target = tmp_path / "model"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(saved(case), target))

    return make


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / "MLmodel"
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))


@pytest.mark.parametrize("case", FILES)
def test_a_truncated_file_is_refused(case: str, copy: Callable[[str], Path]) -> None:
    folder = copy(case)
    path = folder / FILES[case]
    data = path.read_bytes()
    marker = data.find(b"\nend of trees")
    end = marker if marker > 0 else len(data) - 1
    for length in (0, 1, 10, *np.linspace(20, end, 15, dtype=int).tolist()):
        path.write_bytes(data[:length])
        with pytest.raises(ModelLoadError):
            load_model("mlflow", folder, {})


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("content", [b"hello", b"\x00" * 100, b"version https://git-lfs.github.com/spec", None])
def test_other_content_is_refused(case: str, content: bytes | None, copy: Callable[[str], Path]) -> None:
    folder = copy(case)
    path = folder / FILES[case]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        load_model("mlflow", folder, {})
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "expected a folder with an MLmodel file"),
        (b"", "MLmodel"),
        (b"hello", "MLmodel"),
        (b"\x00\xff", "MLmodel"),
        (b"[1, 2]", "MLmodel"),
        (b"flavors: {}", "MLmodel"),
        (b"flavors: {sklearn: {pickled_model: x}}", "flavor python_function, got sklearn"),
        (b"flavors: {python_function: {env: conda.yaml}}", "no loader_module"),
        (b"flavors: {python_function: {loader_module: nosuch.module}}", 'needs the module "nosuch"'),
        (b"flavors: {python_function: {loader_module: json}}", "cannot be loaded by json"),
    ],
)
def test_a_description_that_is_none_is_refused(content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "MLmodel").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"MLmodel|model") as caught:
        load_model("mlflow", tmp_path, {})
    assert reason in str(caught.value)


@pytest.mark.parametrize("schema", ["[", "{}", '[{"type": "nosuch"}]', '[{"type": "tensor", "tensor-spec": {}}]', "1"])
def test_a_damaged_signature_is_refused(schema: str, copy: Callable[[str], Path]) -> None:
    folder = copy("sklearn_table")
    edit(folder, lambda document: document["signature"].update(inputs=schema))
    with pytest.raises(ModelLoadError, match="MLmodel"):
        load_model("mlflow", folder, {})


@pytest.mark.parametrize("dtype", ["complex128", "datetime64[ns]"])
def test_a_tensor_that_no_request_can_carry_is_refused(dtype: str, copy: Callable[[str], Path]) -> None:
    folder = copy("tensor_without_name")
    schema = [{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1]}}]
    edit(folder, lambda document: document["signature"].update(inputs=json.dumps(schema)))
    with pytest.raises(ModelLoadError, match="which no request can carry"):
        load_model("mlflow", folder, {})


def test_a_missing_module_is_told_with_the_setting_that_brings_it(copy: Callable[[str], Path]) -> None:
    folder = copy("sklearn_table")
    edit(folder, lambda document: document["flavors"]["python_function"].update(loader_module="nosuch_flavor"))
    (folder / "requirements.txt").write_text("nosuch-package==1.2\nnumpy==1.0.0 # old\n-e .\n\nmlflow\nscikit-learn\n")
    with pytest.raises(ModelLoadError) as caught:
        load_model("mlflow", folder, {})
    assert 'needs the module "nosuch_flavor"' in str(caught.value)
    assert "not installed: nosuch-package==1.2; numpy==1.0.0 (installed is" in str(caught.value)
    assert 'with `runtime: {pip: ["nosuch-package==1.2"]}` it gets what it asks for' in str(caught.value)


def test_a_model_that_needs_other_versions_is_told_with_the_setting_that_brings_them(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("sklearn_texts")
    (folder / "model.pkl").write_bytes(b"csklearn.externals.joblib\nload\n.")  # gone since scikit-learn 0.23
    (folder / "requirements.txt").write_text("scikit-learn==0.22.1\npandas\nxgboost==1.0\n")
    with pytest.raises(ModelLoadError) as caught:
        load_model("mlflow", folder, {})
    assert "scikit-learn==0.22.1 (installed is" in str(caught.value)
    assert 'with `runtime: {pip: ["scikit-learn==0.22.1", "xgboost==1.0"]}`' in str(caught.value)


@pytest.fixture
def unanswering(tmp_path: Path) -> Callable[[str], Path]:
    """A model with requirements that loads, and lacks an attribute as what an older scikit-learn has pickled does."""
    import_mlflow()
    import mlflow.sklearn
    import pandas as pd
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline

    def save(requirement: str) -> Path:
        table = pd.DataFrame({"a": [1.0, 2.0, 4.0]})
        model = make_pipeline(SimpleImputer(), LinearRegression()).fit(table, table["a"])
        del model[0]._fill_dtype
        with quiet():
            mlflow.sklearn.save_model(
                model,
                tmp_path / "model",
                serialization_format="cloudpickle",
                signature=mlflow.models.infer_signature(table, table["a"].to_numpy()),
                input_example=table,
                pip_requirements=[requirement],
            )
        return tmp_path / "model"

    return save


def test_a_model_that_needs_another_version_for_its_own_example_is_refused(
    unanswering: Callable[[str], Path],
) -> None:
    folder = unanswering("scikit-learn==1.2.2")
    with pytest.raises(ModelLoadError) as caught:
        load_model("mlflow", folder, {})
    assert "cannot answer the example that was saved with it: AttributeError" in str(caught.value)
    assert 'with `runtime: {pip: ["scikit-learn==1.2.2"]}` it gets what it asks for' in str(caught.value)


def test_an_example_that_is_not_answered_for_another_reason_is_a_line_in_the_log(
    unanswering: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = unanswering("scikit-learn")
    with caplog.at_level(logging.WARNING):
        load_model("mlflow", folder, {})
    assert "does not answer the example that was saved with it: AttributeError" in caplog.messages[-1]


def test_another_environment_is_one_line_in_the_log(
    copy: Callable[[str], Path], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copy("sklearn_table")
    edit(folder, lambda document: document.update(mlflow_version="1.30.0"))
    edit(folder, lambda document: document["flavors"]["python_function"].update(python_version="3.8.1"))
    (folder / "requirements.txt").write_text("scikit-learn==0.24.1\n")
    with caplog.at_level(logging.WARNING):
        load_model("mlflow", folder, {})
    (record,) = [record for record in caplog.records if record.name.startswith("modelyard_deployments")]
    text = record.getMessage()
    assert "scikit-learn==0.24.1 (installed is" in text
    assert "saved by Python 3.8.1" in text
    assert "saved by mlflow 1.30.0" in text
    assert text.endswith('with `runtime: {pip: ["scikit-learn==0.24.1"]}` it gets what it asks for')
    assert capfd.readouterr() == ("", "")
