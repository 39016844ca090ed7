# SPDX-License-Identifier: Apache-2.0
"""Damaged, foreign and unsupported graphs fail to load with a sentence that says why; none of them ends the process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import ModelLoadError
from modelyard.model import load_model


@pytest.fixture
def graph(tmp_path: Path, trainers: Any) -> Path:
    trainers("onnx")["scores_with_named_classes"](tmp_path)
    return tmp_path / "model.onnx"


def _refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model("onnx", path.parent, options)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "Protobuf parsing failed"),
        (b"\x00" * 100, "Protobuf parsing failed"),
        (b"PK\x03\x04" + bytes(60), "Protobuf parsing failed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_other_content_is_refused(graph: Path, content: bytes, reason: str) -> None:
    graph.write_bytes(content)
    message = _refusal(graph)
    assert reason in message
    assert message.startswith("model.onnx: ")


PROGRAM = """
import pathlib, random, sys
from modelyard.errors import ModelLoadError
from modelyard.model import load_model

graph = pathlib.Path(sys.argv[1])
data = graph.read_bytes()
random.seed(7)
damaged = [data[:length] for length in range(1, len(data), 7)]
for _ in range(150):
    place = random.randrange(len(data))
    damaged.append(data[:place] + bytes([random.randrange(256)]) + data[place + 1:])
refused = 0
for content in damaged:
    graph.write_bytes(content)
    try:
        load_model("onnx", graph.parent, {})
    except ModelLoadError:
        refused += 1
print(refused > len(damaged) // 2)
"""


def test_damaged_files_are_refused_and_end_no_process(graph: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(graph)], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("True", 0), done.stderr


def test_missing_and_truncated_weights_are_named(tmp_path: Path, trainers: Any) -> None:
    trainers("onnx")["weights_beside_the_graph"](tmp_path)
    weights = tmp_path / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "External initializer: w" in _refusal(tmp_path / "model.onnx")
    weights.unlink()
    assert "model.onnx.data" in _refusal(tmp_path / "model.onnx")


def test_weights_outside_the_folder_are_refused(tmp_path: Path, trainers: Any) -> None:
    import onnx

    (tmp_path / "model").mkdir()
    trainers("onnx")["weights_beside_the_graph"](tmp_path / "model")
    path = tmp_path / "model" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    (location,) = (entry for entry in model.graph.initializer[0].external_data if entry.key == "location")
    location.value = "../secret"
    (path.parent / "model.onnx.data").rename(tmp_path / "secret")
    path.write_bytes(model.SerializeToString())
    assert "escapes model directory" in _refusal(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: setattr(model.opset_import[0], "version", 99), "Opset 99"),
        (lambda model: setattr(model, "ir_version", 99), "Unsupported model IR version: 99"),
        (lambda model: setattr(model.graph.node[0], "op_type", "Nonsense"), "Nonsense"),
        (lambda model: setattr(model.graph.node[0], "domain", "com.mine"), "com.mine"),
    ],
)
def test_graph_that_this_version_cannot_run_names_what_it_lacks(graph: Path, change: Any, reason: str) -> None:
    import onnx
    import onnxruntime

    model = onnx.load(graph)
    change(model)
    graph.write_bytes(model.SerializeToString())
    message = _refusal(graph)
    assert reason in message
    assert f"onnxruntime {onnxruntime.__version__} cannot load this model" in message
    assert "onnxruntime_src" not in message


def test_input_that_no_client_can_send_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["n"]))
    inputs = [helper.make_value_info("x", kind)]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [])]
    _write(tmp_path, [helper.make_node("SequenceLength", ["x"], ["y"])], inputs, outputs)
    assert 'input "x": seq(tensor(float)) is nothing that a client can send' in _refusal(tmp_path / "model.onnx")


def _write(folder: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> None:
    from onnx import helper

    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_output_that_is_a_sequence_is_left_out_or_refused_where_it_is_the_only_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import onnx
    from onnx import helper

    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2])]
    parts = helper.make_tensor_sequence_value_info("parts", onnx.TensorProto.FLOAT, None)
    nodes = [helper.make_node("SplitToSequence", ["x"], ["parts"], axis=0), helper.make_node("Abs", ["x"], ["y"])]
    _write(tmp_path, nodes, inputs, [parts])
    reason = 'expected an output that is a tensor, got only "parts" seq(tensor(float))'
    assert reason in _refusal(tmp_path / "model.onnx")
    _write(tmp_path, nodes, inputs, [parts, helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])])
    signature = load_model("onnx", tmp_path, {}).signature
    assert [spec.name for spec in signature.outputs] == ["y"]
    assert 'left out: "parts" seq(tensor(float))' in caplog.text


def test_folder_named_as_a_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    assert "expected an .onnx file, got a folder" in _refusal(tmp_path / "model.onnx", model_file="model.onnx")
