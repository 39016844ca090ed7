# SPDX-License-Identifier: Apache-2.0
"""What is particular to PaddlePaddle: signatures, values and sizes that a program refuses, rows, threads, signals."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest, InvalidTensor
from modelyard.model import load_model


@pytest.fixture
def load(tmp_path: Path, trainers: Any) -> Any:
    def make(case: str, **options: Any) -> Any:
        trained = trainers("paddle")[case](tmp_path)
        return load_model("paddle", tmp_path, {**trained.options, **options})

    return make


def _predict(model: Any, **inputs: Any) -> Any:
    names = tuple(spec.name for spec in model.signature.outputs)
    return model.predict(model.signature.bind({name: np.asarray(one) for name, one in inputs.items()}), names, {})


def _specs(specs: Any) -> dict[str, str]:
    return {spec.name: str(spec) for spec in specs}


def _text(**changed: Any) -> dict[str, Any]:
    inputs = {"ids": [[1, 2, 3]], "mask": [[True, False, True]], "weight": np.array([[1.0]], dtype=np.float32)}
    return inputs | changed


# -- signatures


def test_signature_is_the_programs(load: Any) -> None:
    signature = load("several_inputs_and_outputs").signature
    assert _specs(signature.inputs) == {"ids": "INT64 [-1,-1]", "mask": "BOOL [-1,-1]", "weight": "FP32 [-1,1]"}
    assert _specs(signature.outputs) == {
        "fetch_name_0": "FP32 [-1,4]",
        "fetch_name_1": "INT32 [-1,-1]",
        "fetch_name_2": "BOOL [-1,-1]",
    }
    assert signature.batch_axis


def test_old_program_has_its_own_names(load: Any) -> None:
    signature = load("old_program").signature
    assert _specs((*signature.inputs, *signature.outputs)) == {"x": "FP32 [-1,4]", "softmax_0.tmp_0": "FP32 [-1,3]"}
    assert signature.batch_axis


def test_fixed_rows_are_not_batched(load: Any) -> None:
    signature = load("fixed_number_of_rows").signature
    assert (signature.batch_axis, str(signature.inputs[0])) == (False, "FP32 [3,4]")


def test_answer_of_another_length_is_not_batched(load: Any) -> None:
    assert not load("answer_of_other_length").signature.batch_axis


# -- values and shapes


@pytest.mark.parametrize("value", [10, 3_000_000, -2])
def test_index_out_of_range_is_the_clients_fault(load: Any, value: int) -> None:
    model = load("several_inputs_and_outputs")
    with pytest.raises(InvalidRequest, match=rf"do not fit the model: .*expected >= 0 and < 10, but got {value}"):
        _predict(model, **_text(ids=[[1, 2, value]]))
    assert _predict(model, **_text())["fetch_name_1"].tolist() == [[2, 3, 4]]


def test_dimensions_that_contradict_each_other_are_the_clients_fault(load: Any) -> None:
    model = load("several_inputs_and_outputs")
    with pytest.raises(InvalidRequest, match="do not fit the model"):
        _predict(model, **_text(mask=[[True, False]]))
    assert _predict(model, **_text())["fetch_name_2"].tolist() == [[False, True, False]]


def test_empty_variable_dimension_does_no_harm(load: Any) -> None:
    model = load("several_inputs_and_outputs")
    empty = _text(ids=np.zeros((1, 0), dtype=np.int64), mask=np.zeros((1, 0), dtype=bool))
    assert _predict(model, **empty)["fetch_name_1"].shape == (1, 0)


def test_image_smaller_than_the_kernel_is_the_clients_fault(load: Any) -> None:
    model = load("images_that_must_have_a_size")
    for size in (1, 4, 1):
        with pytest.raises(InvalidRequest, match="too small for its convolutions"):
            _predict(model, image=np.ones((1, 1, size, size), dtype=np.float32))
    assert _predict(model, image=np.ones((1, 1, 5, 5), dtype=np.float32))["fetch_name_0"].shape == (1, 2)


@pytest.mark.parametrize("shape", [(4,), (1, 5), (2, 2, 4), ()])
def test_other_shape_is_refused(load: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidTensor, match=r'input "x": expected FP32 \[-1,4\]'):
        _predict(load("classifier"), x=np.ones(shape, dtype=np.float32))


def test_rows_in_any_memory_layout(load: Any) -> None:
    model = load("classifier")
    rows = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    strided = _predict(model, x=rows.T)["fetch_name_0"]
    assert np.array_equal(strided, _predict(model, x=np.ascontiguousarray(rows.T))["fetch_name_0"])


# -- threads and the process


@pytest.mark.parametrize("case", ["classifier", "bfloat16_tensors"])
def test_each_thread_gets_its_own_rows(load: Any, case: str) -> None:
    model = load(case)
    (spec,) = model.signature.inputs
    batches = [np.full((2, spec.shape[1]), number, dtype=np.float32) for number in range(8)]
    alone = [_predict(model, x=batch)["fetch_name_0"] for batch in batches]

    def check(number: int) -> bool:
        return all(
            np.array_equal(_predict(model, x=batches[number])["fetch_name_0"], alone[number]) for _ in range(200)
        )

    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(check, range(8)))


PROGRAM = """
import faulthandler, os, pathlib, signal, sys, time
import numpy as np
from modelyard.model import load_model

signal.signal(signal.SIGTERM, lambda *_: (print("stopping"), sys.exit(0)))
model = load_model("paddle", pathlib.Path(sys.argv[1]), {})
model.predict({"x": np.ones((1, 4), dtype=np.float32)}, ("fetch_name_0",), {})
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
"""


def test_process_stops_in_order_and_nothing_is_printed(load: Any, tmp_path: Path) -> None:
    load("classifier")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("stopping\n", "", 0)
