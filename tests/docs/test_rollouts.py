# SPDX-License-Identifier: Apache-2.0
"""What docs/rollouts.md names is there: settings, commands, verbs, routes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from modelyard import AsyncPlatform, Platform
from modelyard.cli.session import app
from modelyard.config import RolloutPolicy, load_model_spec
from modelyard.protocol.openapi import OPERATIONS
from modelyard.rollout import Gates

PAGE = (Path(__file__).parents[2] / "docs" / "rollouts.md").read_text()
VERBS = re.findall(r"^\| [a-z ]+ \| `(modelyard .*?)` \| `(platform\..*?)` \| `(\w+) (/[^` ]*)`", PAGE, re.MULTILINE)


def first_cells(header: str) -> set[str]:
    """What a table has in its first column."""
    table = re.search(rf"^\| {header} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert table is not None
    return {line.split("|")[1].strip(" `") for line in table[1].splitlines()}


def test_the_tables_have_every_setting_and_no_other() -> None:
    assert first_cells("key") == set(RolloutPolicy.model_fields)
    assert first_cells("gate") == set(Gates.__slots__)


def test_the_model_is_accepted() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (spec,) = [load_model_spec(model) for model in yaml.safe_load(block)]
    assert (len(spec.rollout.steps), spec.sticky) == (4, "header:x-user-id")


def test_the_table_of_verbs_is_read() -> None:
    assert len(VERBS) == 13


@pytest.mark.parametrize(
    "command", [verb[0] for verb in VERBS] + re.findall(r"^\$ (modelyard .*)$", PAGE, re.MULTILINE)
)
def test_every_command_is_one(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    found = group.commands[name]  # type: ignore[attr-defined]
    assert found.make_context(name, arguments).params["name"] == "churn"


@pytest.mark.parametrize("call", [verb[1] for verb in VERBS])
def test_every_verb_is_one_of_both_twins(call: str) -> None:
    name = call.removeprefix("platform.").partition("(")[0]
    assert callable(getattr(Platform, name))
    assert callable(getattr(AsyncPlatform, name))


@pytest.mark.parametrize(("method", "way"), [verb[2:] for verb in VERBS])
def test_every_route_is_one(method: str, way: str) -> None:
    routes = {(operation.method, path) for operation in OPERATIONS for path, _ in operation.routes()}
    path = way.replace("/labels/tested", "/labels/{label}")
    assert (method, f"/platform/v1/models/{{model}}{path}") in routes
