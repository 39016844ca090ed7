# SPDX-License-Identifier: Apache-2.0
"""Models as a list of their own: short, and the same when they are read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelyard.config import ModelSpec, parse_model_spec, read_models, to_short
from modelyard.errors import InvalidConfig

MINIMAL = {"name": "m", "framework": "sklearn", "uri": "models/m"}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"options": {"model_file": "a.joblib", "deep": {"list": [1, None, "x"]}}},
        {"autoscaling": {"min_replicas": 3, "max_replicas": 3}},
        {"autoscaling": {"min_replicas": 0}},
        {"rollout": {"steps": []}},
        {"rollout": {"steps": [1.5, 100.0], "gates": {"p99_ms": 5.0}}, "sticky": "cookie:session"},
        {"version_policy": {"specific": [3, 7], "labels": {"canary": 7}}},
        {"runtime": {"pip": ["xgboost==3.0.5"], "env_vars": {"A": "b"}}, "resources": {"num_gpus": 0.5}},
        {"batching": {"max_batch_size": 1}, "limits": {"max_queued_requests": 0}, "description": "Größe"},
    ],
    ids=str,
)
def test_a_short_spec_is_what_was_written(more: dict[str, Any]) -> None:
    spec = parse_model_spec(MINIMAL | more)
    assert to_short(spec) == MINIMAL | more
    assert parse_model_spec(to_short(spec)) == spec


def test_a_policy_of_defaults_is_one_all_the_same() -> None:
    spec = parse_model_spec(MINIMAL | {"version_policy": {}})
    assert parse_model_spec(to_short(spec)) == spec


def test_defaults_that_are_written_out_are_left_out_again() -> None:
    spec = ModelSpec.model_validate(MINIMAL)
    assert to_short(parse_model_spec(spec.to_json())) == MINIMAL


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("- a", ("{path}: expected a mapping with the key models",)),
        ("{}", ("models: expected a list, got nothing",)),
        ("model: []", ("models: expected a list, got nothing", 'model: unknown key; did you mean "models"?')),
        (
            "models: [{name: a, framework: x}, {name: b, framework: y, batching: {max_batch_size: 0}}, {name: c}]",
            (
                "models[1].batching.max_batch_size: expected an integer >= 1, got 0",
                "models[2].framework: expected a text that is not empty, got nothing",
            ),
        ),
        (
            "models: [{name: a, framework: x}, {name: a, framework: x}]",
            ('models: expected different names, got "a" in models[0] and models[1]',),
        ),
    ],
)
def test_what_is_wrong_is_told_where(tmp_path: Path, text: str, problems: tuple[str, ...]) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        read_models(path)
    assert caught.value.problems == tuple(problem.format(path=path) for problem in problems)
