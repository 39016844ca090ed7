# SPDX-License-Identifier: Apache-2.0
"""What docs/kuberay.md names is there: overlays, Secrets, alerts, folders, objects, commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from rendering import FOLDERS, OVERLAYS, documents, find
from typer.main import get_command

from modelyard.cli.session import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kuberay.md").read_text()
COMMANDS = [
    line.removeprefix("$ ").strip()
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
]


def rows(heading: str) -> list[str]:
    """The first cells of the table below a heading."""
    _, _, section = PAGE.partition(f"\n## {heading}\n")
    return re.findall(r"^\| `([\w-]+)`", section.partition("\n## ")[0], re.MULTILINE)


def secrets(value: object) -> Iterator[str]:
    """Names of Secrets that a manifest needs."""
    if isinstance(value, dict):
        for key in ("secretRef", "secretKeyRef"):
            if key in value:
                yield value[key]["name"]
        if "secretName" in value:
            yield value["secretName"]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from secrets(item)


def test_the_table_has_every_overlay() -> None:
    assert sorted(rows("Overlays")) == OVERLAYS


def test_the_table_has_every_alert() -> None:
    (group,) = find("base", "PrometheusRule")["spec"]["groups"]
    assert rows("Alerts") == [rule["alert"] for rule in group["rules"]]


def test_every_secret_of_the_overlays_is_made_by_a_command() -> None:
    made = re.findall(r"create secret generic ([\w-]+)", "\n".join(COMMANDS))
    needed = {name for folder in FOLDERS if folder != "gateway" for name in secrets(documents(folder))}
    assert sorted(made) == sorted(needed)


def test_the_way_to_a_model_has_ten_commands() -> None:
    _, _, section = PAGE.partition("## From nothing to a served model")
    block = re.search(r"```console\n(.*?)```", section, re.DOTALL)
    assert block is not None
    assert len(block[1].splitlines()) == 10


@pytest.mark.parametrize("command", [item for item in COMMANDS if "kubectl" in item])
def test_a_command_names_folders_and_objects_that_exist(command: str) -> None:
    for folder in re.findall(r"(?:-k|kustomize) (kuberay/\S+)", command):
        assert folder.removeprefix("kuberay/") in FOLDERS
    for namespace in re.findall(r"-n (\S+)", command):
        assert namespace in ("modelyard", "ray-system")
    for kind, name in re.findall(r"\b(rayservice|service)/(\S+)", command):
        assert name == ("modelyard" if kind == "rayservice" else "modelyard-serve-svc")


def test_the_operator_s_namespace_is_one_that_the_policies_let_in() -> None:
    (rule,) = find("base", "NetworkPolicy", "modelyard-operator")["spec"]["ingress"]
    (source,) = rule["from"]
    (expression,) = source["namespaceSelector"]["matchExpressions"]
    assert all(f"`{name}`" in PAGE for name in expression["values"])


def test_the_pod_that_fills_the_volume_is_valid() -> None:
    block = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    pod = yaml.safe_load(block[1])
    kubernetes_validate.validate(pod, "1.37", strict=True)
    (volume,) = pod["spec"]["volumes"]
    claim = find("overlays/gpu", "PersistentVolumeClaim")["metadata"]["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim


def test_our_own_commands_are_there() -> None:
    named = set(re.findall(r"(?:`|\$ )modelyard ([a-z]+)", PAGE))
    assert named > {"validate"}
    assert named <= get_command(app).commands.keys()  # type: ignore[attr-defined]


def test_links_and_paths_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE)
    paths = re.findall(r"(?<![\w/])kuberay/[\w./-]*\w", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []
