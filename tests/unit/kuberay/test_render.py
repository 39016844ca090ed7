# SPDX-License-Identifier: Apache-2.0
"""From a platform file to a RayService: groups for what models need, and warnings about what could never run."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modelyard.config import PlatformConfig
from modelyard.errors import InvalidConfig
from modelyard.kuberay import Choices, Rendered, Size, overlays, render
from modelyard.kuberay.needs import count_nodes, find_needs

FOLDER = Path(__file__).parents[3] / "kuberay"
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def file_of(*models: dict[str, Any], **args: Any) -> dict[str, Any]:
    """A Serve file with these models."""
    specs = [
        {"name": f"m{index}", "framework": "vllm", "uri": "models/m", **model} for index, model in enumerate(models)
    ]
    catalog = {"url": "postgresql:///modelyard"}
    platform = {"name": "platform", "import_path": "modelyard.serve.app:build"}
    arguments = {"catalog": catalog, "ingress": {"num_replicas": 2, "num_cpus": 1}, "models": specs} | args
    return {"http_options": {"host": "127.0.0.1", "port": 8123}, "applications": [platform | {"args": arguments}]}


def model(min_replicas: int = 1, max_replicas: int = 1, tensor_parallel: int = 1, **resources: Any) -> dict[str, Any]:
    return {
        "options": {"engine": {"tensor_parallel_size": tensor_parallel}},
        "autoscaling": {"min_replicas": min_replicas, "max_replicas": max_replicas},
        "resources": resources,
    }


def bounds(rendered: Rendered) -> dict[str, tuple[int, int]]:
    groups = rendered.service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return {group["groupName"]: (group["minReplicas"], group["maxReplicas"]) for group in groups}


def warnings(rendered: Rendered) -> tuple[str, ...]:
    """Without what is said of the catalog, whose way out has tests of its own."""
    return tuple(text for text in rendered.warnings if not text.startswith("catalog.url: "))


def served(rendered: Rendered) -> Any:
    return yaml.safe_load(rendered.service["spec"]["serveConfigV2"])


def test_models_without_gpus_have_a_group_of_cpus() -> None:
    # 8 and 8 once more for a new revision, with the ingress 18 CPUs, of which a pod has 4.
    assert bounds(render(file_of(model(max_replicas=8, num_cpus=1)), Choices())) == {"cpu": (2, 5)}


def test_each_type_of_accelerator_has_a_group_that_starts_from_none() -> None:
    models = (model(num_gpus=1, accelerator_type="L4"), model(max_replicas=3, num_gpus=1, accelerator_type="H100"))
    rendered = render(file_of(*models, model(num_gpus=0.5)), Choices(overlay="gpu"))
    assert bounds(rendered) == {"cpu": (2, 3), "gpu-h100": (0, 7), "gpu-l4": (0, 2)}
    groups = rendered.service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert groups[1]["resources"] == {"CPU": "6", "GPU": "1", "accelerator_type:H100": "1"}
    assert [text.split(": ")[0] for text in warnings(rendered)] == ["--node-selector", "--node-selector"]


@pytest.mark.parametrize(
    ("overlay", "wanted", "found"), [("cpu", {}, 900), ("cpu", {"place_timeout_s": 60}, 60), ("dev", {}, None)]
)
def test_a_cluster_that_can_grow_waits_for_nodes(overlay: str, wanted: dict[str, int], found: int | None) -> None:
    rendered = render(file_of(model(num_cpus=0.1), controller=wanted), Choices(overlay=overlay))
    arguments = served(rendered)["applications"][0]["args"]
    assert arguments["controller"].get("place_timeout_s") == found


def test_a_group_of_gpus_that_nobody_needs_is_not_made() -> None:
    assert list(bounds(render(file_of(model(num_cpus=1)), Choices(overlay="gpu")))) == ["cpu"]


def test_a_group_can_be_kept_to_nodes() -> None:
    choices = Choices(overlay="gpu", selectors={"gpu-l4": {"gke/accelerator": "nvidia-l4"}, "gpu-l5": {}})
    rendered = render(file_of(model(num_gpus=1, accelerator_type="L4")), choices)
    group = rendered.service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    assert group["template"]["spec"]["nodeSelector"] == {"gke/accelerator": "nvidia-l4"}
    assert warnings(rendered) == ("--node-selector: there is no group gpu-l5",)


def test_pods_are_as_large_as_asked() -> None:
    choices = Choices(overlay="gpu", cpu_worker=Size(8, "32Gi"), gpu_worker=Size(gpus=4))
    rendered = render(file_of(model(num_gpus=4, tensor_parallel=4)), choices)
    cpu, gpu = rendered.service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert cpu["template"]["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "8", "memory": "32Gi"},
        "limits": {"memory": "32Gi"},
    }
    assert (gpu["resources"]["GPU"], bounds(rendered)["gpu"]) == ("4", (0, 2))
    assert warnings(rendered) == ()


def test_hosts_of_a_group_are_as_many_as_one_replica_spreads_over() -> None:
    rendered = render(file_of(model(num_gpus=16, tensor_parallel=16)), Choices(overlay="llm"))
    group = rendered.service["spec"]["rayClusterConfig"]["workerGroupSpecs"][1]
    assert (group["numOfHosts"], group["minReplicas"], group["maxReplicas"]) == (4, 1, 2)


@pytest.mark.parametrize(
    ("overlay", "resources", "warning"),
    [
        ("cpu", {"num_gpus": 1}, "models[0]: m0 can never run: no group has num_gpus"),
        ("cpu", {"num_cpus": 5}, "it needs num_cpus 5, and a pod has num_cpus 4 (group cpu)"),
        ("cpu", {"memory_mb": 20000}, "it needs memory_mb 20000, and a pod has memory_mb 16384 (group cpu)"),
        ("cpu", {"custom": {"licence": 1}}, "it needs licence 1, and a pod has licence 0 (group cpu)"),
        ("cpu", {"accelerator_type": "L4"}, "models[0]: m0 can never run: no group has accelerator_type L4"),
        (
            "cpu",
            {"node_labels": {"disk": "fast"}},
            "needs a node with the label disk=fast, and a pod has none of that name",
        ),
        ("gpu", {"num_gpus": 2}, "it needs num_gpus 2, and a pod has num_gpus 1 (group gpu)"),
        ("dev", {"num_cpus": 1.5}, "they and the ingress need num_cpus 3.5, and the one pod has num_cpus 2"),
    ],
)
def test_what_could_never_run_is_warned_of(overlay: str, resources: dict[str, Any], warning: str) -> None:
    (found,) = warnings(render(file_of(model(**resources)), Choices(overlay=overlay)))
    assert warning in found


def test_labels_that_only_the_nodes_tell_are_not_warned_of() -> None:
    labels = {"ray.io/availability-zone": "eu-1a", "disk": "!slow"}
    assert warnings(render(file_of(model(node_labels=labels)), Choices(overlay="cpu"))) == ()


def test_a_replica_that_spreads_over_gpus_of_several_pods_fits() -> None:
    rendered = render(file_of(model(num_gpus=4, tensor_parallel=4)), Choices(overlay="gpu"))
    (warning,) = warnings(rendered)
    assert warning.startswith("models[0]: m0: a replica spreads over 4 pods of the group gpu")
    assert bounds(rendered)["gpu"] == (0, 8)


def test_the_ingress_is_always_on_two_nodes() -> None:
    rendered = render(file_of(ingress={"num_cpus": 1}), Choices())
    (application,) = served(rendered)["applications"]
    assert application["args"]["ingress"] == {"num_cpus": 1, "num_replicas": 2}
    assert application["deployments"] == [{"name": "Ingress", "max_replicas_per_node": 1, "max_surge_percent": 50}]
    assert rendered.warnings[0].startswith("ingress.num_replicas: 2 instead of 1")
    assert bounds(rendered) == {"cpu": (2, 3)}


def test_a_catalog_in_a_pod_is_warned_of() -> None:
    (found,) = render(file_of(catalog={"url": "sqlite:///a.db"}), Choices()).warnings
    assert found.startswith("catalog.url: a file in a pod")


def test_pods_listen_where_others_get() -> None:
    assert served(render(file_of(), Choices()))["http_options"] == {"host": "0.0.0.0", "port": 8000}


def test_the_old_cluster_waits_for_the_longest_request() -> None:
    slow = model() | {"limits": {"request_timeout_s": 1800}}
    rendered = render(file_of(slow), Choices())
    assert rendered.service["spec"]["rayClusterDeletionDelaySeconds"] == 1860
    (warning,) = warnings(rendered)
    assert warning.startswith("models[0].limits.request_timeout_s: 1800, and a pod that stops has 120 s")


def test_pods_of_language_models_have_the_time_for_long_answers() -> None:
    slow = model(num_gpus=1) | {"limits": {"request_timeout_s": 600}}
    assert warnings(render(file_of(slow), Choices(overlay="gpu"))) == ()


def test_the_given_file_is_left_as_it_is() -> None:
    document = file_of(model(num_cpus=1))
    before = copy.deepcopy(document)
    render(document, Choices())
    assert document == before


def test_the_same_input_gives_the_same_bytes(rendered: Rendered, render_again: Callable[[], Rendered]) -> None:
    assert render_again().to_yaml() == rendered.to_yaml()
    assert yaml.safe_load(rendered.to_yaml()) == rendered.service


@pytest.mark.parametrize("text", ["1e3", "y", "0o7", "1_0", "no", "null", "~", "2026-01-01"])
def test_texts_stay_texts_for_every_reader_of_yaml(text: str) -> None:
    assert f"name: '{text}'\n" in Rendered({"name": text}, ()).to_yaml()


def test_an_overlay_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidConfig, match='unknown overlay "gpus"; did you mean "gpu"'):
        render(file_of(), Choices(overlay="gpus"))


def test_a_file_without_the_platform_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="applications: expected one with import_path"):
        render({"applications": []}, Choices())


def test_it_is_what_kustomize_makes_of_the_overlay_apart_from_sizes(overlay: str, service: dict[str, Any]) -> None:
    made = kustomize(overlay)
    for one in (made, service):
        one["metadata"].pop("namespace", None)
        one["spec"].pop("rayClusterDeletionDelaySeconds")  # from the models' limits
        one["spec"]["serveConfigV2"] = yaml.safe_load(one["spec"]["serveConfigV2"])
        cluster = one["spec"]["rayClusterConfig"]
        for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())):
            for key in ("replicas", "minReplicas", "maxReplicas"):
                group.pop(key, None)
            container = group["template"]["spec"]["containers"][0]
            # There a ConfigMap, here the same in place: see the next test.
            container.pop("env", None)
            container["envFrom"] = [item for item in container.pop("envFrom", ()) if "configMapRef" not in item]
    assert service == made


def test_an_overlay_of_one_s_own_counts_with_all_that_it_is_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FOLDER, tmp_path / "kuberay")
    own = tmp_path / "kuberay" / "overlays" / "mine"
    own.mkdir()
    components = "[../../components/object-store, ../../components/fault-tolerance]"
    (own / "kustomization.yaml").write_text(f"resources: [../gpu]\ncomponents: {components}\n")
    monkeypatch.setattr(overlays, "FOLDER", tmp_path / "kuberay")
    models = [model(num_gpus=1, accelerator_type=kind) for kind in ("L4", "H100")]
    cluster = render(file_of(*models), Choices(overlay="mine")).service["spec"]["rayClusterConfig"]
    assert [group["groupName"] for group in cluster["workerGroupSpecs"]] == ["cpu", "gpu-h100", "gpu-l4"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].startswith("modelyard-gpu:")
        secrets = [item["secretRef"]["name"] for item in container["envFrom"]]
        assert secrets == ["modelyard-store", "modelyard-postgres"]
        assert {"name": "MODELYARD_CACHE", "value": "/var/cache/modelyard"} in container["env"]
        assert {"name": "copies", "mountPath": "/var/cache/modelyard"} in container["volumeMounts"]


def test_pods_have_the_variables_of_the_configmap(service: dict[str, Any]) -> None:
    lines = (FOLDER / "base" / "ray.env").read_text().splitlines()
    wanted = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
    del wanted[DRAIN]  # of which some overlays have more
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())):
        pod = group["template"]["spec"]
        found = {item["name"]: item["value"] for item in pod["containers"][0]["env"] if "value" in item}
        assert wanted.items() <= found.items()
        assert int(found[DRAIN]) + 30 == pod["terminationGracePeriodSeconds"]


def kustomize(overlay: str) -> dict[str, Any]:
    kubectl = Path(sys.executable).with_name("kubectl")  # of the development extra, always the same version
    run = [kubectl, "kustomize", str(FOLDER / "overlays" / overlay)]
    text = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    (found,) = [document for document in yaml.safe_load_all(text) if document["kind"] == "RayService"]
    made: dict[str, Any] = found
    return made


@pytest.mark.parametrize(
    ("bundles", "count"),
    [
        ([], 0),
        ([({"CPU": 0}, 5)], 1),
        ([({"CPU": 0.1}, 20)], 1),
        ([({"CPU": 0.1}, 21)], 2),
        ([({"CPU": 1.5}, 2)], 2),
        ([({"CPU": 0.5}, 2), ({"CPU": 1.5}, 2)], 2),
        ([({"CPU": 0.5}, 3), ({"CPU": 1.5}, 2)], 3),
        ([({"CPU": 1, "GPU": 0.4}, 2), ({"GPU": 1}, 1)], 2),
        ([({"CPU": 0.3}, 1), ({"CPU": 2}, 10**12), ({"CPU": 0.3}, 6)], 10**12 + 2),
    ],
)
def test_bundles_are_packed(bundles: list[tuple[dict[str, float], int]], count: int) -> None:
    assert count_nodes(bundles, {"CPU": 2, "GPU": 1}) == count


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 9)), max_size=8))
def test_nodes_are_enough_and_few(wanted: list[tuple[int, int]]) -> None:
    count = count_nodes([({"CPU": tenths / 10}, number) for tenths, number in wanted], {"CPU": 2})
    sizes = sorted((tenths for tenths, number in wanted for _ in range(number)), reverse=True)
    rooms: list[int] = []
    for size in sizes:
        index = next((index for index, free in enumerate(rooms) if free >= size), len(rooms))
        rooms[index : index + 1] = [(rooms[index] if index < len(rooms) else 20) - size]
    assert count == len(rooms)


def test_a_replica_of_several_workers_is_a_bundle_for_each() -> None:
    spec = {"name": "a", "framework": "vllm", "uri": "m", **model(2, 3, 2, num_gpus=2, num_cpus=4, memory_mb=1)}
    _, need = find_needs(PlatformConfig.model_validate({"models": [spec]}))
    assert need.bundles == ({"CPU": 4, "memory": 2**20, "GPU": 1}, {"GPU": 1})
    assert (need.least, need.replicas, need.total("GPU"), need.is_accelerated) == (2, 3, 2, True)


def test_shared_models_are_counted_by_their_pools() -> None:
    models = [{"name": f"m{index}", "framework": "sklearn", "uri": "m", "shared": True} for index in range(100)]
    own = {"name": "own", "framework": "sklearn", "uri": "m", "autoscaling": {"min_replicas": 0, "standby": True}}
    pools = {"resources": {"num_cpus": 3}, "autoscaling": {"min_replicas": 2, "max_replicas": 4}}
    _, need = find_needs(PlatformConfig.model_validate({"models": models, "pools": pools}))
    assert (need.path, need.bundles, need.least, need.replicas) == ("pools", ({"CPU": 3},), 2, 4)
    _, first, second = find_needs(PlatformConfig.model_validate({"models": [own], "pools": pools}))
    assert (first.name, second.path, second.bundles) == ("own", "pools", ({"CPU": 3},))
