# SPDX-License-Identifier: Apache-2.0
"""Merging requests and splitting their answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.batching import Answer, Call, check_rows, group_key, merge, part, split
from modelyard.errors import InternalError, InvalidRequest

ROWS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=5)


def call(*rows: int, start: int = 0, **more: Any) -> Call:
    """A call whose every row is different: FP32 [-1,2] and BYTES [-1]."""
    numbers = np.arange(start, start + sum(rows))
    texts = np.array([b"%d" % number for number in numbers] or [b""], dtype=object)[: sum(rows)]
    inputs = {"x": np.stack([numbers, -numbers], axis=1).astype(np.float32), "t": texts}
    return replace(Call(inputs, rows, ("y",), {}), **more)


def lists(tensors: Any) -> dict[str, Any]:
    return {name: array.tolist() for name, array in tensors.items()}


@given(ROWS)
def test_split_undoes_merge(groups: list[list[int]]) -> None:
    calls = [call(*rows, start=100 * index) for index, rows in enumerate(groups)]
    merged = merge(calls)
    check_rows(merged.inputs, merged)
    singles = [part(single, index) for single in calls for index in range(len(single.rows))]
    answers = split(Answer(merged=merged.inputs), merged.rows)
    assert [lists(answer) for answer in answers] == [lists(single.inputs) for single in singles]


@given(ROWS)
def test_a_part_of_the_merged_call_is_the_part_of_its_call(groups: list[list[int]]) -> None:
    calls = [call(*rows, start=100 * index) for index, rows in enumerate(groups)]
    merged = merge(calls)
    singles = [part(single, index) for single in calls for index in range(len(single.rows))]
    assert [lists(part(merged, index).inputs) for index in range(len(merged.rows))] == [
        lists(single.inputs) for single in singles
    ]
    assert [single.rows for single in singles] == [(rows,) for rows in merged.rows]


def test_one_call_is_not_copied() -> None:
    single = call(3)
    assert merge([single]) is single
    assert part(single, 0) is single
    assert split(Answer(merged=single.inputs), single.rows) == [single.inputs]


def test_parts_are_views() -> None:
    merged = merge([call(2), call(1)])
    first = split(Answer(merged=merged.inputs), merged.rows)[0]
    assert not isinstance(first, Exception)
    assert np.shares_memory(first["x"], merged.inputs["x"])
    assert np.shares_memory(part(merged, 1).inputs["x"], merged.inputs["x"])


def test_a_merged_call_has_come_by_all_that_its_parts_have() -> None:
    ways: list[tuple[str, ...]] = [(), ("a@1", "b@1"), ("b@1", "c@2")]
    assert merge([call(1, via=via) for via in ways]).via == ("a@1", "b@1", "c@2")


def test_failed_parts_stay_apart() -> None:
    parts = ({"y": np.ones(1)}, InvalidRequest("row 2"))
    assert split(Answer(parts=parts), (1, 1)) == list(parts)


@pytest.mark.parametrize(
    "other",
    [
        call(1, outputs=("z",)),
        call(1, parameters={"k": 1}),
        call(1, inputs={"x": np.ones((1, 3), np.float32), "t": call(1).inputs["t"]}),
        call(1, inputs={"x": np.ones((1, 2)), "t": call(1).inputs["t"]}),
        call(1, inputs={"x": call(1).inputs["x"]}),
    ],
    ids=["outputs", "parameters", "row shape", "datatype", "names"],
)
def test_calls_that_differ_are_not_grouped(other: Call) -> None:
    assert group_key(call(1)) == group_key(call(5, 2))
    assert group_key(call(1)) != group_key(other)


def test_keys_ignore_the_order_of_parameters_and_are_hashable() -> None:
    one, two = call(1, parameters={"a": 1, "b": "x"}), call(1, parameters={"b": "x", "a": 1})
    assert hash(group_key(one)) == hash(group_key(two))
    assert group_key(one) == group_key(two)


@pytest.mark.parametrize(("left", "right"), [(1, True), (0, False), (1, 1.0)])
def test_parameters_that_are_equal_but_of_another_type_are_not_grouped(left: Any, right: Any) -> None:
    assert group_key(call(1, parameters={"k": left})) != group_key(call(1, parameters={"k": right}))


@pytest.mark.parametrize("output", [np.ones(2), np.ones((4, 1)), np.array(3.0)])
def test_an_answer_with_other_rows_is_the_servers_fault(output: Any) -> None:
    with pytest.raises(InternalError, match=r'output "y": expected 3 rows as in the inputs, got shape \['):
        check_rows({"y": output}, call(1, 2))
