# SPDX-License-Identifier: Apache-2.0
"""Files that are missing, damaged or foreign fail to load with a sentence that says why; none ends the process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import ModelLoadError
from modelyard.model import load_model


@pytest.fixture
def folder(tmp_path: Path, trainers: Any) -> Path:
    trainers("paddle")["classifier"](tmp_path)
    (tmp_path / "config.json").unlink()
    return tmp_path


def _refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model("paddle", folder, options)
    assert str(folder) not in str(caught.value)
    assert "/paddle/" not in str(caught.value)
    return str(caught.value)


def test_names_may_differ_where_there_is_one_of_each(folder: Path) -> None:
    (folder / "inference.pdiparams").rename(folder / "weights.pdiparams")
    assert load_model("paddle", folder, {}).signature.batch_axis


def test_program_can_be_chosen(folder: Path) -> None:
    for suffix in (".json", ".pdiparams"):
        (folder / f"other{suffix}").write_bytes((folder / f"inference{suffix}").read_bytes())
    assert "expected one program, got 2: inference.json, other.json; choose one with" in _refusal(folder)
    assert load_model("paddle", folder, {"model_file": "other.json"}).signature.batch_axis
    assert "expected a program, .json or .pdmodel, got the parameters" in _refusal(folder, model_file="other.pdiparams")


def test_missing_parameters_are_named(folder: Path) -> None:
    (folder / "inference.pdiparams").unlink()
    assert _refusal(folder) == ("inference.json has parameters: expected them in inference.pdiparams, got no such file")


def test_missing_program_lists_the_directory(folder: Path) -> None:
    (folder / "inference.json").unlink()
    assert "expected a program, .json or .pdmodel, got none; the directory has inference.pdiparams" in _refusal(folder)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "the directory has nothing" in _refusal(tmp_path)


@pytest.mark.parametrize("missing", [1, 100, 150, 300])
def test_parameters_cut_off_are_refused(folder: Path, missing: int) -> None:
    path = folder / "inference.pdiparams"
    path.write_bytes(path.read_bytes()[:-missing])
    assert "inference.pdiparams is cut off" in _refusal(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty, but inference.json has parameters"),
        (b"hello", "is cut off"),
        (b"\x00" * 100, "expected Paddle's parameters, got something else"),
        (b"\xff" * 400, "expected Paddle's parameters, got something else"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "got something else"),
    ],
)
def test_foreign_parameters_are_refused(folder: Path, content: bytes, reason: str) -> None:
    (folder / "inference.pdiparams").write_bytes(content)
    message = _refusal(folder)
    assert message.startswith("inference.pdiparams")
    assert reason in message


def test_parameters_of_another_program_are_refused(folder: Path, tmp_path: Path, trainers: Any) -> None:
    (tmp_path / "other").mkdir()
    trainers("paddle")["several_inputs_and_outputs"](tmp_path / "other")
    (folder / "inference.pdiparams").write_bytes((tmp_path / "other" / "model.pdiparams").read_bytes())
    assert "cannot run this model" in _refusal(folder)


@pytest.mark.parametrize("suffix", [".json", ".pdmodel"])
@pytest.mark.parametrize("content", [b"", b"hello", b"{}", b"[]", bytes(100), b'{"base_code":{"magic":"pir"}}'])
def test_foreign_program_is_refused(folder: Path, suffix: str, content: bytes) -> None:
    (folder / "inference.json").unlink()
    (folder / f"inference{suffix}").write_bytes(content)
    assert _refusal(folder).startswith(f"inference{suffix}: ")


@pytest.mark.filterwarnings("ignore:No ccache found", "ignore:no variable in your model")  # Paddle's import and save
def test_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    import paddle

    class Same(paddle.nn.Layer):  # type: ignore[misc]  # untyped
        def forward(self, x: Any) -> Any:
            return x * 2, x

    paddle.jit.save(Same(), str(tmp_path / "model"), input_spec=[paddle.static.InputSpec([None, 2], "float32", "x")])
    assert "More than one shadow output named with x" in _refusal(tmp_path)


PROGRAM = """
import pathlib, sys
import numpy as np
from modelyard.errors import ModelLoadError
from modelyard.model import load_model

def answer():
    model = load_model("paddle", folder, {})
    name = model.signature.outputs[0].name
    return model.predict({"x": np.ones((2, 4), np.float32)}, (name,), {})[name]

folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
data = (folder / name).read_bytes()
expected = answer()
whole = 0
for length in range(0, len(data), max(1, len(data) // 60)):
    (folder / name).write_bytes(data[:length])
    try:
        # Protocol buffers do not tell where they end: without its last field, which says with what version of each
        # operator it was made, a program is whole.
        assert np.array_equal(answer(), expected), length
        whole += 1
    except ModelLoadError:
        pass
print(whole <= 1)
"""


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("classifier", "inference.json"),
        ("classifier", "inference.pdiparams"),
        ("old_program", "model.pdmodel"),
        ("old_program", "model.pdiparams"),
    ],
)
def test_truncated_file_never_ends_the_process(case: str, name: str, tmp_path: Path, trainers: Any) -> None:
    trainers("paddle")[case](tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), name], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("True", 0), done.stderr
