# SPDX-License-Identifier: Apache-2.0
"""What is said when the user's own class cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.model import load_model


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica keeps its model's folder importable; the tests after these are not to find it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def _load(folder: Path, entrypoint: str = "model:Model") -> None:
    load_model("custom", folder, {"entrypoint": entrypoint})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import nonsense_that_is_not", "No module named 'nonsense_that_is_not'"),
        ("def broken(:", "SyntaxError"),
        ("", "expected a subclass of modelyard.Model, got nothing of that name"),
        ("Model = 3", "got int 3"),
        ("class Model: pass", "expected a subclass of modelyard.Model"),
        ("import modelyard\nclass Model(modelyard.Model): pass", "predict is missing"),
        (
            "import modelyard\nclass Model(modelyard.Model):\n    signature = 3\n    def predict(self, *_): ...",
            "expected a modelyard.Signature, got int",
        ),
        (
            (
                "import modelyard\nclass Model(modelyard.Model):\n    signature = 3\n    def predict(self, *_): ...\n"
                "    def load(self, path, settings):\n        raise OSError('no weights')"
            ),
            "OSError: no weights",
        ),
    ],
)
def test_a_class_that_cannot_be_had_says_why(tmp_path: Path, source: str, text: str) -> None:
    name = f"model_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    with pytest.raises(ModelLoadError, match=text):
        _load(tmp_path, f"{name}:Model")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            '(Spec("x", "FLOAT", (-1,)),), (Spec("y", "FP32", (-1,)),)',
            'tensor "x": expected a datatype of .* got "FLOAT"',
        ),
        (
            '(Spec("x", "FP32", ()),), (Spec("y", "FP32", (-1,)),)',
            r'tensor "x": expected rows .* got \[\]; say batch_axis',
        ),
        ('(Spec("x", "FP32", (-1,)),), (Spec("y", "FP32", (4,)),)', r'tensor "y": expected rows .* got \[4\]'),
        ('(Spec("x", "FP32", (-1,)),), ()', "expected at least one output"),
    ],
)
def test_a_signature_that_could_answer_nothing_is_refused(tmp_path: Path, given: str, text: str) -> None:
    name = f"model_{abs(hash(given))}"
    (tmp_path / f"{name}.py").write_text(
        "import modelyard\nfrom modelyard import TensorSpec as Spec\nclass Model(modelyard.Model):\n"
        f"    signature = modelyard.Signature({given})\n    def predict(self, *_): ..."
    )
    with pytest.raises(ModelLoadError, match=text):
        _load(tmp_path, f"{name}:Model")


def test_a_missing_module_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="No module named 'absent_model'"):
        _load(tmp_path, "absent_model:Model")


def test_a_name_that_is_taken_says_so(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ModelLoadError, match="rename it where the name is taken"):
        _load(tmp_path, "json:Model")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("")
    with pytest.raises(ModelLoadError, match="expected a folder"):
        _load(tmp_path / "model.py")


@pytest.mark.parametrize("entrypoint", ["model", "model.Model", ":Model", "model:", "../model:Model", "a b:C"])
def test_an_entrypoint_that_is_none_is_refused_before_loading(tmp_path: Path, entrypoint: str) -> None:
    with pytest.raises(InvalidConfig, match="entrypoint"):
        _load(tmp_path, entrypoint)
