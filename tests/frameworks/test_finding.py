# SPDX-License-Identifier: Apache-2.0
"""Frameworks are found without being imported, and a third party can add one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.model import get_framework, list_frameworks, load_model, refresh_frameworks

LIBRARIES = (
    *("sklearn", "xgboost", "lightgbm", "onnx", "onnxruntime", "torch", "pypmml", "jpype", "paddle", "tensorflow"),
    *("keras", "mlflow", "pandas", "joblib", "skops", "scipy", "threadpoolctl", "ray", "transformers", "vllm"),
)


def test_importing_framework_modules_imports_no_library() -> None:
    code = f"""
import pkgutil, importlib, sys
import modelyard_deployments
for module in pkgutil.iter_modules(modelyard_deployments.__path__):
    if not module.name.startswith("_"):  # some of these are imported when a model is loaded, and not before
        importlib.import_module("modelyard_deployments." + module.name)
import modelyard.testing
assert not set({LIBRARIES}) & set(sys.modules), set({LIBRARIES}) & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_listing_imports_no_framework_module() -> None:
    code = """
import sys
from modelyard.model import list_frameworks
assert {"sklearn", "xgboost", "lightgbm"} <= set(list_frameworks())
assert not [name for name in sys.modules if name.startswith("modelyard_deployments")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_framework_of_a_third_party_is_found(fake_distribution: None, tmp_path: Path) -> None:
    (tmp_path / "model.fake").write_text("1")
    assert "fake" in list_frameworks()
    assert type(get_framework("fake")).__name__ == "FakeFramework"
    model = load_model("fake", tmp_path, {"columns": ["a", "b"]})
    assert model.predict({"input-0": np.array([[1.0, 2.0]])}, ("output-0",), {})["output-0"].tolist() == [4.0]


@pytest.mark.parametrize("target", ["nosuch_module:Thing", "modelyard.testing:NoSuchThing"])
def test_framework_that_cannot_be_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[modelyard.frameworks]\nbroken = {target}\n")
    monkeypatch.syspath_prepend(tmp_path)
    refresh_frameworks()
    with pytest.raises(InvalidConfig, match=r'"broken".*cannot be imported'):
        get_framework("broken")
    monkeypatch.undo()
    refresh_frameworks()


def test_unknown_framework_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidConfig, match=r'custom, .*lightgbm, .*sklearn, .*xgboost, got "nosuch"'):
        get_framework("nosuch")


@pytest.mark.parametrize("framework", ["sklearn", "xgboost", "lightgbm", "fake"])
def test_unknown_option_is_refused(fake_distribution: None, framework: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"options\.nosuch: "):
        load_model(framework, tmp_path, {"nosuch": 1})


@pytest.mark.parametrize(("framework", "suffix"), [("sklearn", ".joblib"), ("xgboost", ".ubj"), ("lightgbm", ".txt")])
def test_folder_without_a_model_says_what_it_holds(framework: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(ModelLoadError, match=rf"expected one file ending in .*\{suffix}.*, got none.*notes\.md"):
        load_model(framework, tmp_path, {})


def test_folder_with_several_models_asks_for_one(fake_distribution: None, tmp_path: Path) -> None:
    for name, bias in (("a.fake", "1"), ("b.fake", "2")):
        (tmp_path / name).write_text(bias)
    with pytest.raises(ModelLoadError, match=r"got 2: a\.fake, b\.fake; choose one with the option model_file"):
        load_model("fake", tmp_path, {})
    model = load_model("fake", tmp_path, {"model_file": "b.fake"})
    assert model.predict({"input-0": np.zeros((1, 4))}, ("output-0",), {})["output-0"].tolist() == [2.0]


def test_hidden_files_are_no_models(fake_distribution: None, tmp_path: Path) -> None:
    (tmp_path / "model.fake").write_text("1")
    (tmp_path / "._model.fake").write_text("left by another system")
    load_model("fake", tmp_path, {})


@pytest.mark.parametrize("outside", ["../secret.fake", "/etc/hostname"])
def test_model_file_outside_the_folder_is_refused(fake_distribution: None, tmp_path: Path, outside: str) -> None:
    with pytest.raises(ModelLoadError, match="outside"):
        load_model("fake", tmp_path, {"model_file": outside})


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "\ud800"])
def test_a_model_file_that_no_file_can_be_is_refused(fake_distribution: None, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelLoadError, match="is no name that a file can have") as caught:
        load_model("fake", tmp_path, {"model_file": name})
    assert str(tmp_path) not in str(caught.value)


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.txt").write_text("tree\n")
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ModelLoadError, match=r'pip install "modelyard\[lightgbm\]"'):
        load_model("lightgbm", tmp_path, {})
