# SPDX-License-Identifier: Apache-2.0
"""What docs/catalog.md names is there: commands, routes, verbs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from modelyard import AsyncPlatform, Platform
from modelyard.cli.session import app
from modelyard.protocol.openapi import OPERATIONS

PAGE = (Path(__file__).parents[2] / "docs" / "catalog.md").read_text()
COMMANDS = re.findall(r"^\$ modelyard (?:--url \S+ )?([^>\n]*)", PAGE, re.MULTILINE)


def test_the_commands_are_read() -> None:
    assert len(COMMANDS) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    name, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"(?:platform|other)\.(\w+)\(", PAGE))))
def test_every_verb_is_one_of_both_twins(verb: str) -> None:
    assert callable(getattr(Platform, verb))
    assert callable(getattr(AsyncPlatform, verb))


@pytest.mark.parametrize(("method", "path"), re.findall(r"`(GET|POST) (/platform/\S+?)`", PAGE))
def test_every_route_is_one(method: str, path: str) -> None:
    routes = {(operation.method, route) for operation in OPERATIONS for route, _ in operation.routes()}
    assert (method, path.replace("NAME", "{model}")) in routes
