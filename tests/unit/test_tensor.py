# SPDX-License-Identifier: Apache-2.0
"""Datatypes, numpy dtypes and the raw form."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from modelyard.errors import InvalidTensor
from modelyard.tensor import (
    DATATYPES,
    byte_size,
    datatype_of,
    describe,
    element_count,
    from_raw,
    get_datatype,
    to_bytes_array,
    to_protocol_array,
    to_raw,
)

SIZES = {"BOOL": 1, "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8, "BYTES": None} | {
    f"{sign}INT{bits}": bits // 8 for sign in ("", "U") for bits in (8, 16, 32, 64)
}


def test_the_table_is_the_protocols() -> None:
    assert {name: row.item_bytes for name, row in DATATYPES.items()} == SIZES
    assert [name for name, row in DATATYPES.items() if row.contents is None] == ["FP16", "BF16"]


@pytest.mark.parametrize("name", DATATYPES)
def test_a_dtype_and_its_datatype_are_a_pair(name: str) -> None:
    assert datatype_of(np.empty(0, DATATYPES[name].dtype)) == name
    assert get_datatype(name.lower(), "x") is DATATYPES[name]


def test_an_unknown_datatype_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidTensor, match=r"x: expected a datatype of BOOL, .*BYTES, got FLOAT"):
        get_datatype("FLOAT", "x")


@pytest.mark.parametrize("dtype", ["<U3", "S3", object, np.dtypes.StringDType()])
def test_strings_are_bytes(dtype: object) -> None:
    array = np.array([["a", "ä"]] if dtype != "S3" else [["a", "b"]], dtype=dtype)  # type: ignore[call-overload]
    assert datatype_of(array) == "BYTES"
    assert to_protocol_array(array).tolist()[0][0] == b"a"


@pytest.mark.parametrize("dtype", [complex, "M8[s]", [("a", "i4")]])
def test_other_dtypes_have_no_datatype(dtype: object) -> None:
    with pytest.raises(TypeError, match="no protocol datatype"):
        to_protocol_array(np.zeros(1, dtype))  # type: ignore[call-overload]


def test_protocol_arrays_are_views_and_others_copies() -> None:
    array = np.ones(3, np.float32)
    assert to_protocol_array(array) is array
    swapped = to_protocol_array(np.array([1, 2], ">i4"))
    assert (swapped.dtype, swapped.tolist()) == (np.dtype("<i4"), [1, 2])


def test_bytes_arrays_keep_bytes_encode_text_and_print_the_rest() -> None:
    array = np.array([[b"\xff", "ä"], [3, None]], dtype=object)
    assert to_bytes_array(array).tolist() == [[b"\xff", "ä".encode()], [b"3", b"None"]]


def test_the_raw_form_is_little_endian_and_row_major() -> None:
    assert bytes(to_raw(np.array([[1, 2], [3, 4]], np.int16).T)) == b"\1\0\3\0\2\0\4\0"
    assert bytes(to_raw(np.array([b"ab", b""], dtype=object))) == b"\2\0\0\0ab\0\0\0\0"
    assert bytes(to_raw(np.array(1.0).astype(ml_dtypes.bfloat16))) == b"\x80\x3f"
    assert bytes(to_raw(np.empty((0, 3)))) == b""


def test_raw_tensors_are_views() -> None:
    array = np.arange(4, dtype=np.int32)
    assert np.shares_memory(np.frombuffer(to_raw(array), np.uint8), array)
    assert not from_raw(bytes(to_raw(array)), DATATYPES["INT32"], (2, 2), "x").flags.owndata


@pytest.mark.parametrize(
    ("raw", "name", "shape", "message"),
    [
        (b"123", "INT16", (2,), "expected 4 bytes for INT16 \\[2\\], got 3 bytes"),
        (b"\1\0\0", "BYTES", (1,), "a 4-byte length"),
        (b"\2\0\0\0a", "BYTES", (1,), "a BYTES element of 2 bytes at 4, got 1 bytes"),
        (b"\0\0\0\0", "BYTES", (2,), "expected 2 BYTES elements, got 1"),
        (b"", "BYTES", (2**60,), "BYTES elements, got 0"),
    ],
)
def test_raw_buffers_of_the_wrong_size_are_refused(raw: bytes, name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidTensor, match=message):
        from_raw(raw, DATATYPES[name], shape, "x")


def test_counts_and_descriptions() -> None:
    assert [element_count(shape) for shape in ((), (0, 5), (2, 3), (2**40, 2**40))] == [1, 0, 6, 2**80]
    assert describe("FP32", (-1, 4)) == "FP32 [-1,4]"


def test_byte_size_counts_texts_not_references() -> None:
    assert byte_size(np.array([[b"ab", b""], [b"c", b"defg"]], object)) == 7
    assert byte_size(np.zeros((2, 3), np.float32)) == 24
