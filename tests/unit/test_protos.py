# SPDX-License-Identifier: Apache-2.0
"""The messages of TensorFlow Serving: made from their definitions as they are now, in a pool of their own."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pool

from modelyard import protos
from modelyard.protos import compile as compiler
from modelyard.protos import tensorflow_packed_pb2 as packed
from modelyard.protos import tensorflow_pb2, tensorflow_serving_pb2

MADE = sorted(path.name for path in compiler.FOLDER.iterdir() if path.suffix in (".bin", ".pyi"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protos")
    assert compiler.compile_protos(folder) == 0
    return folder / "modelyard" / "protos"


def test_each_definition_has_its_module() -> None:
    names = {path.stem for path in compiler.FOLDER.glob("*.proto")}
    assert names == {path.stem.removesuffix("_pb2") for path in compiler.FOLDER.glob("*_pb2.py")}
    assert {f"{name}_pb2.pyi" for name in names} | {"descriptors.bin"} == set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_what_is_checked_in_is_what_the_compiler_makes(made: Path, name: str) -> None:
    is_same = (compiler.FOLDER / name).read_bytes() == (made / name).read_bytes()
    assert is_same, "run python -m modelyard.protos.compile"


@pytest.mark.parametrize("module", [tensorflow_pb2, tensorflow_serving_pb2, packed])
def test_every_message_can_be_pickled(module) -> None:
    messages = [item for item in vars(module).values() if hasattr(item, "SerializeToString")]
    assert messages
    for message in messages:
        assert type(pickle.loads(pickle.dumps(message()))) is message


def test_the_processes_own_pool_gets_them_only_when_told() -> None:
    code = """
from google.protobuf import descriptor_pool
import modelyard.protos.tensorflow_serving_pb2
from modelyard import protos
name, found = "tensorflow.serving.PredictionService", []
for publish in (False, True, True):
    assert not publish or protos.publish()
    try:
        found.append(descriptor_pool.Default().FindServiceByName(name).full_name == name)
    except KeyError:
        found.append(False)
print(found)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, True, True]"


def test_packed_tensors_have_the_same_bytes() -> None:
    floats, doubles, flags = np.float32([0.1, np.nan, -np.inf]), np.float64([1e300, -0.0]), np.array([True, False])
    plain = tensorflow_pb2.TensorProto(dtype=1, float_val=floats, double_val=doubles, bool_val=flags, int_val=[-1, 300])
    compact = packed.Tensor(
        dtype=1,
        float_val=floats.tobytes(),
        double_val=doubles.tobytes(),
        bool_val=flags.tobytes(),
        int_val=[-1, 300],
    )
    for message in (plain, compact):
        message.tensor_shape.dim.add(size=3)
    assert compact.SerializeToString() == plain.SerializeToString()


def test_packed_fields_have_the_numbers_of_the_message_they_stand_for() -> None:
    pairs = (
        (packed.Tensor, tensorflow_pb2.TensorProto),
        (packed.PredictResponse, tensorflow_serving_pb2.PredictResponse),
    )
    for compact, plain in pairs:
        theirs = {field.name: field.number for field in plain.DESCRIPTOR.fields}
        ours = {field.name: field.number for field in compact.DESCRIPTOR.fields}
        assert ours.items() <= theirs.items()
    assert protos.load("modelyard.protos.tensorflow_pb2").keys() >= {"TensorProto", "DT_FLOAT", "DataType"}
    assert descriptor_pool.Default() is not packed.Tensor.DESCRIPTOR.file.pool
