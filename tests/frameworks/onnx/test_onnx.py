# SPDX-License-Identifier: Apache-2.0
"""What is particular to ONNX: signatures, classes, options, values that a graph refuses, rows and threads."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import load_model
from modelyard_deployments._onnx_session import choose_providers, find_options, is_inputs_fault


@pytest.fixture
def load(tmp_path: Path, trainers: Any) -> Any:
    def make(case: str, **options: Any) -> Any:
        trained = trainers("onnx")[case](tmp_path)
        return load_model("onnx", tmp_path, {**trained.options, **options})

    return make


def _predict(model: Any, outputs: tuple[str, ...] = (), **inputs: Any) -> Any:
    names = outputs or tuple(spec.name for spec in model.signature.outputs)
    return model.predict(model.signature.bind({name: np.asarray(one) for name, one in inputs.items()}), names, {})


def _specs(specs: Any) -> dict[str, str]:
    return {spec.name: str(spec) for spec in specs}


# -- signatures


def test_signature_is_the_graphs(load: Any) -> None:
    signature = load("tokens_of_any_length").signature
    assert _specs(signature.inputs) == {"ids": "INT64 [-1,-1]", "mask": "FP32 [-1,-1]"}
    assert _specs(signature.outputs) == {"vector": "FP32 [-1,8]", "words": "FP32 [-1,-1,8]"}
    assert signature.batch_axis


def test_output_of_unknown_shape_has_the_shape_that_is_answered(load: Any) -> None:
    assert _specs(load("image").signature.outputs) == {"y": "FP32 [-1,5]"}


def test_graph_of_fixed_size_has_no_batches(load: Any) -> None:
    signature = load("fixed_size").signature
    assert (signature.batch_axis, _specs(signature.inputs)) == (False, {"x": "FP32 [2,2]"})


def test_rows_that_see_each_other_are_not_merged_unless_the_option_says_so(
    load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not load("rows_that_see_each_other").signature.batch_axis
    assert "batch_axis: true" in caplog.text
    assert load("rows_that_see_each_other", batch_axis=True).signature.batch_axis


def test_batch_axis_of_a_graph_of_fixed_size_is_refused(load: Any) -> None:
    with pytest.raises(ModelLoadError, match="option batch_axis: the first dimension is not variable in x, y"):
        load("fixed_size", batch_axis=True)


def test_free_dimension_is_given_by_its_name(load: Any) -> None:
    assert _specs(load("size_given_by_option").signature.inputs) == {"x": "FP32 [-1,4]"}


def test_unknown_free_dimension_is_refused_with_those_there_are(load: Any) -> None:
    with pytest.raises(ModelLoadError, match='option free_dimensions: the graph has n, width, got "height"'):
        load("size_given_by_option", free_dimensions={"height": 3})


def test_input_with_default_is_optional(load: Any) -> None:
    model = load("input_with_default")
    assert [spec.optional for spec in model.signature.inputs] == [False, True]
    assert _predict(model, x=np.ones((1, 4), "f"))["y"].tolist() == [[2, 2, 2, 2]]
    assert _predict(model, x=np.ones((1, 4), "f"), factor=np.float32([3]))["y"].tolist() == [[3, 3, 3, 3]]


def test_without_optional_inputs_the_graph_has_batches(load: Any) -> None:
    signature = load("input_with_default", optional_inputs=False).signature
    assert (_specs(signature.inputs), signature.batch_axis) == ({"x": "FP32 [-1,4]"}, True)


# -- classes


@pytest.mark.parametrize(
    ("case", "scores", "labels"),
    [
        ("classifier_with_maps", "output_probability", ("-1", "9", "10")),
        ("classifier_of_texts_with_maps", "output_probability", ("setosa", "versicolor", "virginica")),
        ("margins", "probabilities", ("0", "1", "2")),
        ("scores_with_named_classes", "logits", ("a", "b", "c")),
    ],
)
def test_scores_have_labels(load: Any, case: str, scores: str, labels: tuple[str, ...]) -> None:
    assert load(case).signature.labels[scores] == labels


def test_predict_and_predict_proba_are_asked_for(load: Any) -> None:
    signature = load("classifier_of_texts_with_maps").signature
    assert _specs(signature.on_request) == {"predict": "BYTES [-1]", "predict_proba": "FP32 [-1,3]"}


def test_margins_are_no_probabilities(load: Any) -> None:
    assert _specs(load("margins").signature.on_request) == {"predict": "INT64 [-1]"}


def test_classes_that_do_not_fit_are_refused(load: Any) -> None:
    with pytest.raises(ModelLoadError, match="option classes: expected 3 labels, one for each class, got 2"):
        load("scores_with_named_classes", classes=["a", "b"])
    with pytest.raises(ModelLoadError, match=r"option classes: expected an output of scores \[-1,2\], got \"y\" FP32"):
        load("one_number", classes=["a", "b"])


# -- values


def test_index_out_of_range_is_the_clients_mistake(load: Any) -> None:
    model = load("tokens_of_any_length")
    with pytest.raises(InvalidRequest, match=r"idx=50 must be within the inclusive range \[-50,49\]"):
        _predict(model, ids=[[1, 50]], mask=np.ones((1, 2), "f"))


def test_variable_dimensions_that_do_not_fit_each_other_are_the_clients_mistake(load: Any) -> None:
    with pytest.raises(InvalidRequest, match="the inputs do not fit the model") as caught:
        _predict(load("tokens_of_any_length"), ids=[[1, 2, 3]], mask=np.ones((1, 2), "f"))
    assert "onnxruntime_src" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(load: Any) -> None:
    with pytest.raises(InvalidRequest, match='input "left": expected UTF-8 text'):
        _predict(load("texts"), left=np.array([b"\xff"], object), right=np.array([b"a"], object))


@pytest.mark.parametrize(
    ("message", "is_theirs"),
    [
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Invalid rank for input: x", True),
        ("[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Add node.", True),
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : while running Conv node. Failed to allocate memory", False),
        ("[ONNXRuntimeError] : 1 : FAIL : CUBLAS failure 13 while running MatMul node.", False),
        ("[ONNXRuntimeError] : 1 : FAIL : session is gone", False),
    ],
)
def test_only_what_the_inputs_cause_is_the_clients_mistake(message: str, is_theirs: bool) -> None:
    assert is_inputs_fault(message) == is_theirs


def test_rows_turned_round_are_read_in_their_order(load: Any) -> None:
    model = load("size_given_by_option")
    rows = -np.arange(12, dtype="f").reshape(3, 4)
    assert np.array_equal(_predict(model, x=rows[::-1, ::-1])["y"], -rows[::-1, ::-1])
    assert np.array_equal(_predict(model, x=np.asfortranarray(rows))["y"], -rows)


# -- where it computes

BUILDS = {
    "cpu": ["AzureExecutionProvider", "CPUExecutionProvider"],
    "gpu": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}


@pytest.mark.parametrize(
    ("wanted", "build", "has_gpu", "chosen"),
    [
        ((), "cpu", False, ["CPU"]),
        ((), "cpu", True, ["CPU"]),
        ((), "gpu", False, ["CPU"]),
        ((), "gpu", True, ["CUDA", "CPU"]),
        (("tensorrt", "cuda"), "gpu", True, ["Tensorrt", "CUDA", "CPU"]),
        (("CPUExecutionProvider",), "gpu", True, ["CPU"]),
        (("cuda", "CUDA"), "gpu", False, ["CUDA", "CPU"]),
    ],
)
def test_providers_are_those_wanted_or_those_of_the_hardware(
    wanted: tuple[str, ...], build: str, has_gpu: bool, chosen: list[str]
) -> None:
    assert choose_providers(wanted, BUILDS[build], has_gpu) == [f"{name}ExecutionProvider" for name in chosen]


def test_provider_that_is_not_there_is_refused_with_those_that_are(load: Any) -> None:
    with pytest.raises(ModelLoadError, match=r'option providers: expected some of .*CPUExecutionProvider.* got "cuda"'):
        load("regression", providers=["cuda"])


@pytest.mark.parametrize(
    ("wanted", "share_mb", "limit"),
    [({}, 400, 400 * 1024 * 1024), ({}, None, None), ({"cuda": {"gpu_mem_limit": 7}}, 400, 7)],
)
def test_a_part_of_a_gpu_is_a_limit_of_its_memory_unless_the_user_has_another(
    wanted: dict[str, dict[str, Any]], share_mb: int | None, limit: int | None
) -> None:
    found = find_options(["CUDAExecutionProvider", "CPUExecutionProvider"], wanted, share_mb)
    assert found["CUDAExecutionProvider"].get("gpu_mem_limit") == limit
    assert found["CPUExecutionProvider"] == {}


def test_options_of_a_provider_that_is_not_used_are_refused(load: Any) -> None:
    model = load("regression", provider_options={"cpu": {"use_arena": False}})
    assert _predict(model, X=np.ones((1, 4), "f"))["variable"].shape == (1, 1)
    with pytest.raises(ModelLoadError, match='option provider_options: CPUExecutionProvider are used, got "cuda"'):
        load("regression", provider_options={"cuda": {"device_id": 0}})


def test_replica_with_gpu_and_build_without_computes_on_the_cpu(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert load("regression")._session._session.get_providers() == ["CPUExecutionProvider"]


def test_options_of_the_session_are_taken(load: Any) -> None:
    model = load("regression", threads=2, inter_op_threads=2, optimization="basic", concurrency=3)
    options = model._session._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads, model.concurrency) == (2, 2, 3)
    assert (options.execution_mode.name, options.graph_optimization_level.name) == ("ORT_PARALLEL", "ORT_ENABLE_BASIC")


def test_eight_threads_get_their_own_rows(load: Any) -> None:
    model = load("scores_with_named_classes", concurrency=8)
    rows = np.random.default_rng(1).random((800, 4)).astype("f")
    alone = _predict(model, ("scores",), x=rows)["scores"]

    def ask(row: int) -> bool:
        return np.allclose(_predict(model, ("scores",), x=rows[row : row + 1])["scores"][0], alone[row], rtol=1e-6)

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(ask, range(800)))


PROGRAM = """
import pathlib, sys, threading
import numpy as np
from modelyard.model import load_model

model = load_model("onnx", pathlib.Path(sys.argv[1]), {})
rows = model.signature.bind({"x": np.ones((50_000, 4), "f")})
tasks = pathlib.Path("/proc/self/task")
counts = []

def predict():
    before = len(list(tasks.iterdir()))
    model.predict(rows, ("scores",), {})
    counts.append(len(list(tasks.iterdir())) - before)

thread = threading.Thread(target=predict)
thread.start()
thread.join()
print(counts[0])
try:
    model.predict({"x": np.ones((2, 5), "f")}, ("scores",), {})
except Exception as exc:
    print(type(exc).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_prediction_starts_no_thread_and_writes_nothing(load: Any, tmp_path: Path) -> None:
    load("scores_with_named_classes")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout.split(), done.stderr, done.returncode) == (["0", "InvalidRequest"], "", 0)
