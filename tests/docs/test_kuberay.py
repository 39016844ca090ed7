# SPDX-License-Identifier: Apache-2.0
"""What docs/kuberay.md names is there: overlays, Secrets, alerts, folders, objects, commands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import ray
import yaml
from rendering import FOLDERS, KUBERAY, OVERLAYS, Document, documents, find, kustomize_own
from typer.main import get_command

from modelyard.cli.session import app
from modelyard.kuberay import check_shape

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kuberay.md").read_text()
COMMANDS = [
    line.removeprefix("$ ").strip()
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
]


def rows(heading: str) -> list[str]:
    """The first cells of the table below a heading."""
    _, _, section = PAGE.partition(f"# {heading}\n")
    return re.findall(r"^\| `([\w-]+)`", re.split("\n##+ ", section)[0], re.MULTILINE)


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


def test_the_table_has_every_component() -> None:
    assert sorted(rows("Components")) == sorted(path.name for path in (KUBERAY / "components").iterdir())


def test_the_table_has_every_alert() -> None:
    (group,) = find("overlays/cpu", "PrometheusRule")["spec"]["groups"]
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


def let_in(service: Document) -> list[str]:
    """Namespaces from which the operator may reach the head."""
    ((source,),) = [rule["from"] for rule in service["spec"]["ingress"]]
    (expression,) = source["namespaceSelector"]["matchExpressions"]
    found: list[str] = expression["values"]
    return found


def test_the_operator_is_installed_where_the_policies_let_it_in() -> None:
    allowed = let_in(find("base", "NetworkPolicy", "modelyard-operator"))
    assert all(f"`{name}`" in PAGE for name in allowed)
    flat = " ".join(PAGE.split())
    installed = re.findall(r"(?:helm install kuberay-operator|kubectl create(?= [^`]*ray-operator))[^`$]*", flat)
    assert len(installed) == 2  # in the ten commands, and without Helm
    for command in installed:
        namespace = re.search(r" -n (\S+)", command)
        assert namespace is not None, command
        assert namespace[1] in allowed
        assert "1.7.0" in command


def patched(heading: str) -> list[Document]:
    """What the overlay `cpu` comes to with the patch below a heading."""
    _, _, section = PAGE.partition(f"\n## {heading}\n")
    block = re.search(r"```yaml\n(patches:\n.*?)```", section.partition("\n## ")[0], re.DOTALL)
    assert block is not None
    return list(yaml.safe_load_all(kustomize_own(f"namespace: modelyard\nresources: [../cpu]\n{block[1]}")))


def test_another_namespace_of_the_operator_is_let_in_by_the_patch() -> None:
    policies = {item["metadata"]["name"]: item for item in patched("From nothing to a served model")}
    assert let_in(policies["modelyard-operator"]) == ["ray-system", "kuberay-system", "operators"]


def test_without_the_prometheus_operator_the_patch_leaves_everything_else() -> None:
    kinds = [(item["kind"], item["metadata"]["name"]) for item in patched("Overlays")]
    before = [(item["kind"], item["metadata"]["name"]) for item in documents("overlays/cpu")]
    assert kinds == [found for found in before if found[0] not in ("PodMonitor", "PrometheusRule")]


def test_the_label_of_kube_prometheus_stack_is_on_all_that_it_reads_and_nowhere_else() -> None:
    labels = {item["kind"]: item["metadata"].get("labels") for item in patched("Alerts")}
    release = {"release": "kube-prometheus-stack"}
    assert {kind for kind, found in labels.items() if found == release} == {"PodMonitor", "PrometheusRule"}


def test_settings_that_are_named_are_some_of_ray() -> None:
    package = Path(ray.__file__).parent
    text = "".join(path.read_text() for path in package.glob("serve/_private/*.py"))
    program = (package / "core/src/ray/gcs/gcs_server").read_bytes()
    own = (ROOT / "kuberay" / "base" / "ray.env").read_text()
    for name in set(re.findall(r"`(RAY_\w+)`", PAGE)):
        assert name in text + own or name.removeprefix("RAY_").encode() in program, name


def test_the_head_moves_by_a_change_that_makes_a_new_cluster() -> None:
    (found,) = re.findall(r"patch rayservice modelyard --type merge\s+\\\n\s+-p '(.*)'\n", PAGE)
    found = found.replace("""'"$(date +%s)"'""", "1700000000")  # as the shell has it
    service = find("overlays/cpu", "RayService")
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]
    head["annotations"] = json.loads(found)["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"][
        "annotations"
    ]
    assert head["annotations"]
    assert check_shape(service) == ()


def test_the_pod_that_fills_the_volume_is_valid() -> None:
    (block,) = re.findall(r"```yaml\n(apiVersion.*?)```", PAGE, re.DOTALL)
    pod = yaml.safe_load(block)
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
    paths = re.findall(r"(?<![\w/])kuberay/(?!kuberay-operator)[\w./-]*\w", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []
