# SPDX-License-Identifier: Apache-2.0
"""What is particular to PyTorch: signatures, options, names of outputs, values that a program refuses, threads."""

import subprocess
import sys
import warnings
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import load_model
from modelyard_deployments._torch_values import flatten, to_array, to_reason

FLOATS = {"inputs": [{"name": "x", "shape": [-1, 4]}]}


@pytest.fixture
def load(tmp_path: Path, trainers: Any) -> Any:
    def make(case: str, **options: Any) -> Any:
        trained = trainers("pytorch")[case](tmp_path)
        return load_model("pytorch", tmp_path, {**trained.options, **options})

    return make


def _predict(model: Any, **inputs: Any) -> Any:
    names = tuple(spec.name for spec in model.signature.outputs)
    return model.predict(model.signature.bind({name: np.asarray(one) for name, one in inputs.items()}), names, {})


def _specs(specs: Any) -> dict[str, str]:
    return {spec.name: str(spec) for spec in specs}


# -- signatures


@pytest.mark.parametrize(
    ("case", "inputs", "outputs", "batch_axis"),
    [
        ("exported", {"x": "FP32 [-1,4]"}, {"output-0": "FP32 [-1,3]"}, True),
        ("exported_dictionary", {"x": "FP32 [-1,4]"}, {"scores": "FP32 [-1,3]", "best": "INT64 [-1]"}, True),
        (
            "exported_tokens_of_any_length",
            {"ids": "INT64 [-1,-1]", "mask": "FP32 [-1,-1]"},
            {"output-0": "FP32 [-1,-1,8]", "output-1.vector": "FP32 [-1,8]"},
            True,
        ),
        ("exported_fixed_size", {"x": "FP32 [2,4]"}, {"output-0": "FP32 [2,3]"}, False),
        ("traced_image", {"image": "FP32 [-1,3,16,16]"}, {"output-0": "FP32 [-1,5]"}, True),
        (
            "scripted_with_names",
            {"ids": "INT64 [-1,-1]", "mask": "FP32 [-1,-1]"},
            {"words": "FP32 [-1,-1,8]", "vector": "FP32 [-1,8]"},
            True,
        ),
        ("scripted_texts", {"texts": "BYTES [-1]"}, {"output-0": "BYTES [-1]", "output-1": "INT64 [-1]"}, True),
        ("scripted_rows_that_see_each_other", {"x": "FP32 [-1,4]"}, {"output-0": "FP32 [-1,4]"}, False),
    ],
)
def test_signature_is_found_out(
    load: Any, case: str, inputs: dict[str, str], outputs: dict[str, str], batch_axis: bool
) -> None:
    signature = load(case).signature
    assert (_specs(signature.inputs), _specs(signature.outputs)) == (inputs, outputs)
    assert signature.batch_axis == batch_axis


def _script(module: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
        torch.jit.script(module).save(folder / "model.pt")


class Methods(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, times: int = 1) -> torch.Tensor:
        return self.layer(x) * times

    @torch.jit.export
    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_another_method_answers(tmp_path: Path) -> None:
    _script(Methods(), tmp_path)
    model = load_model("pytorch", tmp_path, {**FLOATS, "method": "twice"})
    assert _predict(model, x=np.ones((1, 4), "f"))["output-0"].tolist() == [[2, 2, 2, 2]]
    with pytest.raises(ModelLoadError, match='no method "thrice"'):
        load_model("pytorch", tmp_path, {"method": "thrice"})


def test_number_of_the_program_is_an_optional_input(tmp_path: Path) -> None:
    _script(Methods(), tmp_path)
    inputs = [*FLOATS["inputs"], {"name": "times", "datatype": "INT64", "shape": []}]
    model = load_model("pytorch", tmp_path, {"inputs": inputs})
    once, thrice = _predict(model, x=np.ones((1, 4), "f")), _predict(model, x=np.ones((1, 4), "f"), times=3)
    assert np.allclose(once["output-0"] * 3, thrice["output-0"])


def test_scripted_module_needs_inputs_and_suggests_some(tmp_path: Path) -> None:
    _script(Methods(), tmp_path)
    with pytest.raises(ModelLoadError) as caught:
        load_model("pytorch", tmp_path, {})
    assert "inputs: [{name: x, datatype: FP32, shape: [-1, 4]}]" in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ([{"name": "y", "shape": [-1, 4]}], r'takes \(x: Tensor, times: int\): "y" is no argument, "x" is missing'),
        ([{"name": "times", "datatype": "INT64", "shape": []}], '"x" is missing'),
        ([{"name": "x", "shape": [-1, 5]}], r"does not answer made-up rows.*mat1 and mat2 shapes.*option inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tmp_path: Path, inputs: Any, reason: str) -> None:
    _script(Methods(), tmp_path)
    with pytest.raises(ModelLoadError, match=reason):
        load_model("pytorch", tmp_path, {"inputs": inputs})


def test_inputs_of_an_exported_program_are_refused(load: Any) -> None:
    with pytest.raises(ModelLoadError, match="an exported program tells its inputs"):
        load("exported", **FLOATS)


def test_other_number_of_outputs_is_refused(load: Any) -> None:
    with pytest.raises(ModelLoadError, match="option outputs: expected 1, as the program answers, got 2"):
        load("exported", outputs=[{"name": "a"}, {"name": "b"}])


def test_other_number_of_outputs_than_a_trial_gives_is_refused(load: Any) -> None:
    with pytest.raises(ModelLoadError, match="option outputs: expected 2, as the program answers, got 1"):
        load("scripted_with_names", outputs=[{"name": "a"}])


def test_outputs_are_named_by_the_option(load: Any) -> None:
    model = load("exported", outputs=[{"name": "logits"}])
    assert _specs(model.signature.outputs) == {"logits": "FP32 [-1,3]"}
    assert _predict(model, x=np.ones((2, 4), "f"))["logits"].shape == (2, 3)


Pair = namedtuple("Pair", ["left", "right"])


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (1, ["output-0"]),
        ((1, [2.0, 3.0], None), ["output-0", "output-1"]),
        ({"a": 1, "b": (2, {"c": 3})}, ["a", "b.0", "b.1.c"]),
        (Pair(1, ["x", "y"]), ["left", "right"]),
        (({"a": 1}, Pair(1, 2)), ["output-0.a", "output-1.left", "output-1.right"]),
    ],
)
def test_leaves_of_an_answer_have_names(answer: Any, names: list[str]) -> None:
    assert [name for name, _ in flatten(answer)] == names


# -- values


@pytest.mark.parametrize("case", ["exported_tokens_of_any_length", "scripted_with_names"])
def test_index_out_of_range_is_the_clients_mistake(load: Any, case: str) -> None:
    with pytest.raises(InvalidRequest, match=r"the inputs do not fit the model: index out of range in self$"):
        _predict(load(case), ids=[[1, 50]], mask=np.ones((1, 2), "f"))


def test_dimensions_that_must_be_equal_are_the_clients_mistake(load: Any) -> None:
    """PyTorch would spread the one column of the mask over all words."""
    with pytest.raises(InvalidRequest, match=r"Guard failed: mask.size\(\)\[1\] == ids.size\(\)\[1\]"):
        _predict(load("exported_tokens_of_any_length"), ids=[[1, 2, 3]], mask=np.ones((1, 1), "f"))


def test_bytes_that_are_no_text_are_refused(load: Any) -> None:
    with pytest.raises(InvalidRequest, match='input "texts": expected UTF-8 text'):
        _predict(load("scripted_texts"), texts=np.array([b"\xff"], object))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("can't allocate memory: 9 bytes")])
def test_want_of_memory_is_not_the_clients_mistake(load: Any, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    model = load("exported")

    def fail(values: Any) -> Any:
        raise error

    monkeypatch.setattr(type(model._program), "call", property(lambda _: fail))
    with pytest.raises(type(error), match=str(error)):
        _predict(model, x=np.ones((1, 4), "f"))


def test_reason_is_the_last_error_of_torchscripts_stack() -> None:
    text = "The following operation failed.\nTraceback\n  File x\nRuntimeError: index out of range in self\n\n"
    assert to_reason(RuntimeError(text)) == "index out of range in self"
    assert to_reason(RuntimeError("The size of tensor a (3) must match\nmore")) == "The size of tensor a (3) must match"


def test_rows_turned_round_are_read_in_their_order(load: Any) -> None:
    model = load("scripted_dictionary")
    rows = np.arange(12, dtype="f").reshape(3, 4)
    numbers = np.arange(3, dtype=np.int32)
    assert np.array_equal(_predict(model, a=rows[::-1, ::-1], b=numbers[::-1])["a_out"], rows[::-1, ::-1])


@pytest.mark.parametrize(("case", "copies"), [("exported", False), ("exported_that_writes_to_its_input", True)])
def test_only_programs_that_write_to_their_inputs_get_copies(load: Any, case: str, copies: bool) -> None:
    assert load(case)._copies is copies


def test_what_has_no_datatype_is_no_output() -> None:
    with pytest.raises(TypeError, match="no datatype for object"):
        to_array(object())


# -- where it computes


def test_gpu_that_is_not_there_is_refused(load: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelLoadError, match=r"option device: PyTorch finds no CUDA device; .*num_gpus"):
        load("exported", device="cuda")


def test_replica_without_gpu_computes_on_the_cpu(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert _predict(load("exported"), x=np.ones((1, 4), "f"))["output-0"].shape == (1, 3)


@pytest.mark.parametrize("case", ["exported", "traced"])
def test_eight_threads_get_their_own_rows(load: Any, case: str) -> None:
    model = load(case, concurrency=8)
    assert model.concurrency == 8
    rows = np.random.default_rng(1).random((400, 4)).astype("f")
    alone = _predict(model, x=rows)["output-0"]

    def ask(row: int) -> bool:
        return np.allclose(_predict(model, x=rows[row : row + 1])["output-0"][0], alone[row], atol=1e-6)

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(ask, range(400)))


PROGRAM = """
import pathlib, sys, threading
import numpy as np
from modelyard.model import load_model

model = load_model("pytorch", pathlib.Path(sys.argv[1]), {})
body = np.ones((50_000, 4), "f").tobytes()
rows = model.signature.bind({"x": np.frombuffer(body, "f").reshape(50_000, 4)})
tasks = pathlib.Path("/proc/self/task")
counts = []

def predict():
    before = len(list(tasks.iterdir()))
    model.predict(rows, ("output-0",), {})
    counts.append(len(list(tasks.iterdir())) - before)

thread = threading.Thread(target=predict)
thread.start()
thread.join()
print(counts[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("case", ["exported", "traced"])
def test_prediction_starts_no_thread_and_writes_nothing(load: Any, tmp_path: Path, case: str) -> None:
    load(case)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout.split(), done.stderr, done.returncode) == (["0"], "", 0)
