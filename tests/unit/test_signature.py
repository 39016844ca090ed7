# SPDX-License-Identifier: Apache-2.0
"""What a model is asked for, checked against what it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest, InvalidTensor
from modelyard.signature import SavedSignature, Signature, TensorSpec

MATRIX = Signature(
    inputs=(TensorSpec("input-0", "FP32", (-1, 2)),),
    outputs=(TensorSpec("output-0", "INT64", (-1,)),),
    on_request=(TensorSpec("predict_proba", "FP64", (-1, 3)),),
    columns=("a", "b"),
    any_input_name=True,
)
PAIR = Signature((TensorSpec("a", "INT64", (-1,)), TensorSpec("b", "BYTES", (-1,))), ())
TEXT = np.array([b"x", b"y"], dtype=object)


def bind(signature: Signature, **tensors: Any) -> Any:
    return signature.bind({name: np.asarray(value) for name, value in tensors.items()})


def test_a_tensor_that_fits_is_passed_through() -> None:
    array = np.ones((1, 2), np.float32)
    assert MATRIX.bind({"input-0": array})["input-0"] is array
    assert MATRIX.bind({"whatever": array})["input-0"] is array


def test_inputs_are_in_the_signatures_order() -> None:
    assert list(bind(PAIR, b=TEXT, a=[1, 2])) == ["a", "b"]


def test_columns_become_the_matrix() -> None:
    bound = bind(MATRIX, b=[2.0, 4.0], a=[[1], [3]])
    assert bound["input-0"].tolist() == [[1, 2], [3, 4]]
    assert bound["input-0"].dtype == np.float32


def test_a_trailing_dimension_of_one_is_dropped() -> None:
    assert bind(PAIR, a=[[1], [2]], b=TEXT.reshape(2, 1))["a"].shape == (2,)


def test_a_scalar_is_one_row() -> None:
    signature = Signature((TensorSpec("x", "BYTES", (-1,)),), ())
    assert signature.bind({"x": np.array(b"t", dtype=object)})["x"].shape == (1,)


@pytest.mark.parametrize(
    ("have", "want", "fits"),
    [
        ("f8", "FP32", True), ("i4", "FP32", True), ("u1", "INT64", True), ("i8", "INT32", True), ("?", "INT64", True),
        ("f4", "INT64", False), ("f4", "BOOL", False), ("i8", "BOOL", False), ("O", "FP32", False),
    ],
)  # fmt: skip
def test_numbers_are_cast_between_kinds_that_fit(have: str, want: str, fits: bool) -> None:
    signature = Signature((TensorSpec("x", want, (-1,)),), ())
    if fits:
        assert signature.bind({"x": np.ones(1, have)})["x"].tolist() == [1]
        return
    with pytest.raises(InvalidTensor, match=f'input "x": expected {want} '):
        signature.bind({"x": np.ones(1, have)})


def test_exact_datatypes_are_not_cast() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), (), exact_datatypes=True)
    with pytest.raises(InvalidTensor, match=r'input "x": expected FP32 \[-1\], got FP64 \[1\]'):
        bind(signature, x=[1.0])


@pytest.mark.parametrize(
    ("signature", "tensors", "message"),
    [
        (MATRIX, {"x": np.ones((1, 3), "f4")}, r'input "input-0": expected FP32 \[-1,2\], got FP32 \[1,3\]'),
        (MATRIX, {"x": np.ones(2, "f4")}, r"expected FP32 \[-1,2\], got FP32 \[2\]"),
        (MATRIX, {"a": np.ones(1), "c": np.ones(1)}, 'columns do not fit: missing "b", unknown "c"; expected "a", "b"'),
        (MATRIX, {"a": np.ones(1)}, 'missing "b"'),
        (MATRIX, {"a": np.ones(1), "b": np.ones(2)}, 'same number of rows in each, got "a" 1, "b" 2'),
        (MATRIX, {"a": TEXT, "b": np.ones(2)}, r'input "a": expected FP32 \[-1\], got BYTES \[2\]'),
        (PAIR, {"a": np.ones(2, int)}, 'input "b" is missing: expected "a", "b", got "a"'),
        (PAIR, {}, 'input "a" is missing: expected "a", "b", got none'),
        (PAIR, {"a": np.ones(2, int), "b": TEXT, "c": TEXT}, 'unknown input "c": expected "a", "b"'),
        (PAIR, {"a": np.ones(1, int), "b": TEXT}, 'same number of rows in each, got "a" 1, "b" 2'),
    ],
)
def test_what_does_not_fit_is_named(signature: Signature, tensors: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        signature.bind(tensors)


def test_rows_may_differ_without_a_batch_axis() -> None:
    signature = Signature(PAIR.inputs, (), batch_axis=False)
    assert len(bind(signature, a=[1], b=TEXT)) == 2


def test_requested_outputs_are_known_names() -> None:
    MATRIX.check_outputs(("predict_proba", "output-0"))
    with pytest.raises(InvalidRequest, match='output "z": expected one of "output-0", "predict_proba"'):
        MATRIX.check_outputs(("z",))


def test_no_rows_are_answered_with_empty_outputs() -> None:
    empty = MATRIX.empty_outputs(("output-0", "predict_proba"))
    assert [(array.dtype.name, array.shape) for array in empty.values()] == [("int64", (0,)), ("float64", (0, 3))]


def test_long_lists_of_names_are_cut() -> None:
    signature = Signature(tuple(TensorSpec(f"i{n}", "FP32", (-1,)) for n in range(50)), ())
    with pytest.raises(InvalidRequest, match='"i19" and 30 more, got none'):
        signature.bind({})


@pytest.mark.parametrize("batch_axis", [True, False])
def test_an_input_of_unknown_rank_takes_any_rank(batch_axis: bool) -> None:
    spec = TensorSpec("x", "FP32", (-1,))
    saved = SavedSignature("serving_default", "tensorflow/serving/predict", unknown_ranks=frozenset({"x"}))
    signature = Signature((spec, TensorSpec("y", "FP32", (-1,))), (), batch_axis=batch_axis, saved=saved)
    for shape in ((2,), (2, 1), (2, 3, 4)):
        assert bind(signature, x=np.ones(shape), y=[1.0, 2.0])["x"].shape == shape
    with pytest.raises(InvalidTensor, match='input "y"'):
        bind(signature, x=[1.0, 2.0], y=[[1.0, 2.0]])


def test_an_input_of_unknown_rank_has_rows_where_there_is_a_batch_axis() -> None:
    saved = SavedSignature("serving_default", "tensorflow/serving/predict", unknown_ranks=frozenset({"x"}))
    spec = TensorSpec("x", "FP32", (-1,))
    assert bind(Signature((spec,), (), batch_axis=False, saved=saved), x=1.0)["x"].shape == ()
    assert bind(Signature((spec,), (), saved=saved), x=1.0)["x"].shape == (1,)
