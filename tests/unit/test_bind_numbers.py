# SPDX-License-Identifier: Apache-2.0
"""What a model gets is what the client sent: no number is wrapped, made infinite or read from crooked memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidTensor
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, from_raw, to_raw


def bind(datatype: str, array: Any) -> Any:
    return Signature((TensorSpec("x", datatype, (-1,)),), ()).bind({"x": array})["x"]


@pytest.mark.parametrize(
    ("have", "want", "value"),
    [
        ("INT64", "INT8", 300),
        ("INT64", "INT8", -129),
        ("UINT64", "INT64", 2**63),
        ("UINT16", "UINT8", 256),
        ("FP64", "FP32", 1e300),
        ("FP64", "FP16", 1e5),
        ("INT64", "FP16", 70000),
        ("UINT16", "FP16", 65535),
        ("FP64", "BF16", 1e300),
    ],
)
def test_a_number_out_of_range_is_refused(have: str, want: str, value: float) -> None:
    with pytest.raises(InvalidTensor, match=f'^input "x": expected numbers in the range of {want}, got '):
        bind(want, np.array([0, value], DATATYPES[have].dtype))


@pytest.mark.parametrize("want", ["FP32", "FP16", "BF16"])
def test_infinities_and_nan_are_cast(want: str) -> None:
    assert str(bind(want, np.array([np.inf, -np.inf, np.nan])).astype("f8").tolist()) == "[inf, -inf, nan]"


@pytest.mark.parametrize("want", ["INT8", "FP16"])
def test_empty_tensors_are_cast(want: str) -> None:
    assert bind(want, np.zeros(0, "i8")).dtype == DATATYPES[want].dtype


def test_a_model_gets_aligned_memory() -> None:
    body = b"?" + np.array([1.0, 2.0]).tobytes()
    bound = bind("FP64", from_raw(memoryview(body)[1:], DATATYPES["FP64"], (2,), "x"))
    assert bound.flags.aligned
    assert bound.tolist() == [1.0, 2.0]


def test_raw_booleans_other_than_one_are_true() -> None:
    array = from_raw(b"\x00\x01\x02\xff", DATATYPES["BOOL"], (4,), "x")
    assert array.tolist() == [False, True, True, True]
    assert bytes(to_raw(array)) == b"\x00\x01\x01\x01"
