# SPDX-License-Identifier: Apache-2.0
"""What is said when the user's own class cannot be had."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.model import Model, load_model


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica keeps its model's folder importable; the tests after these are not to find it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def own_modules() -> Iterator[None]:
    """Forgets the modules that a test has imported."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _load(path: Path, entrypoint: str | None = None) -> Model:
    return load_model("custom", path, {} if entrypoint is None else {"entrypoint": entrypoint})


CHURN = """
import modelyard


class Churn(modelyard.Model):
    def predict(self, text: str) -> int:
        return len(text)
"""


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "\nimport nonsense_that_is_no",
            (
                "ModuleNotFoundError: No module named 'nonsense_that_is_no' (NAME.py, line 2); a file of yours belongs "
                "into the model's folder, a package into runtime: {pip: [...]}"
            ),
        ),
        ("def broken(:", "SyntaxError: invalid syntax (NAME.py, line 1)"),
        ("import sys\nsys.exit(3)", "cannot be imported: SystemExit: 3 (NAME.py, line 2)"),
        ("", "expected a subclass of modelyard.Model, got nothing of that name"),
        (CHURN, "got nothing of that name; the module has Churn"),
        ("Model = 3", "got int 3"),
        ("class Model: pass", "got a class that is none: write class Model(modelyard.Model)"),
        ("from modelyard import Model", "got modelyard.Model itself"),
        ("import modelyard\nclass Model(modelyard.Model): pass", "predict is missing"),
        (
            (
                "import modelyard\nclass Model(modelyard.Model):\n    def __init__(self, size): ...\n"
                "    def predict(self, x: str) -> str: ..."
            ),
            "TypeError: Model.__init__() missing 1 required positional argument: 'size'",
        ),
        (
            "import modelyard\nclass Model(modelyard.Model):\n    signature = 3\n    def predict(self, *_): ...",
            "expected a modelyard.Signature, got int",
        ),
        (
            (
                "import modelyard\nclass Model(modelyard.Model):\n    signature = 3\n    def predict(self, *_): ...\n"
                "    def load(self, path, settings):\n        raise OSError('no weights')"
            ),
            "cannot be loaded: OSError: no weights (NAME.py, line 6)",
        ),
        (
            (
                "import modelyard\nclass Model(modelyard.Model):\n    def predict(self, x: str) -> str: ...\n"
                "    def load(self, path, settings):\n        (path / 'deep' / 'weights.bin').read_bytes()"
            ),
            "FileNotFoundError: [Errno 2] No such file or directory: 'deep/weights.bin' (NAME.py, line 5)",
        ),
        (
            (
                "import modelyard\nclass Model(modelyard.Model):\n    def predict(self, x: str) -> str: ...\n"
                "    def load(self, path, settings):\n        exit('no more')"
            ),
            "cannot be loaded: SystemExit: no more (NAME.py, line 5)",
        ),
    ],
)
def test_a_class_that_cannot_be_had_says_why(tmp_path: Path, source: str, text: str) -> None:
    name = f"model_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    with pytest.raises(ModelLoadError) as caught:
        _load(tmp_path, f"{name}:Model")
    assert text.replace("NAME", name) in str(caught.value)


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


@pytest.mark.usefixtures("own_modules")
def test_without_an_entrypoint_it_is_the_only_model_in_model_py(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(f"from modelyard import Model, Signature\n{CHURN}")
    assert type(_load(tmp_path)._model).__name__ == "Churn"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            f"{CHURN}\n\nclass Other(Churn): ...",
            "expected one subclass of modelyard.Model, got Churn, Other; the option",
        ),
        ("", 'module "model": expected one subclass of modelyard.Model, got none'),
    ],
)
def test_without_an_entrypoint_there_has_to_be_one_model(tmp_path: Path, source: str, text: str) -> None:
    (tmp_path / "model.py").write_text(source)
    with pytest.raises(ModelLoadError, match=text):
        _load(tmp_path)


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("entrypoint", [None, "one_file:Churn"])
def test_a_model_may_be_one_file(tmp_path: Path, entrypoint: str | None) -> None:
    (tmp_path / "one_file.py").write_text(CHURN)
    assert _load(tmp_path / "one_file.py", entrypoint).signature.inputs[0].name == "text"
    assert str(tmp_path) not in sys.path


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(
    ("name", "entrypoint", "text"),
    [
        ("notes.txt", None, "expected a Python file or a folder with some, got the file notes.txt"),
        ("one_file.py", "other:Churn", 'the file one_file.py is the module "one_file", and entrypoint names "other"'),
        ("json.py", None, 'the name of the file json.py is taken by another module "json"'),
        (
            "breaks.py",
            None,
            'module "breaks" cannot be imported: ZeroDivisionError: division by zero (breaks.py, line 1)',
        ),
    ],
)
def test_a_file_that_is_no_model_says_why(tmp_path: Path, name: str, entrypoint: str | None, text: str) -> None:
    (tmp_path / name).write_text("1 / 0")
    with pytest.raises(ModelLoadError) as caught:
        _load(tmp_path / name, entrypoint)
    assert text in str(caught.value)


@pytest.mark.parametrize("entrypoint", ["model", "model.Model", ":Model", "model:", "../model:Model", "a b:C"])
def test_an_entrypoint_that_is_none_is_refused_before_loading(tmp_path: Path, entrypoint: str) -> None:
    with pytest.raises(InvalidConfig, match="entrypoint"):
        _load(tmp_path, entrypoint)
