# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Serving's base path, a folder of numbered SavedModels, is what the platform takes for versions."""

from pathlib import Path

import numpy as np
import pytest

from modelyard.errors import ModelLoadError
from modelyard.model import get_framework, load_model
from modelyard.store.versions import is_version_folder, list_versions
from modelyard_deployments._tensorflow_start import import_tensorflow


@pytest.fixture
def base_path(tmp_path: Path) -> Path:
    tf = import_tensorflow()
    spec = tf.TensorSpec([None], tf.float32, "x")
    for name, number in (("1", 1.0), ("00000123", 123.0)):
        plus = tf.function(lambda x, number=number: {"y": x + number}, input_signature=[spec])
        tf.saved_model.save(tf.Module(), str(tmp_path / name), signatures={"serving_default": plus})
    return tmp_path


def test_numbered_folders_are_versions(base_path: Path) -> None:
    suffixes = get_framework("tensorflow").suffixes
    assert list_versions(base_path) == {1: "1", 123: "00000123"}
    assert is_version_folder(base_path, suffixes)
    assert not is_version_folder(base_path / "1", suffixes)


@pytest.mark.parametrize(("name", "answer"), [("1", 2), ("00000123", 124)])
def test_each_version_is_a_model(base_path: Path, name: str, answer: float) -> None:
    model = load_model("tensorflow", base_path / name, {})
    assert model.predict({"x": np.float32([1])}, ("y",), {})["y"].tolist() == [answer]  # type: ignore[index]


def test_a_version_can_be_served_alone_by_its_number(base_path: Path) -> None:
    assert load_model("tensorflow", base_path, {"model_file": "1"}).signature.batch_axis
    with pytest.raises(ModelLoadError, match="expected one model, got 2: 00000123, 1; choose one with the option"):
        load_model("tensorflow", base_path, {})
