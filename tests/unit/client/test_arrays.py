# SPDX-License-Identifier: Apache-2.0
"""From lists, records and tables to named arrays."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest

from modelyard.client.arrays import to_tensors
from modelyard.errors import InvalidRequest


def test_an_array_is_passed_on_as_a_view() -> None:
    array = np.ones((2, 4), dtype=np.float32)
    (tensor,) = to_tensors(array).values()
    assert np.shares_memory(tensor, array)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([[1, 2]], {"input-0": [[1, 2]]}),
        (((1.5,),), {"input-0": [[1.5]]}),
        (["a", "ü"], {"input-0": [b"a", "ü".encode()]}),
        ([b"\xff"], {"input-0": [b"\xff"]}),
        ({"a": [1], "b": ["x"]}, {"a": [1], "b": [b"x"]}),
        ([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], {"a": [1, 2], "b": [b"x", b"y"]}),
        ({"a": np.array([1, 2], dtype=object)}, {"a": [1, 2]}),
        ({"a": np.array([True, False])}, {"a": [True, False]}),
    ],
    ids=str,
)
def test_what_people_have_becomes_named_arrays(data: Any, expected: dict[str, Any]) -> None:
    assert {name: array.tolist() for name, array in to_tensors(data).items()} == expected


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ([[1, 2], [3]], 'input "input-0": .*inhomogeneous'),
        ([{"a": 1}, {"b": 1}], "record 1: expected the keys of the first, a"),
        ([{"a": 1}, 3], "record 1"),
        ({"a": ["x", None]}, 'input "a": element 1 has no value'),
        ({"a": np.array([1, "x"], dtype=object)}, "expected all texts or all numbers, got both"),
        ({"a": [datetime.date(2025, 1, 1)]}, "expected texts or numbers, got date"),
        ({"a": np.array(["2025-01-01"], dtype="datetime64[D]")}, "no protocol datatype for numpy dtype datetime64"),
        ({"a": [1j]}, "no protocol datatype"),
    ],
    ids=str,
)
def test_what_no_protocol_carries_is_refused_with_its_place(data: Any, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        to_tensors(data)


def test_a_table_becomes_one_array_per_column() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"size": [1.5, 2.5], "rooms": [2, 3], "city": ["Ulm", "Köln"]})
    frame["kind"] = frame["city"].astype("category")
    frame["floor"] = frame["rooms"].astype("Int64")
    tensors = to_tensors(frame)
    assert {name: array.dtype.kind for name, array in tensors.items()} == {
        "size": "f",
        "rooms": "i",
        "city": "O",
        "kind": "O",
        "floor": "i",
    }
    assert tensors["city"].tolist() == [b"Ulm", "Köln".encode()]


def test_a_missing_number_is_nan() -> None:
    pandas = pytest.importorskip("pandas")
    tensors = to_tensors(pandas.DataFrame({"floor": pandas.array([1, None], dtype="Int64"), "size": [1.5, None]}))
    assert [np.isnan(array).tolist() for array in tensors.values()] == [[False, True], [False, True]]


def test_a_table_with_missing_texts_or_double_names_is_refused() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InvalidRequest, match='"city": element 1 has no value'):
        to_tensors(pandas.DataFrame({"city": ["Ulm", None]}))
    with pytest.raises(InvalidRequest, match="two columns of one name"):
        to_tensors(pandas.DataFrame([[1, 2]], columns=["a", "a"]))
