# SPDX-License-Identifier: Apache-2.0
"""Files that are missing, damaged or foreign fail to load with a sentence that says why; none ends the process."""

import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import ModelLoadError
from modelyard.model import load_model
from modelyard_deployments._tensorflow_start import import_keras, import_tensorflow


@pytest.fixture
def folder(tmp_path: Path, trainers: Any) -> Path:
    trainers("tensorflow")["several_signatures"](tmp_path)
    return tmp_path


@pytest.fixture
def archive(tmp_path: Path, trainers: Any) -> Path:
    trainers("tensorflow")["keras_sequential"](tmp_path)
    return tmp_path / "model.keras"


def _refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model("tensorflow", folder, options)
    message = str(caught.value)
    assert str(folder) not in message
    assert "/tmp" not in message
    assert "Traceback" not in message
    return message


# -- which files


def test_model_file_chooses_among_several(tmp_path: Path, trainers: Any) -> None:
    trainers("tensorflow")["model_in_a_folder_of_its_own"](tmp_path)
    trainers("tensorflow")["keras_functional"](tmp_path)
    assert "expected one model, got 2: export, model.keras; choose one with the option model_file" in _refusal(tmp_path)
    for name, inputs in (("export", 1), ("export/saved_model.pb", 1), ("model.keras", 2)):
        assert len(load_model("tensorflow", tmp_path, {"model_file": name}).signature.inputs) == inputs
    assert "expected a SavedModel (saved_model.pb) or a Keras model (.keras, .h5), got README.md" in _refusal(
        tmp_path, model_file="README.md"
    )


def test_folder_without_a_model_lists_what_it_holds(tmp_path: Path) -> None:
    assert "got neither; the directory holds nothing" in _refusal(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"1")
    (tmp_path / "export").mkdir()
    assert "got neither; the directory holds export, weights.bin" in _refusal(tmp_path)


def test_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "nothing") == "the model's location does not exist"


# -- SavedModels


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "saved_model.pb: the file is empty"),
        (b"hello", "saved_model.pb: expected a SavedModel, got something else or a part of one"),
        (b"\xff" * 9, "saved_model.pb: expected a SavedModel, got something else or a part of one"),
        (b"\x08\x01", "saved_model.pb: expected a SavedModel, got something else or a part of one"),  # has no graph
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_foreign_graph_is_refused(folder: Path, content: bytes, reason: str) -> None:
    (folder / "saved_model.pb").write_bytes(content)
    assert reason in _refusal(folder)


def test_error_has_the_version_of_tensorflow(folder: Path) -> None:
    (folder / "variables" / "variables.index").write_bytes(b"hello")
    version = import_tensorflow().__version__
    assert _refusal(folder).startswith(f"TensorFlow {version} cannot load this SavedModel: ")


def test_missing_variables_are_named(folder: Path) -> None:
    for path in (folder / "variables").iterdir():
        path.unlink()
    assert "variables" in _refusal(folder)


def test_variables_that_are_a_pointer_are_refused(folder: Path) -> None:
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n"
    )
    assert "variables.data-00000-of-00001: the file is a pointer of Git LFS" in _refusal(folder)


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_variables_cut_off_are_refused(folder: Path, name: str, share: float) -> None:
    path = folder / "variables" / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "cannot load this SavedModel" in _refusal(folder)


def test_variables_of_another_model_are_refused(folder: Path, tmp_path: Path, trainers: Any) -> None:
    other = tmp_path / "other"
    other.mkdir()
    trainers("tensorflow")["image"](other)
    for path in (other / "variables").iterdir():
        (folder / "variables" / path.name).write_bytes(path.read_bytes())
    assert "cannot load this SavedModel" in _refusal(folder)


def test_missing_asset_is_named(tmp_path: Path, trainers: Any) -> None:
    trainers("tensorflow")["table_in_a_file"](tmp_path)
    (tmp_path / "assets" / "words.txt").unlink()
    assert "words.txt" in _refusal(tmp_path)


def test_unknown_operation_is_named_without_the_host(folder: Path) -> None:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = folder / "saved_model.pb"
    saved = SavedModel.FromString(path.read_bytes())
    saved.meta_graphs[0].graph_def.node[-1].op = "OpOfMine"
    path.write_bytes(saved.SerializeToString())
    message = _refusal(folder)
    assert "OpOfMine" in message
    assert "running on" not in message


PROGRAM = """
import pathlib, random, sys
from modelyard.errors import ModelLoadError
from modelyard.model import load_model

folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
path = folder / name
data = path.read_bytes()
random.seed(7)
damaged = [data[:length] for length in range(0, len(data), max(1, len(data) // 10))]
for _ in range(10):
    place = random.randrange(len(data))
    damaged.append(data[:place] + bytes([random.randrange(256)]) + data[place + 1:])
refused = 0
for content in damaged:
    path.write_bytes(content)
    try:
        load_model("tensorflow", folder, {}).close()
    except ModelLoadError as exc:
        assert str(folder) not in str(exc), exc
        refused += 1
print(refused >= 10)
"""


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("several_signatures", "saved_model.pb"),
        ("several_signatures", "variables/variables.index"),
        ("keras_sequential", "model.keras"),
    ],
)
def test_damaged_file_never_ends_the_process(case: str, name: str, tmp_path: Path, trainers: Any) -> None:
    trainers("tensorflow")[case](tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.stdout.strip(), done.returncode) == ("True", 0), done.stderr


# -- Keras


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "model.keras: the file is empty"),
        (b"hello", "model.keras: expected a Keras archive, got something else or a part of one"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_foreign_archive_is_refused(archive: Path, content: bytes, reason: str) -> None:
    archive.write_bytes(content)
    assert reason in _refusal(archive.parent)


@pytest.mark.parametrize(
    ("part", "content", "reason"),
    [
        ("config.json", None, "expected a Keras archive with config.json, got a zip archive without"),
        ("config.json", b"{}", "cannot load this model"),
        ("config.json", b"{", "cannot load this model"),
        ("model.weights.h5", None, "Expected a model.weights.h5"),
        ("model.weights.h5", b"hello", "cannot load this model"),
    ],
)
def test_archive_with_a_foreign_part_is_refused(archive: Path, part: str, content: bytes | None, reason: str) -> None:
    with zipfile.ZipFile(archive) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(archive, "w") as new:
        for name, data in parts.items():
            if name != part or content is not None:
                new.writestr(name, content if name == part and content is not None else data)
    message = _refusal(archive.parent)
    assert message.startswith("model.keras: ")
    assert reason in message


def test_foreign_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"hello")
    assert _refusal(tmp_path) == "model.h5: expected a file in HDF5's format, got something else"


def _save(layer: Any, path: Path) -> None:
    keras = import_keras()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Keras has variables that numpy finds old
        keras.Sequential([keras.Input((4,)), layer]).save(path)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_code_in_a_keras_model_is_not_run(name: str, tmp_path: Path) -> None:
    _save(import_keras().layers.Lambda(lambda x: x * 2), tmp_path / name)
    message = _refusal(tmp_path)
    assert message.startswith(
        f"{name}: the model has a Lambda layer, which is Python code in the file, and that is not"
    )
    assert "safe_mode" not in message


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_class_that_is_not_keras_own_is_named(name: str, tmp_path: Path) -> None:
    class Mine(import_keras().layers.Layer):  # type: ignore[misc]  # untyped
        def call(self, x: Any) -> Any:
            return x + 1

    _save(Mine(), tmp_path / name)
    assert f'{name}: the model has a class of its own, "Mine", whose code is not in the file' in _refusal(tmp_path)


def test_keras_model_that_was_never_built_is_refused(tmp_path: Path) -> None:
    keras = import_keras()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # just this
        keras.Sequential([keras.layers.Dense(2)]).save(tmp_path / "model.keras")
    assert "model.keras: the model does not say what it takes, for it was never built" in _refusal(tmp_path)
