# SPDX-License-Identifier: Apache-2.0
"""Made-up rows: what they find out of a model, and how much of it they ask."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelyard.errors import InvalidRequest
from modelyard.signature import TensorSpec
from modelyard_deployments._trial import refine, show_example, try_out


def _spec(*shape: int) -> TensorSpec:
    return TensorSpec("x", "FP32", shape)


def test_rows_that_are_answered_alike_alone_and_with_others_are_rows() -> None:
    assert try_out(lambda rows: {"y": rows["x"] * 2}, [_spec(-1, 4)]).has_rows
    assert not try_out(lambda rows: {"y": rows["x"] - rows["x"].mean()}, [_spec(-1, 4)]).has_rows
    assert not try_out(lambda rows: {"y": rows["x"][:1]}, [_spec(-1, 4)]).has_rows


def test_a_variable_dimension_is_seen_to_vary() -> None:
    trial = try_out(lambda rows: {"y": rows["x"].sum(axis=2), "z": rows["x"]}, [_spec(-1, -1, 4)])
    assert [str(spec) for spec in trial.outputs] == ["FP32 [-1,-1]", "FP32 [-1,-1,4]"]
    assert str(refine(TensorSpec("z", "FP32", ()), trial)) == "FP32 [-1,-1,4]"
    assert str(refine(TensorSpec("other", "FP32", (7,)), trial)) == "FP32 [7]"


def test_a_model_that_takes_nothing_is_not_asked_for_huge_rows() -> None:
    sizes = []

    def refuse(rows: Any) -> Any:
        sizes.append(rows["x"].size)
        raise InvalidRequest("no")

    trial = try_out(refuse, [_spec(-1, -1, -1, -1)])
    assert (trial.answers, trial.reason) == ({}, "no")
    assert max(sizes) == 3 * 64**3
    assert not np.diff(sizes[::2]).min() < 0


def test_a_row_that_is_taken_where_zeros_are_not_is_the_example() -> None:
    def ask(rows: Any) -> Any:
        if not rows["x"].all():
            raise InvalidRequest("nothing in it")
        return {"y": np.ones(len(rows["x"]))}

    assert try_out(ask, [TensorSpec("x", "BYTES", (-1,))]).example["x"] in ("0", "1")
    trial = try_out(ask, [_spec(-1)])
    value = trial.example["x"]
    assert 0 < value < 1
    assert show_example([_spec(-1)], trial, batch_axis=True) == {"x": value}
    assert show_example([_spec(-1)], trial, batch_axis=False) == {"x": [value]}
