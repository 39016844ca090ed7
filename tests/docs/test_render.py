# SPDX-License-Identifier: Apache-2.0
"""docs/render.md names every option and overlay, and its commands are some."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from rendering import KUBERAY, documents, kustomize_own

from modelyard.cli.session import app
from modelyard.kuberay import Choices, overlay_names, render
from modelyard.kuberay.groups import capacity, has_gpus
from modelyard.kuberay.overlays import load_service

PAGE = (Path(__file__).parents[2] / "docs" / "render.md").read_text()
COMMANDS = re.findall(r"^\$ (?:.* \| )?modelyard ([^|\n]*)", PAGE, re.MULTILINE)
OWN_FILES = {path.parent.name for path in KUBERAY.glob("overlays/*/platform.yaml")}
BASE_FILE = (KUBERAY / "base" / "platform.yaml").read_text()
PROGRAM: Any = typer.main.get_command(app)


def parse(command: str) -> Any:
    name, *arguments = shlex.split(command)
    found = PROGRAM.commands[name]
    if name == "render":
        name, *arguments = arguments
        found = found.commands[name]
    return found.make_context(name, arguments)


def test_the_commands_are_read() -> None:
    assert len(COMMANDS) == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str) -> None:
    parse(command)


def test_every_option_is_in_the_table() -> None:
    (options,) = re.findall(r"\| option \|.*?\n\n", PAGE, re.DOTALL)
    known = PROGRAM.commands["render"].commands["kuberay"].params
    assert set(re.findall(r"`(--[a-z-]+)", options)) == {parameter.opts[0] for parameter in known}


def test_every_overlay_is_named() -> None:
    assert set(overlay_names()) <= set(re.findall(r"`([a-z-]+)`", PAGE))


@pytest.mark.parametrize("overlay", ["cpu", "ha", "gpu", "llm"])
def test_sizes_of_pods_are_those_of_the_overlays(overlay: str) -> None:
    for group in load_service(overlay)["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        node = capacity(group)
        memory = f"{node['memory'] / 2**30:g}Gi"
        if has_gpus(group):
            assert f"{node['CPU']}, {memory} and {node['GPU']} in `{overlay}`" in PAGE
        elif overlay == "cpu":
            assert f"{node['CPU']} and {memory} in `cpu`" in PAGE
        else:
            assert f"else {node['CPU']} and {memory}" in PAGE


@pytest.mark.parametrize("overlay", overlay_names())
def test_the_overlay_of_one_s_own_is_what_was_rendered_with_everything_around_it(overlay: str) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert "resources: [../cpu]\n" in text
    file = (KUBERAY / "overlays" / overlay / "platform.yaml").read_text() if overlay in OWN_FILES else BASE_FILE
    rendered = render(yaml.safe_load(file), Choices(overlay=overlay))
    files = {"platform.yaml": file, "rayservice.yaml": rendered.to_yaml()}
    made = list(yaml.safe_load_all(kustomize_own(text.replace("../cpu", f"../{overlay}"), files)))
    (service,) = [item for item in made if item["kind"] == "RayService"]
    assert service["metadata"].pop("namespace") == "modelyard"
    assert service == rendered.service
    assert {item["metadata"].get("namespace", "modelyard") for item in made} == {"modelyard"}
    names = {(item["kind"], item["metadata"]["name"]) for item in made}
    assert names >= {("ServiceAccount", "modelyard-head"), ("ServiceAccount", "modelyard-worker")}
    assert names >= {(item["kind"], item["metadata"]["name"]) for item in documents(f"overlays/{overlay}")}
    (configmap,) = [item for item in made if item["metadata"]["name"] == "modelyard-platform"]
    assert configmap["data"] == {"platform.yaml": file}


def test_nobody_is_told_to_apply_the_rayservice_alone() -> None:
    assert re.findall(r"kubectl apply .*", PAGE) == ["kubectl apply -k ."]
