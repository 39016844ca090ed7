# SPDX-License-Identifier: Apache-2.0
"""What rendering makes of a platform file so that it runs in pods, and what it warns of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import yaml
from rendering import KUBERAY, OVERLAYS

from modelyard.config import PlatformConfig
from modelyard.errors import InvalidConfig
from modelyard.kuberay import Choices, Rendered, Size, check_rules, check_shape, render
from modelyard.kuberay.needs import find_needs

Make = Callable[..., object]


def file_of(*models: Mapping[str, Any], deployments: Any = None, **args: Any) -> dict[str, Any]:
    """A Serve file with these models, two ingress processes and a catalog in a file."""
    specs = [{"name": f"m{index}", "framework": "sklearn", "uri": "m", **model} for index, model in enumerate(models)]
    application: dict[str, Any] = {"name": "platform", "import_path": "modelyard.serve.app:build"}
    application["args"] = {"ingress": {"num_replicas": 2, "num_cpus": 1}, "models": specs, **args}
    if deployments is not None:
        application["deployments"] = deployments
    return {"applications": [application]}


def gpu(**resources: Any) -> dict[str, Any]:
    return {"framework": "vllm", "resources": {"num_gpus": 1, **resources}}


def served(rendered: Rendered) -> Any:
    return yaml.safe_load(rendered.service["spec"]["serveConfigV2"])


def groups(rendered: Rendered) -> dict[str, Any]:
    return {group["groupName"]: group for group in rendered.service["spec"]["rayClusterConfig"]["workerGroupSpecs"]}


def warnings(rendered: Rendered, path: str) -> list[str]:
    return [text for text in rendered.warnings if text.startswith(path)]


@pytest.mark.parametrize(
    ("overlay", "models", "ingress", "labels"),
    [
        ("gpu", [gpu()], {}, {"modelyard-group": "cpu"}),
        ("llm", [gpu()], {}, {"modelyard-group": "cpu"}),
        ("gpu", [gpu()], {"node_labels": {"disk": "fast"}}, {"disk": "fast"}),
        ("gpu", [gpu()], {"node_labels": {}}, {}),
        ("gpu", [{}], {}, None),  # no GPUs, so no group of them
        ("cpu", [gpu()], {}, None),
        ("dev", [gpu()], {}, None),
    ],
)
def test_the_ingress_stays_off_nodes_with_gpus(
    overlay: str, models: list[Any], ingress: Mapping[str, Any], labels: Mapping[str, str] | None
) -> None:
    document = file_of(*models, ingress={"num_replicas": 2, **ingress})
    rendered = render(document, Choices(overlay=overlay))
    (application,) = served(rendered)["applications"]
    assert application["args"]["ingress"].get("node_labels") == labels
    if labels and not ingress:
        assert groups(rendered)["cpu"]["labels"].items() >= labels.items()


WINDOW = {"start": "08:00", "end": "18:00"}


def test_the_hours_when_most_replicas_run_count() -> None:
    hours = [WINDOW | {"min_replicas": 3, "max_replicas": 30}, WINDOW | {"min_replicas": 40}]
    scaling = {"min_replicas": 1, "max_replicas": 2, "schedule": hours}
    own = {"name": "own", "framework": "sklearn", "uri": "m", "autoscaling": scaling}
    shared = {"name": "shared", "framework": "sklearn", "uri": "m", "shared": True}
    config = PlatformConfig.model_validate({"models": [own, shared], "pools": {"autoscaling": scaling}})
    assert [(need.least, need.replicas) for need in find_needs(config)[1:]] == [(40, 40), (40, 40)]


def test_the_controller_has_its_place() -> None:
    args = {"controller": {"num_cpus": 3.5}, "ingress": {"node_labels": {"a": "b"}}}
    _, need = find_needs(PlatformConfig.model_validate(args))
    assert (need.name, need.bundles, need.least, need.replicas) == ("controller", ({"CPU": 3.5},), 1, 1)
    assert need.labels == {"a": "b"}
    assert warnings(render(file_of(controller={"num_cpus": 5}), Choices()), "controller: controller can never run: ")


def test_pools_with_an_accelerator_have_a_group_of_it() -> None:
    pools = {"resources": {"accelerator_type": "L4"}, "autoscaling": {"min_replicas": 1, "max_replicas": 2}}
    rendered = render(file_of({"shared": True}, pools=pools), Choices(overlay="gpu"))
    assert list(groups(rendered)) == ["cpu", "gpu-l4"]


def test_types_that_would_have_one_name_are_numbered() -> None:
    kinds = ("A100_40", "A100-40", "a100 40", "!")
    rendered = render(file_of(*(gpu(accelerator_type=kind) for kind in kinds)), Choices(overlay="gpu"))
    assert sorted(groups(rendered)) == ["cpu", "gpu", "gpu-a100-40", "gpu-a100-40-2", "gpu-a100-40-3"]


def test_names_of_groups_are_as_long_as_a_label_may_be() -> None:
    kinds = ("x" * 100 + "1", "x" * 100 + "2")
    rendered = render(file_of(*(gpu(accelerator_type=kind) for kind in kinds)), Choices(overlay="llm"))
    _, first, second = groups(rendered)
    assert (len(first), len(second), second[-3:]) == (57, 57, "x-2")
    assert check_rules(rendered.service) == ()


@pytest.mark.parametrize("location", ["HeadOnly", "Disabled"])
def test_every_node_has_a_proxy(location: str) -> None:
    rendered = render(file_of() | {"proxy_location": location}, Choices())
    assert served(rendered)["proxy_location"] == "EveryNode"
    assert warnings(rendered, f"proxy_location: EveryNode instead of {location}")


@pytest.mark.parametrize("own", [{}, {"max_surge_percent": 10}, {"user_config": {"a": 1}}])
def test_what_a_file_says_of_the_ingress_gets_what_it_leaves_out(own: Mapping[str, Any]) -> None:
    rendered = render(file_of(deployments=[{"name": "Ingress", **own}]), Choices())
    (deployment,) = served(rendered)["applications"][0]["deployments"]
    assert deployment == {"name": "Ingress", "max_replicas_per_node": 1, "max_surge_percent": 50} | own


@pytest.mark.parametrize("own", [{"num_replicas": 1}, {"autoscaling_config": {"min_replicas": 1}}])
def test_how_many_ingress_processes_there_are_is_said_once(own: Mapping[str, Any]) -> None:
    deployments = [{"name": "Controller"}, {"name": "Ingress", **own}]
    with pytest.raises(InvalidConfig) as caught:
        render(file_of(deployments=deployments), Choices())
    (key,) = own
    assert caught.value.problems[0].startswith(f"applications[0].deployments[1].{key}: expected nothing: ")


SPREADS = gpu(num_gpus=4) | {"options": {"engine": {"tensor_parallel_size": 4}}}


@pytest.mark.parametrize(
    ("choices", "is_told"),
    [
        (Choices(overlay="gpu"), True),
        (Choices(overlay="gpu", gpu_worker=Size(gpus=2)), True),
        (Choices(overlay="gpu", gpu_worker=Size(gpus=4)), False),
        (Choices(overlay="llm", gpu_worker=Size(gpus=2)), False),
    ],
)
def test_a_replica_over_pods_that_come_and_go_by_themselves_is_told(choices: Choices, is_told: bool) -> None:
    found = warnings(render(file_of(SPREADS), choices), "models[0]: m0: a replica spreads over ")
    assert bool(found) is is_told
    assert all("--gpu-worker-gpus 4" in text and "--overlay llm" in text for text in found)


@pytest.mark.parametrize(
    ("models", "selectors", "count"),
    [
        ([gpu()], {}, 0),
        ([gpu(accelerator_type="H100")], {}, 1),
        ([gpu(accelerator_type="H100")], {"gpu-h100": {"a": "b"}}, 0),
        ([gpu(accelerator_type="H100"), gpu(accelerator_type="L4")], {"gpu-h100": {"a": "b"}}, 1),
    ],
)
def test_a_group_with_a_type_wants_to_know_its_nodes(
    models: list[Any], selectors: Mapping[str, Mapping[str, str]], count: int
) -> None:
    rendered = render(file_of(*models), Choices(overlay="gpu", selectors=selectors))
    assert len(warnings(rendered, "--node-selector: nothing says which nodes")) == count


REMOTE = {"uri": "s3://bucket/m"}
HUB = {"uri": "hf://a/b"}
PIP = {"runtime": {"pip": ["numpy"]}}


@pytest.mark.parametrize(
    ("components", "model", "catalog", "problem"),
    [
        (
            [],
            REMOTE,
            "",
            "models[0].uri: the overlay lets no pod out to port 443: kuberay/components/object-store does",
        ),
        (["object-store"], REMOTE, "", ""),
        ([], HUB, "", "models[0].uri: the overlay lets no pod out to port 443: kuberay/components/https-out does"),
        (["https-out"], HUB, "", ""),
        (["https-out"], {"uri": "http://a:81/b"}, "", "models[0].uri: the overlay lets no pod out to port 81"),
        ([], PIP, "", "models[0].runtime: the overlay lets no pod out to port 443: kuberay/components/https-out does"),
        (["https-out"], PIP, "", ""),
        ([], {}, "postgresql:///m", "catalog.url: the overlay lets no pod out to port 5432: kuberay/components/fault-"),
        (["fault-tolerance"], {}, "postgresql:///m", ""),
        (["fault-tolerance"], {}, "postgresql://a:p/@b:1/m", ""),  # such a password hides the port
        (["fault-tolerance"], {}, "postgresql://a:b@c:54/m", "catalog.url: the overlay lets no pod out to port 54: "),
    ],
)
def test_what_no_pod_may_reach_is_warned_of(
    make_overlay: Make, components: list[str], model: Mapping[str, Any], catalog: str, problem: str
) -> None:
    folders = ", ".join(f"../../components/{name}" for name in components)
    make_overlay(f"resources: [../cpu]\ncomponents: [{folders}]")
    args = {"catalog": {"url": catalog}} if catalog else {}
    rendered = render(file_of(model, **args), Choices(overlay="mine"))
    found = [text for text in rendered.warnings if "lets no pod out" in text]
    assert len(found) == bool(problem)
    assert all(text.startswith(problem) for text in found)


def test_a_policy_of_one_s_own_is_a_way_out(make_overlay: Make) -> None:
    own = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "own"},
        "spec": {"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]},
    }
    make_overlay("resources: [../cpu, own.yaml]", {"own.yaml": yaml.safe_dump(own)})
    assert not warnings(render(file_of(REMOTE), Choices(overlay="mine")), "models[0].uri")


@pytest.mark.parametrize(("overlay", "count", "told"), [("ha", 3, 0), ("ha", 9, 1), ("cpu", 2, 0), ("cpu", 3, 1)])
def test_a_budget_that_lets_several_ingress_processes_go_is_warned_of(overlay: str, count: int, told: int) -> None:
    rendered = render(file_of(ingress={"num_replicas": count}), Choices(overlay=overlay))
    found = warnings(rendered, f"ingress.num_replicas: {count}, and evictions may leave ")
    assert len(found) == told
    assert all(f"minAvailable: {count - 1} " in text for text in found)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_s_own_file_is_warned_of_for_its_catalog_alone(overlay: str) -> None:
    own = KUBERAY / "overlays" / overlay / "platform.yaml"
    path = own if own.exists() else KUBERAY / "base" / "platform.yaml"
    document = yaml.safe_load(path.read_text())
    before = copy.deepcopy(document)
    rendered = render(document, Choices(overlay=overlay))
    assert {text.partition(":")[0] for text in rendered.warnings} <= {"catalog.url"}
    assert (check_shape(rendered.service), check_rules(rendered.service), document) == ((), (), before)
