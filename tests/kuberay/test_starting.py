# SPDX-License-Identifier: Apache-2.0
"""What keeps pods from starting though definition and operator take it: each with an example that is refused."""

from __future__ import annotations

import copy
from typing import Any

import click
import pytest
from ray.scripts.scripts import start
from rendering import SERVICES, find

from modelyard.kuberay import check_rules, check_serving, check_shape
from modelyard.kuberay.starting import INTEGERS, OTHERS

DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def service() -> dict[str, Any]:
    return copy.deepcopy(find("overlays/gpu", "RayService"))


def changed(**keys: Any) -> dict[str, Any]:
    """With other values in the group of GPUs; of its pod where that has the key, of its container where that has it."""
    made = service()
    group = made["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    for key, value in keys.items():
        owner = next((one for one in (container, pod, group) if key in one), container)
        owner[key] = value
    return made


GROUP = "spec.rayClusterConfig.workerGroupSpecs[1]"
CONTAINER = f"{GROUP}.template.spec.containers[0]"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"groupName": ""}, f"{GROUP}.groupName: expected a text of at most 63"),
        ({"groupName": "x" * 64}, f"{GROUP}.groupName: expected a text of at most 63"),
        ({"groupName": "gpu h100"}, f"{GROUP}.groupName: expected a text of at most 63"),
        ({"groupName": "gpu_h100"}, f"{GROUP}.groupName: expected a text of at most 63"),
        ({"groupName": "x" * 58, "numOfHosts": 2}, f"{GROUP}.groupName: expected at most 57 characters"),
        ({"rayStartParams": {"num-cpu": "1"}}, f"{GROUP}.rayStartParams.num-cpu: no option of ray start; did you"),
        ({"image": ""}, f"{CONTAINER}.image: expected the name of an image"),
        ({"readinessProbe": {"httpGet": {"port": "serv"}}}, f"{CONTAINER}.readinessProbe.httpGet.port: expected "),
        ({"startupProbe": {"tcpSocket": {"port": "a"}}}, f"{CONTAINER}.startupProbe.tcpSocket.port: expected a number"),
        ({"env": [{"name": DRAIN, "value": "1201"}]}, f"{GROUP}.template.spec.terminationGracePeriodSeconds: expect"),
    ],
)
def test_what_would_not_start_is_refused(keys: dict[str, Any], problem: str) -> None:
    made = changed(**keys)
    if "numOfHosts" in keys:
        container = made["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]
        made["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["numOfHosts"] = container.pop("numOfHosts")
    assert check_shape(made) == ()
    (found,) = check_rules(made)
    assert found.startswith(problem)


@pytest.mark.parametrize(("amount", "is_one"), [("6x", False), ("-1", False), ("1500m", True), ("4Gi", True)])
def test_resources_of_a_group_are_quantities(amount: str, is_one: bool) -> None:
    made = service()
    made["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["resources"] = {"GPU": amount}
    assert (check_rules(made) == ()) is is_one


@pytest.mark.parametrize("value", ["0.5", "two", "-1", ""])
@pytest.mark.parametrize("key", ["num-cpus", "num-gpus", "memory"])
def test_a_number_of_ray_start_is_a_whole_one(key: str, value: str) -> None:
    made = service()
    made["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"] = {key: value}
    (found,) = check_rules(made)
    assert found.startswith(f"spec.rayClusterConfig.headGroupSpec.rayStartParams.{key}: expected a whole number")


@pytest.mark.parametrize(("key", "is_expanded"), [("object-store-memory", True), ("num-cpus", False)])
def test_a_shell_expands_what_nobody_reads_before(key: str, is_expanded: bool) -> None:
    made = changed()
    made["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]["rayStartParams"][key] = "$BYTES"
    assert (list(check_rules(made)) == []) is is_expanded


def test_options_are_those_of_ray_start() -> None:
    kinds = {name: option.type for option in start.params for name in option.opts if name.startswith("--")}
    numbers = {name.removeprefix("--") for name, kind in kinds.items() if isinstance(kind, click.types.IntParamType)}
    assert numbers == INTEGERS
    assert {name.removeprefix("--") for name in kinds} - numbers == OTHERS


@pytest.mark.parametrize(("key", "value"), [("a b", "c"), ("a", "-c"), ("a/b/c", "d"), ("a", "x" * 64)])
def test_nodes_are_chosen_by_labels(key: str, value: str) -> None:
    made = service()
    made["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["nodeSelector"] = {key: value}
    (found,) = check_shape(made)
    assert found.startswith("spec.rayClusterConfig.headGroupSpec.template.spec.nodeSelector.")


def test_a_port_that_the_operator_adds_is_one() -> None:
    made = changed(readinessProbe={"httpGet": {"port": "metrics"}}, ports=[{"name": "serve", "containerPort": 8000}])
    assert check_rules(made) == ()


@pytest.mark.parametrize(
    ("folder", "location", "is_ready"),
    [
        ("overlays/cpu", "EveryNode", True),
        ("overlays/cpu", "HeadOnly", False),
        ("overlays/dev", "HeadOnly", True),
        ("overlays/dev", "Disabled", False),
    ],
)
def test_a_proxy_is_where_pods_are_to_be_ready(folder: str, location: str, is_ready: bool) -> None:
    found = list(check_serving(find(folder, "RayService"), {"proxy_location": location}))
    assert (found == []) is is_ready
    assert all(text.startswith("spec.serveConfigV2.proxy_location: expected EveryNode, got ") for text in found)


@pytest.mark.parametrize("folder", SERVICES)
def test_every_overlay_starts(folder: str) -> None:
    assert check_rules(find(folder, "RayService")) == ()
