# SPDX-License-Identifier: Apache-2.0
"""The shortcuts that speed rests on find what the plain search finds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import InvalidRequest
from modelyard.protocol import v1
from modelyard.protocol.http import holds_word
from modelyard.signature import Signature, TensorSpec

WORDS = [(b"true", b"u"), (b"false", b"l"), (b"null", b"u")]
COLUMNS = Signature((TensorSpec("x", "FP32", (-1, 2)),), (), columns=("a", "b"))


@pytest.mark.parametrize(("word", "rare"), WORDS)
@given(parts=st.lists(st.sampled_from([b"true", b"false", b"null", b"t", b"r", b"u", b"e", b"f", b"l", b"n", b"1,"])))
def test_a_word_is_found_where_it_is(word: bytes, rare: bytes, parts: list[bytes]) -> None:
    text = b"".join(parts) + b" " * 1024
    assert holds_word(text, word, rare) == (word in text)


@pytest.mark.parametrize(("word", "rare"), WORDS)
@pytest.mark.parametrize("before", [0, 1, 15, 16, 17, 2000])
def test_a_word_is_found_behind_many_of_its_letter(word: bytes, rare: bytes, before: int) -> None:
    start = b" " * 1024 + rare * before
    assert holds_word(start + word, word, rare)
    assert not holds_word(start + word[:-1], word, rare)


def test_records_of_columns_arrive_as_the_matrix() -> None:
    body = json.dumps({"instances": [{"a": 1, "b": 2.5}, {"b": 4, "a": None}]}).encode()
    inputs = v1.decode_predict(body, COLUMNS)[0].inputs
    np.testing.assert_array_equal(inputs["x"], np.array([[1, 2.5], [np.nan, 4]], np.float32))
    assert COLUMNS.bind(inputs)["x"] is inputs["x"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"a": 1, "b": 2}, {"a": 1, "b": "x"}], r'instances "b"\[1\]: expected a number \(FP32\), got the string "x"'),
        ([{"a": 1, "b": 2}, {"a": 1, "b": True}], r'instances "b"\[1\]: expected a number \(FP32\), got True'),
        ([{"a": 1, "b": 2}, {"a": 1, "b": [2]}], r'instances "b"\[1\]: expected a number \(FP32\), got a list'),
        ([{"a": 1, "b": 2}, {"a": 1, "c": 2}], r'instances\[1\]: .* missing "b", unknown "c"'),
        ([{"a": 1, "b": 2}, {"a": 1}], r'instances\[1\]: .* missing "b", unknown none'),
        ([{"a": 1, "b": 2}, 3], r'instances\[1\]: expected an object with "a", "b", got 3'),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_column(records: list[object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        v1.decode_predict(json.dumps({"instances": records}).encode(), COLUMNS)
