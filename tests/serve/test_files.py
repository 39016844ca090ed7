# SPDX-License-Identifier: Apache-2.0
"""Serve files as a whole: keys that Serve would overlook, values that it would refuse, the platform's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from modelyard.kuberay import Choices, overlay_names, read_serve_file, render
from modelyard.serve.files import check_serve_file

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
FREE = ("options", "engine", "steps", "catalog")
"""Of frameworks, checked by them."""


def keys_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(key, str):
            yield (*path, key)
        if key not in FREE:
            yield from keys_of(item, (*path, key))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_key_that_is_renamed_is_refused(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    assert check_serve_file(document) == ()
    paths = list(keys_of(document))
    for *above, key in paths:
        broken = copy.deepcopy(document)
        owner = broken
        for part in above:
            owner = owner[part]
        owner[f"{key}x"] = owner.pop(key)
        problems = check_serve_file(broken)
        if key == "import_path":  # then it is nobody's application
            assert problems, above
        else:
            assert any(f'{key}x: unknown key; did you mean "{key}"?' in text for text in problems), (above, key)
    assert len(paths) > 30


@pytest.mark.parametrize("overlay", overlay_names())
def test_what_render_makes_is_what_serve_takes(overlay: str) -> None:
    document = yaml.safe_load(CONFIGS[-1].read_text())
    made = read_serve_file(render(document, Choices(overlay=overlay)).service)
    assert check_serve_file(made) == ()
    parsed = ServeDeploySchema.model_validate(made)
    assert parsed.http_options.host == "0.0.0.0"
    assert parsed.applications[0].args["models"] == document["applications"][0]["args"]["models"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"proxy_location": "Nowhere"}, "proxy_location: expected "),
        ({"applications": {}}, "applications: expected a list"),
        ({"applications": [{"name": "a"}]}, "applications[0].import_path: expected a text, got nothing"),
        ({"http_options": {"port": "eighty"}}, 'http_options.port: expected an integer, got "eighty"'),
        ({"logging_config": {"log_levle": "INFO"}}, 'logging_config.log_levle: unknown key; did you mean "log_level"?'),
        ({"applications": [{"name": "a", "import_path": "nowhere"}]}, "applications[0].import_path: "),
        ({"applications": [{"name": "a", "import_path": "a:b", "port": 1}]}, "port"),
        (
            {"applications": [{"name": "a", "import_path": "a:b", "deployments": [1]}]},
            "a mapping for each of the deploy",
        ),
    ],
)
def test_what_serve_would_refuse_is_refused(changes: dict[str, Any], problem: str) -> None:
    found = check_serve_file({"applications": []} | changes)
    assert problem in found[0]
    assert len({text.partition(":")[0] for text in found}) == 1
