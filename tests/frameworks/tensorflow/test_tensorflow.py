# SPDX-License-Identifier: Apache-2.0
"""What is particular to TensorFlow: signatures and members, ranks, values that a graph refuses, rows and threads."""

import itertools
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest, InvalidTensor, ModelLoadError
from modelyard.model import GPU_SHARE, get_framework, load_model
from modelyard_deployments._tensorflow_graph import GraphSettings, to_reason
from modelyard_deployments._tensorflow_start import import_tensorflow
from modelyard_deployments.tensorflow import TensorFlowError


@pytest.fixture
def load(tmp_path: Path, trainers: Any) -> Any:
    def make(case: str, **options: Any) -> Any:
        folder = tmp_path / case
        if not folder.exists():
            folder.mkdir()
            trainers("tensorflow")[case](folder)
        return load_model("tensorflow", folder, options)

    return make


@pytest.fixture
def save(tmp_path: Path) -> Any:
    """Saves a module with these functions as signatures; each is a function and its arguments' specifications."""

    def write(module: Any = None, **signatures: Any) -> Path:
        tf = import_tensorflow()
        functions = {
            name: tf.function(one, input_signature=[tf.TensorSpec(*spec) for spec in specs])
            for name, (one, *specs) in signatures.items()
        }
        tf.saved_model.save(module or tf.Module(), str(tmp_path / "saved"), signatures=functions)
        return tmp_path / "saved"

    return write


def _predict(model: Any, outputs: tuple[str, ...] = (), **inputs: Any) -> Any:
    names = outputs or tuple(spec.name for spec in model.signature.outputs)
    return model.predict(model.signature.bind({name: np.asarray(one) for name, one in inputs.items()}), names, {})


def _specs(specs: Any) -> dict[str, str]:
    return {spec.name: str(spec) for spec in specs}


def _ones(*shape: int) -> Any:
    return np.ones(shape, dtype=np.float32)


# -- signatures


def test_signature_is_the_saved_models(load: Any) -> None:
    signature = load("several_signatures").signature
    assert _specs(signature.inputs) == {"x": "FP32 [-1,4]"}
    assert _specs(signature.outputs) == {"best": "INT64 [-1]", "logits": "FP32 [-1,3]", "scores": "FP32 [-1,3]"}
    assert signature.batch_axis


def test_what_tensorflow_servings_clients_see_is_kept(load: Any) -> None:
    saved = load("several_signatures").signature.saved
    assert (saved.name, saved.method) == ("serving_default", "tensorflow/serving/predict")
    assert saved.inputs == {"x": "serving_default_x:0"}
    assert list(saved.outputs) == ["best", "logits", "scores"]
    assert all(name.startswith("StatefulPartitionedCall") for name in saved.outputs.values())


def test_other_signatures_are_members(load: Any) -> None:
    model = load("several_signatures")
    assert sorted(model.members) == ["classify", "twice"]
    assert not model.publishes_members
    twice = model.members["twice"]
    assert twice.signature.saved.name == "twice"
    assert _predict(twice, x=_ones(1, 4))["twice"].tolist() == [[2, 2, 2, 2]]
    assert list(twice.members) == []


def test_option_chooses_the_models_own_signature(load: Any) -> None:
    model = load("several_signatures", signature="twice")
    assert (list(_specs(model.signature.outputs)), sorted(model.members)) == (
        ["twice"],
        ["classify", "serving_default"],
    )
    with pytest.raises(
        ModelLoadError,
        match='option signature: the SavedModel has "classify", "serving_default", "twice", got "thrice"',
    ):
        load("several_signatures", signature="thrice")


def test_members_answer_after_one_of_them_is_closed(load: Any) -> None:
    model = load("several_signatures")
    model.members["twice"].close()
    assert _predict(model, ("best",), x=_ones(2, 4))["best"].shape == (2,)


def test_several_signatures_without_the_usual_name_have_to_be_chosen(save: Any) -> None:
    one = (lambda x: {"y": x + 1}), ([None], "float32", "x")
    folder = save(a=one, b=one)
    with pytest.raises(ModelLoadError, match='expected a signature "serving_default", got "a", "b"; choose one with'):
        load_model("tensorflow", folder, {})
    assert load_model("tensorflow", folder, {"signature": "b"}).signature.batch_axis


def test_module_saved_without_signatures_is_refused(tmp_path: Path) -> None:
    tf = import_tensorflow()
    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(ModelLoadError, match=r"the SavedModel has no signatures; save it with tf\.saved_model"):
        load_model("tensorflow", tmp_path, {})


def test_signature_that_no_client_can_use_is_left_out_unless_it_is_the_models_own(
    save: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tf = import_tensorflow()
    plain = (lambda x: {"y": x + 1}), ([None], "float32", "x")
    waves = (lambda x: {"y": tf.math.conj(x)}), ([None], "complex64", "x")
    folder = save(serving_default=plain, waves=waves)
    assert list(load_model("tensorflow", folder, {}).members) == []
    reason = 'signature "waves": input "x" is complex64, for which the protocols have no datatype'
    assert f"{reason}; it is left out" in caplog.text
    with pytest.raises(ModelLoadError, match=reason):
        load_model("tensorflow", folder, {"signature": "waves"})


def test_sparse_input_is_refused(tmp_path: Path) -> None:
    v1 = import_tensorflow().compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        given = v1.sparse_placeholder(v1.float32, [None, 3])
        v1.saved_model.simple_save(session, str(tmp_path), {"x": given}, {"y": v1.sparse.to_dense(given)})
    with pytest.raises(ModelLoadError, match='signature "serving_default": input "x": expected a dense tensor'):
        load_model("tensorflow", tmp_path, {})


def test_graph_is_chosen_by_its_tags(load: Any) -> None:
    assert load("examples_of_tensorflow_1", tags=["serve"]).signature.saved.method == "tensorflow/serving/classify"
    with pytest.raises(ModelLoadError, match=r"option tags: the graphs have the tags \{'serve'\}, got \{serve, gpu\}"):
        load("examples_of_tensorflow_1", tags=["serve", "gpu"])


def test_signatures_of_tensorflow_1_have_their_methods(load: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = load("examples_of_tensorflow_1")
    assert _specs(model.signature.outputs) == {"classes": "BYTES [-1,3]", "scores": "FP32 [-1,3]"}
    assert model.signature.saved.inputs == {"inputs": "tf_example:0"}
    assert {name: one.signature.saved.method.rpartition("/")[2] for name, one in model.members.items()} == {
        "predict": "predict",
        "regress": "regress",
    }
    assert _specs(model.members["regress"].signature.outputs) == {"outputs": "FP32 [-1]"}
    assert caplog.text == ""


# -- ranks and shapes


def test_unknown_rank_takes_any(load: Any) -> None:
    model = load("any_rank")
    assert _specs((*model.signature.inputs, *model.signature.outputs)) == {"x": "FP32 [-1]", "y": "FP32 [-1]"}
    assert model.signature.saved.unknown_ranks == {"x"}
    assert model.signature.saved.unknown_output_ranks == {"y"}
    for shape in ((3,), (2, 2), (2, 1, 4)):
        assert _predict(model, x=_ones(*shape))["y"].shape == shape


def test_shape_that_an_unknown_rank_has_is_found_out(load: Any) -> None:
    signature = load("rank_found_by_trial").signature
    assert _specs(signature.inputs) == {"x": "FP32 [-1,-1]"}
    assert _specs(signature.outputs) == {"sum": "FP32 [-1]", "twice": "FP32 [-1,-1]"}
    assert signature.batch_axis


def test_rank_that_does_not_fit_is_refused_by_the_graph(load: Any) -> None:
    with pytest.raises(InvalidRequest, match="the inputs do not fit the model: Invalid reduction dimension"):
        _predict(load("rank_found_by_trial"), x=_ones(2))


def test_unknown_rank_that_no_made_up_rows_have_is_not_batched(save: Any, caplog: pytest.LogCaptureFixture) -> None:
    tf = import_tensorflow()
    weights = np.ones((5, 2), dtype=np.float32)
    folder = save(serving_default=(lambda x: {"y": tf.matmul(x, weights)}, (None, "float32", "x")))
    model = load_model("tensorflow", folder, {})
    assert not model.signature.batch_axis
    assert 'signature "serving_default" refuses made-up rows, so it is as declared' in caplog.text
    assert _predict(model, x=_ones(1, 5))["y"].tolist() == [[5, 5]]


def test_fixed_size_has_no_batches(load: Any) -> None:
    signature = load("fixed_size").signature
    assert (signature.batch_axis, _specs(signature.inputs)) == (False, {"x": "FP32 [2,2]"})
    with pytest.raises(ModelLoadError, match="option batch_axis: the first dimension is not variable in x, y"):
        load("fixed_size", batch_axis=True)


def test_rows_that_see_each_other_are_not_merged_unless_the_option_says_so(
    load: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert not load("rows_that_see_each_other").signature.batch_axis
    assert "batch_axis: true" in caplog.text
    assert load("rows_that_see_each_other", batch_axis=True).signature.batch_axis


def test_input_with_default_is_optional(load: Any) -> None:
    model = load("input_with_default")
    assert {spec.name: spec.optional for spec in model.signature.inputs} == {"factor": True, "x": False}
    assert _predict(model, x=_ones(1, 4))["y"].tolist() == [[2, 2, 2, 2]]
    assert _predict(model, x=_ones(1, 4), factor=np.float32(3))["y"].tolist() == [[3, 3, 3, 3]]
    assert not model.signature.batch_axis


@pytest.mark.parametrize("shape", [(4,), (1, 5), (2, 2, 4), ()])
def test_other_shape_is_refused(load: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidTensor, match=r'input "x": expected FP32 \[-1,4\]'):
        _predict(load("several_signatures"), x=_ones(*shape))


def test_rows_in_any_memory_layout(load: Any) -> None:
    model = load("several_signatures")
    rows = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    expected = _predict(model, x=np.ascontiguousarray(rows.T))
    assert np.array_equal(_predict(model, x=rows.T)["scores"], expected["scores"])
    unaligned = np.frombuffer(b"\0" + rows.T.tobytes(), np.uint8)[1:].view(np.float32).reshape(6, 4)
    assert np.array_equal(_predict(model, x=unaligned)["scores"], expected["scores"])


# -- signatures that do not only answer


def test_signature_that_trains_is_neither_tried_nor_batched(save: Any) -> None:
    tf = import_tensorflow()
    module = tf.Module()
    module.sum = tf.Variable([0.0])

    def train(x: Any) -> Any:
        return {"sum": module.sum.assign_add(tf.reduce_sum(x, keepdims=True)) + 0 * x}

    def predict(x: Any) -> Any:
        return {"y": x + module.sum}

    folder = save(module, serving_default=(predict, ([None], "float32", "x")), train=(train, ([None], "float32", "x")))
    model = load_model("tensorflow", folder, {})
    assert _predict(model, x=_ones(2))["y"].tolist() == [1, 1]
    assert (model.signature.batch_axis, model.members["train"].signature.batch_axis) == (True, False)
    _predict(model.members["train"], x=_ones(3))
    assert _predict(model, x=_ones(2))["y"].tolist() == [4, 4]


def test_signature_that_writes_a_file_writes_none_when_it_is_loaded(
    save: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    tf = import_tensorflow()

    def write(name: Any) -> Any:
        with tf.control_dependencies([tf.io.write_file(name, "text")]):
            return {"name": tf.identity(name)}

    folder = save(serving_default=(write, ([], "string", "name")))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    model = load_model("tensorflow", folder, {})
    assert list((tmp_path / "work").iterdir()) == []
    _predict(model, name=np.array(b"written", dtype=object))
    assert (tmp_path / "work" / "written").read_text() == "text"


# -- values


def test_text_that_is_no_example_is_the_clients_mistake(load: Any) -> None:
    model = load("several_signatures").members["classify"]
    with pytest.raises(InvalidRequest) as caught:
        _predict(model, inputs=np.array([b"no example"], dtype=object))
    assert str(caught.value) == "the inputs do not fit the model: Could not parse example input, value: 'no example'"


def test_example_without_a_feature_is_the_clients_mistake(load: Any) -> None:
    model = load("several_signatures").members["classify"]
    with pytest.raises(InvalidRequest, match=r"Feature: x \(data type: float\) is required but could not be found"):
        _predict(model, inputs=np.array([b""], dtype=object))


def test_an_example_that_is_taken_is_shown(load: Any) -> None:
    model = load("signature_of_examples", signature="classify")
    row = np.array([model.signature.example["inputs"].encode()], dtype=object)
    assert _predict(model, inputs=row)["classes"].shape == (1, 3)


def test_index_out_of_range_is_the_clients_mistake(load: Any) -> None:
    model = load("tokens_of_any_length")
    with pytest.raises(
        InvalidRequest, match=r"the inputs do not fit the model: indices\[0,1\] = 50 is not in \[0, 50\)"
    ):
        _predict(model, ids=[[1, 50]], mask=_ones(1, 2))
    assert _predict(model, ids=[[1, 49]], mask=_ones(1, 2))["vector"].shape == (1, 8)


def test_variable_dimensions_that_do_not_fit_each_other_are_the_clients_mistake(load: Any) -> None:
    with pytest.raises(InvalidRequest, match="Incompatible shapes") as caught:
        _predict(load("tokens_of_any_length"), ids=[[1, 2, 3]], mask=_ones(1, 2))
    assert "{{" not in str(caught.value)


def test_assertion_in_the_graph_is_the_clients_mistake(save: Any) -> None:
    tf = import_tensorflow()

    def check(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_positive(x, "no negative numbers")]):
            return {"y": tf.sqrt(x)}

    model = load_model("tensorflow", save(serving_default=(check, ([None], "float32", "x"))), {})
    with pytest.raises(InvalidRequest, match=r"assertion failed: \[no negative numbers"):
        _predict(model, x=-_ones(1))


def test_failure_that_is_not_the_inputs_fault_is_the_models(save: Any) -> None:
    tf = import_tensorflow()
    folder = save(serving_default=(lambda name: {"text": tf.io.read_file(name)}, ([], "string", "name")))
    model = load_model("tensorflow", folder, {})
    (folder / "here").write_text("text")
    assert _predict(model, name=np.array(str(folder / "here").encode(), object))["text"] == b"text"
    with pytest.raises(TensorFlowError, match=r"^NotFoundError: nosuch; No such file or directory$"):
        _predict(model, name=np.array(b"nosuch", dtype=object))


def test_signature_that_cannot_run_is_left_out_unless_it_is_the_models_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    v1 = import_tensorflow().compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(v1.int64, [None], "x")
        pairs = v1.lookup.KeyValueTensorInitializer(np.array([0, 1]), np.array([5, 6]))
        y = v1.lookup.StaticHashTable(pairs, -1).lookup(x)  # nobody has the table filled
        define = v1.saved_model.predict_signature_def
        signatures = {"serving_default": define({"x": x}, {"y": x + 1}), "table": define({"x": x}, {"y": y})}
        builder = v1.saved_model.Builder(str(tmp_path / "saved"))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    assert list(load_model("tensorflow", tmp_path / "saved", {}).members) == []
    assert 'signature "table" cannot run and is left out: Table not initialized' in caplog.text
    with pytest.raises(ModelLoadError, match=r"TensorFlow .* cannot load this SavedModel: Table not initialized"):
        load_model("tensorflow", tmp_path / "saved", {"signature": "table"})


def test_large_numbers_are_not_wrapped(load: Any) -> None:
    model = load("numbers_of_every_datatype")
    rows = {spec.name: np.zeros((1, 2), dtype=spec.name) for spec in model.signature.inputs}
    with pytest.raises(InvalidTensor, match='input "uint8": expected numbers in the range of UINT8, got 256'):
        _predict(model, **rows | {"uint8": np.array([[0, 256]], dtype=np.uint16)})


# -- outputs


def test_only_what_is_asked_for_is_computed(tmp_path: Path) -> None:
    v1 = import_tensorflow().compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(v1.float32, [None])
        with v1.control_dependencies([v1.debugging.assert_positive(x)]):
            checked = v1.identity(x)
        v1.saved_model.simple_save(session, str(tmp_path), {"x": x}, {"checked": checked, "free": x * 2})
    model = load_model("tensorflow", tmp_path, {})
    assert _predict(model, ("free",), x=-_ones(1))["free"].tolist() == [-2]
    with pytest.raises(InvalidRequest, match="assertion failed"):
        _predict(model, ("free", "checked"), x=-_ones(1))


def test_any_number_of_sets_of_outputs_is_answered(save: Any) -> None:
    many = (lambda x: {f"y{number}": x + number for number in range(5)}), ([None], "float32", "x")
    model = load_model("tensorflow", save(serving_default=many), {})
    for names in itertools.permutations([f"y{number}" for number in range(5)], 3):
        answer = _predict(model, names, x=_ones(1))
        assert {name: value.tolist() for name, value in answer.items()} == {name: [1 + int(name[1])] for name in names}


# -- threads


def test_eight_threads_get_their_own_rows(load: Any) -> None:
    model = load("several_signatures", concurrency=8)
    assert (model.concurrency, model.members["twice"].concurrency) == (8, 8)
    rows = np.random.default_rng(1).random((800, 4)).astype("f")
    alone = _predict(model, ("scores",), x=rows)["scores"]

    def ask(row: int) -> bool:
        return np.allclose(_predict(model, ("scores",), x=rows[row : row + 1])["scores"][0], alone[row], rtol=1e-6)

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(ask, range(800)))


def test_options_of_the_session_are_taken(load: Any) -> None:
    model = load("several_signatures", threads=2, inter_op_threads=3)
    config = model._graph.session._config
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (2, 3)
    assert config.use_per_session_threads
    assert config.device_count["GPU"] == 0
    assert _predict(model, ("best",), x=_ones(2, 4))["best"].shape == (2,)


def test_replica_with_gpu_uses_what_it_needs_of_it(
    load: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with caplog.at_level(logging.WARNING):
        config = load("several_signatures", gpu_memory_mb=512)._graph.session._config
    assert config.gpu_options.allow_growth
    (device,) = config.gpu_options.experimental.virtual_devices
    assert list(device.memory_limit_mb) == [512]
    has_gpu = bool(import_tensorflow().config.list_physical_devices("GPU"))
    assert ("finds no GPU" in caplog.text) != has_gpu


def test_replica_with_a_part_of_a_gpu_uses_that_part_of_its_memory(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv(GPU_SHARE, "0.5")
    config = load("several_signatures")._graph.session._config
    assert config.gpu_options.per_process_gpu_memory_fraction == 0.5


PROGRAM = """
import pathlib, sys, threading
import numpy as np
from modelyard.model import load_model

model = load_model("tensorflow", pathlib.Path(sys.argv[1]), {})
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
print(counts[0], "keras" in sys.modules)
try:
    model.predict({"x": np.ones((2, 5), "f")}, ("scores",), {})
except Exception as exc:
    print(type(exc).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_prediction_starts_no_thread_and_writes_nothing(load: Any, tmp_path: Path) -> None:
    load("several_signatures")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "several_signatures")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout.split(), done.stderr, done.returncode) == (["0", "False", "InvalidRequest"], "", 0)


KERAS_PROGRAM = """
import pathlib, sys
from modelyard.model import load_model

print(load_model("tensorflow", pathlib.Path(sys.argv[1]), {}).signature.saved.name)
"""


def test_keras_model_is_loaded_without_a_word(load: Any, tmp_path: Path) -> None:
    load("keras_functional")
    command = [sys.executable, "-c", KERAS_PROGRAM, str(tmp_path / "keras_functional")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("serving_default\n", "", 0)


# -- Keras


def test_keras_model_is_served_as_a_saved_model_would_be(load: Any) -> None:
    signature = load("keras_functional").signature
    assert _specs(signature.inputs) == {"group": "INT32 [-1,1]", "measurements": "FP32 [-1,4]"}
    assert _specs(signature.outputs) == {"size": "FP32 [-1,1]", "species": "FP32 [-1,3]"}
    assert (signature.saved.name, signature.saved.method) == ("serving_default", "tensorflow/serving/predict")
    assert signature.saved.inputs["group"] == "serving_default_group:0"
    assert signature.batch_axis


def test_graphs_are_programs() -> None:
    assert get_framework("tensorflow").loads_code


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Bad size [1]\n\t [[{{node a/b}}]]\n\t [[{{node c}}]]", "Bad size [1]"),
        ("{{function_node __wrapped__X}} {{node X}} Bad value [Op:X] name: ", "Bad value [Op:X] name:"),
        (
            "Op type not registered 'Mine' in binary running on host-1. Make sure the Op and Kernel are registered",
            "Op type not registered 'Mine'",
        ),
        ("", "ValueError"),
    ],
)
def test_reasons_are_sentences(message: str, reason: str) -> None:
    assert to_reason(ValueError(message)) == reason


def test_settings_have_the_names_of_options() -> None:
    options = get_framework("tensorflow").options.model_fields
    assert set(GraphSettings.__dataclass_fields__) <= set(options)
