# SPDX-License-Identifier: Apache-2.0
"""The platform files of the overlays: one text in file, ConfigMap and RayService, and one that Serve and we accept."""

from __future__ import annotations

import importlib
import math
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema
from renaming import renamed
from rendering import COMBINED, KUBERAY, SERVICES, find, find_all

from modelyard.config import PlatformConfig, load_platform_config, load_serve_file
from modelyard.errors import InvalidConfig
from modelyard.launch import FAST, check_locations

FILES = sorted(KUBERAY.rglob("platform.yaml"))
OURS = frozenset({"args"})
"""What Serve gives on to the platform."""


def serve_file(folder: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = yaml.safe_load(find(folder, "RayService")["spec"]["serveConfigV2"])
    return found


def platform(folder: str) -> PlatformConfig:
    (application,) = serve_file(folder)["applications"]
    return load_platform_config(application["args"])


def unknown(value: object, model: type[BaseModel], path: str = "$") -> Iterator[str]:
    """Keys that Serve would read over."""
    for key, item in value.items() if isinstance(value, Mapping) else ():
        field = model.model_fields.get(key)
        if field is None:
            yield f"{path}.{key}"
            continue
        inner = inner_model(field.annotation)
        for each in item if isinstance(item, list) else [item]:
            yield from unknown(each, inner, f"{path}.{key}") if inner is not None else ()


def inner_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for item in typing.get_args(annotation) if (found := inner_model(item))), None)


def is_accepted(document: Mapping[str, Any]) -> bool:
    """Whether Serve takes it, with every key known to it, and the platform its arguments."""
    try:
        ServeDeploySchema.model_validate(document)
        load_platform_config(document["applications"][0]["args"])
    except (ValueError, KeyError, InvalidConfig):
        return False
    return not list(unknown(document, ServeDeploySchema))


@pytest.mark.parametrize("folder", SERVICES)
def test_file_configmap_and_service_are_one_text(folder: str) -> None:
    own = KUBERAY / COMBINED.get(folder, (folder,))[0] / "platform.yaml"
    text = (own if own.exists() else KUBERAY / "base" / "platform.yaml").read_text()
    (configmap,) = [item for item in find_all(folder, "ConfigMap") if item["metadata"]["name"] == "modelyard-platform"]
    assert configmap["data"] == {"platform.yaml": text}
    assert find(folder, "RayService")["spec"]["serveConfigV2"] == text


@pytest.mark.parametrize("folder", SERVICES)
def test_serve_knows_every_key_and_the_platform_its_arguments(folder: str) -> None:
    assert list(unknown(serve_file(folder), ServeDeploySchema)) == []
    assert is_accepted(serve_file(folder))


@pytest.mark.parametrize("folder", SERVICES)
def test_a_misspelt_key_is_refused_wherever_it_is(folder: str) -> None:
    changes = list(renamed(serve_file(folder), free=()))
    assert len(changes) > 20
    # Labels have any name. Engine arguments are vLLM's own; its framework module checks them, where vLLM is installed.
    free = (".engine.", ".node_labels.")
    accepted = [path for path, changed in changes if is_accepted(changed) and not any(part in path for part in free)]
    assert accepted == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_the_file_is_one_that_runs_anywhere(path: Path) -> None:
    found = load_serve_file(path)
    assert found.platform.models
    assert check_locations(found.platform) == ()
    assert (found.http_url, found.grpc_address) == ("http://127.0.0.1:8000", "127.0.0.1:9000")


@pytest.mark.parametrize("folder", SERVICES)
def test_what_an_application_imports_is_there_and_builds(folder: str) -> None:
    for application in serve_file(folder)["applications"]:
        module, _, name = application["import_path"].partition(":")
        built = getattr(importlib.import_module(module), name)(application["args"])
        deployments = {deployment.name for deployment in deployments_of(built)}
        assert {item["name"] for item in application.get("deployments", ())} <= deployments
    for service in serve_file(folder)["grpc_options"]["grpc_servicer_functions"]:
        module, _, name = service.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))


def deployments_of(application: Any) -> Iterator[Any]:
    yield application._bound_deployment
    for argument in application._bound_deployment.init_args:
        if hasattr(argument, "_bound_deployment"):
            yield from deployments_of(argument)


@pytest.mark.parametrize("folder", SERVICES)
def test_every_replica_fits_a_pod_or_the_pods_of_one_group(folder: str) -> None:
    rooms = list(map(room, pods_of(folder)))
    config = platform(folder)
    assert any(cpus >= config.ingress.num_cpus for cpus, _ in rooms)
    for spec in config.models:
        wanted = spec.resources
        assert any(cpus >= wanted.num_cpus and gpus >= wanted.num_gpus for cpus, gpus in rooms), spec.name


def pods_of(folder: str) -> list[Mapping[str, Any]]:
    cluster = find(folder, "RayService")["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]


def room(group: Mapping[str, Any]) -> tuple[float, float]:
    """CPUs and GPUs of what the group adds at once: a pod, or the pods of several hosts."""
    wanted = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    cpus = float(group["rayStartParams"].get("num-cpus") or math.ceil(float(wanted["cpu"])))
    hosts = group.get("numOfHosts", 1)
    return cpus * hosts, float(wanted.get("nvidia.com/gpu", 0)) * hosts


@pytest.mark.parametrize("folder", SERVICES)
def test_what_every_request_passes_is_always_there(folder: str) -> None:
    workers = pods_of(folder)[1:]
    ingress = platform(folder).ingress
    if not workers:
        assert ingress.num_replicas == 1
        return
    assert workers[0]["minReplicas"] == ingress.num_replicas >= 2
    (application,) = serve_file(folder)["applications"]
    (override,) = application["deployments"]
    assert override["max_replicas_per_node"] == 1
    # While the next revision of it starts, so many more pods are needed.
    surge = math.ceil(override["max_surge_percent"] * ingress.num_replicas / 100)
    assert surge >= 1
    assert ingress.num_replicas + surge <= workers[0]["maxReplicas"]


@pytest.mark.parametrize("folder", SERVICES)
def test_the_switches_are_those_of_modelyard_serve(folder: str) -> None:
    (configmap,) = [item for item in find_all(folder, "ConfigMap") if item["metadata"]["name"] != "modelyard-platform"]
    ours: Mapping[str, str] = configmap["data"]
    assert FAST.keys() - ours.keys() == {"RAY_AUTH_MODE"}  # the operator's, by authOptions
    different = {key for key, value in FAST.items() if ours.get(key, value) != value}
    # Load balancers on other machines take time to notice; threads are counted for the pod, not for the machine.
    assert different <= {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "RAY_SERVE_HAPROXY_NBTHREAD"}
    assert int(ours["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"]) >= 30


def test_every_setting_is_one_that_ray_reads() -> None:
    # A misspelt one is read over without a word.
    (configmap,) = [item for item in find_all("base", "ConfigMap") if "platform.yaml" not in item["data"]]
    package = Path(ray.__file__).parent
    sources = [path for part in ("_common", "_private", "serve/_private") for path in package.glob(f"{part}/**/*.py")]
    text = "".join(path.read_text() for path in sources)
    program = (package / "core/src/ray/raylet/raylet").read_bytes()
    assert [
        key
        for key in configmap["data"]
        if not re.search(rf"\b{key}\b", text) and key.removeprefix("RAY_").encode() not in program
    ] == []


def test_dev_is_for_two_cores() -> None:
    config = platform("overlays/dev")
    models = sum(spec.resources.num_cpus * spec.autoscaling.max_replicas for spec in config.models)
    assert models + config.ingress.num_cpus <= 2
