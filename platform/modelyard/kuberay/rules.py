# SPDX-License-Identifier: Apache-2.0
"""What KubeRay's operator refuses or quietly ignores though the definition allows it.

An API server accepts all of it; the RayService then says ``ValidationFailed``, or does something else than is written.
Each rule takes a RayService of the right shape and yields sentences that begin with the key's path.

Source: KubeRay v1.7.0 ``ray-operator/controllers/ray/utils/validation.go`` and its feature gates' defaults.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, Final

from packaging.version import InvalidVersion, Version

from modelyard.config.problems import join_path, nearest, shown
from modelyard.kuberay.quantity import to_number
from modelyard.kuberay.starting import check_starting

Part = Mapping[str, Any]

CLUSTER: Final = "spec.rayClusterConfig"
_FAULT_TOLERANCE: Final = f"{CLUSTER}.gcsFaultToleranceOptions"
API_VERSION: Final = "ray.io/v1"
MAX_NAME_CHARACTERS: Final = 47
"""The operator adds what makes a cluster's name, which becomes part of names that may have 63."""
_DNS_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_DURATION: Final = re.compile(r"\d+|(\d+(\.\d+)?(ns|us|ms|s|m|h))+")
_INITIALIZING: Final = "ray.io/initializing-timeout"
_INCREMENTAL: Final = "NewClusterWithIncrementalUpgrade"
_STRATEGIES: Final = ("NewCluster", _INCREMENTAL, "None")
_HEAD_PORTS: Final = ("gcs-server", "dashboard", "serve")
_GATED: Final[Mapping[str, str]] = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}
_UNUSED: Final = ("serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold")
_OPERATOR_LABELS: Final = ("ray.io/node-type", "ray.io/group", "ray.io/cluster")
_HEAD_SELECTOR: Final = ("app.kubernetes.io/name", "app.kubernetes.io/created-by")
_V2_VARIABLE: Final = "RAY_enable_autoscaler_v2"
_SIZE_PARAMETERS: Final = ("num-cpus", "num-gpus", "memory", "resources")


def check_rules(service: Part) -> tuple[str, ...]:
    """What the operator would not do as it is written.

    Args:
        service: Of the right shape: ``check_shape`` has found nothing.
    """
    return tuple(problem for rule in RULES for problem in rule(service))


def _names(service: Part) -> Iterator[str]:
    if service["apiVersion"] != API_VERSION:
        yield f"apiVersion: expected {API_VERSION}, got {shown(service['apiVersion'], '')}"
    name = service["metadata"]["name"]
    if not _DNS_LABEL.fullmatch(name) or len(name) > MAX_NAME_CHARACTERS:
        yield (
            f"metadata.name: expected at most {MAX_NAME_CHARACTERS} lower-case letters, digits and -, beginning with a "
            f"letter, got {shown(name, '')} ({len(name)} characters)"
        )


def _service(service: Part) -> Iterator[str]:
    timeout = service["metadata"].get("annotations", {}).get(_INITIALIZING)
    if timeout is not None and (not _DURATION.fullmatch(timeout) or not re.search("[1-9]", timeout)):
        path = f"metadata.annotations.{_INITIALIZING}"
        yield f"{path}: expected seconds or a time as 30m, more than 0, got {shown(timeout, '')}"
    for key in _UNUSED:
        if key in service["spec"]:
            yield f"spec.{key}: the operator does not read it any more; expected nothing, got {service['spec'][key]}"
    if not service["spec"].get("serveConfigV2", "").strip():
        yield "spec.serveConfigV2: expected the text of a Serve file, got nothing"


def _upgrade(service: Part) -> Iterator[str]:
    strategy = service["spec"].get("upgradeStrategy", {})
    kind = strategy.get("type", _STRATEGIES[0])
    path = "spec.upgradeStrategy.type"
    if kind not in _STRATEGIES:
        yield f"{path}: expected one of {', '.join(_STRATEGIES)}, got {shown(kind, '')}"
    if kind != _INCREMENTAL:
        return
    path = "spec.upgradeStrategy.clusterUpgradeOptions"
    options = strategy.get("clusterUpgradeOptions")
    if options is None:
        yield f"{path}: expected a mapping, got nothing"
        return
    surge, step = options.get("maxSurgePercent", 100), options["stepSizePercent"]
    if not 0 <= surge <= 100:
        yield f"{path}.maxSurgePercent: expected 0 to 100, got {surge}"
    elif not 0 <= step <= surge:
        yield f"{path}.stepSizePercent: expected 0 to maxSurgePercent ({surge}), got {step}"
    if options["intervalSeconds"] <= 0:
        yield f"{path}.intervalSeconds: expected more than 0, got {options['intervalSeconds']}"
    if not options["gatewayClassName"]:
        yield f"{path}.gatewayClassName: expected the name of a GatewayClass, got nothing"
    if not _cluster(service).get("enableInTreeAutoscaling"):
        yield f"{CLUSTER}.enableInTreeAutoscaling: expected true for {_INCREMENTAL}"


def _gates(service: Part) -> Iterator[str]:
    for key, gate in _GATED.items():
        if key in _cluster(service):
            yield f"{CLUSTER}.{key}: the operator refuses it while its feature gate {gate} is off, as it is by default"


def _within_service(service: Part) -> Iterator[str]:
    cluster = _cluster(service)
    if "upgradeStrategy" in cluster:
        yield f"{CLUSTER}.upgradeStrategy: expected nothing inside a RayService: spec.upgradeStrategy decides"
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield f"{CLUSTER}.headGroupSpec.headService.metadata.name: expected nothing inside a RayService"


def _groups_counts(service: Part) -> Iterator[str]:
    names = Counter(group["groupName"] for _, group in _workers(service))
    for name, count in names.items():
        if count > 1:
            yield f"{CLUSTER}.workerGroupSpecs: expected different names of groups, got {shown(name, '')} {count} times"
    for path, group in _workers(service):
        low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if low < 0:
            yield f"{path}.minReplicas: expected 0 or more, got {low}"
        if high < max(low, 0):
            yield f"{path}.maxReplicas: expected at least minReplicas ({low}), got {high}"
        if group.get("numOfHosts", 1) < 1:
            yield f"{path}.numOfHosts: expected 1 or more, got {group['numOfHosts']}"
        if group.get("suspend"):
            yield f"{path}.suspend: expected nothing: only those of a RayJob can be suspended"


def _groups_sizes(service: Part) -> Iterator[str]:
    for path, group in _groups(service):
        parameters = group.get("rayStartParams", {})
        if "labels" in parameters:
            yield f"{path}.rayStartParams.labels: expected nothing; labels has its own place, {path}.labels"
        if group.get("resources"):
            for key in _SIZE_PARAMETERS:
                if key in parameters:
                    yield f"{path}.rayStartParams.{key}: expected nothing beside {path}.resources"


def _pods(service: Part) -> Iterator[str]:
    for path, group in _groups(service):
        pod, where = group["template"].get("spec", {}), f"{path}.template.spec"
        if not pod.get("containers"):
            yield f"{where}.containers: expected at least one, got none"
        yield from check_starting(group, path)
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        for kind in ("containers", "initContainers"):
            for index, container in enumerate(pod.get(kind, ())):
                yield from _container(container, volumes, join_path(where, kind, index))


def _container(container: Part, volumes: set[str], path: str) -> Iterator[str]:
    for index, mount in enumerate(container.get("volumeMounts", ())):
        if mount["name"] not in volumes:
            where = join_path(path, "volumeMounts", index, "name")
            yield f"{where}: expected the name of a volume{nearest(mount['name'], sorted(volumes))}"
    resources = container.get("resources", {})
    for key, request in resources.get("requests", {}).items():
        limit = resources.get("limits", {}).get(key)
        if limit is not None and to_number(request) > to_number(limit):
            yield f"{path}.resources.requests.{key}: expected at most the limit, {limit}, got {request}"


def _labels(service: Part) -> Iterator[str]:
    for path, group in _groups(service):
        labels = group["template"].get("metadata", {}).get("labels", {})
        reserved = _OPERATOR_LABELS + (_HEAD_SELECTOR if path.endswith("headGroupSpec") else ())
        for key in reserved:
            if key in labels:
                yield f"{path}.template.metadata.labels.{key}: expected nothing: the operator's own services go by it"


def _head_ports(service: Part) -> Iterator[str]:
    containers = _cluster(service)["headGroupSpec"]["template"].get("spec", {}).get("containers")
    ports = containers[0].get("ports") if containers else None
    if not ports:
        return  # then the operator names them all
    names = [port.get("name", "") for port in ports]
    for missing in _HEAD_PORTS:
        if missing not in names and not (missing == "serve" and any(name.startswith("serve-") for name in names)):
            path = f"{CLUSTER}.headGroupSpec.template.spec.containers[0].ports"
            yield f'{path}: expected one named "{missing}": a list of ports takes the place of the operator\'s own'


def _autoscaler(service: Part) -> Iterator[str]:
    cluster = _cluster(service)
    options = cluster.get("autoscalerOptions", {})
    is_v2 = options.get("version") == "v2"
    if "KUBERAY_GEN_AUTOSCALER_START_CMD" in {item["name"] for item in options.get("env", ())}:
        yield f"{CLUSTER}.autoscalerOptions.env: expected no KUBERAY_GEN_AUTOSCALER_START_CMD: the operator sets it"
    for path, item in _head_environment(service):
        if item["name"] == _V2_VARIABLE and ("version" in options or item.get("value") in ("1", "true")):
            yield f"{path}: expected nothing: {CLUSTER}.autoscalerOptions.version alone says which autoscaler it is"
    yield from _idle_timeouts(service)
    for path, group in _groups(service):
        pod = group["template"].get("spec", {})
        policy = pod.get("restartPolicy", "Never")
        if is_v2 and policy != "Never":
            yield f"{path}.template.spec.restartPolicy: expected Never with the autoscaler v2, got {shown(policy, '')}"
        for key in ("idleTimeoutSeconds", "priority"):
            if key in group and not is_v2:
                yield f"{path}.{key}: expected {CLUSTER}.autoscalerOptions.version: v2 for it"
        if "priority" in group and not _is_at_least(cluster, "2.56"):
            yield f"{path}.priority: expected {CLUSTER}.rayVersion 2.56 or later for it"


def _idle_timeouts(service: Part) -> Iterator[str]:
    options = (f"{CLUSTER}.autoscalerOptions", _cluster(service).get("autoscalerOptions", {}))
    for path, owner in (options, *_workers(service)):
        if owner.get("idleTimeoutSeconds", 0) < 0:
            yield f"{path}.idleTimeoutSeconds: expected 0 or more, got {owner['idleTimeoutSeconds']}"


def _auth(service: Part) -> Iterator[str]:
    cluster = _cluster(service)
    options = cluster.get("authOptions")
    if options is None:
        return
    path = f"{CLUSTER}.authOptions"
    if "mode" not in options:
        yield f"{path}.mode: expected token or disabled, got nothing, with which nobody is asked for a token"
    if options.get("enableK8sTokenAuth"):
        yield f"{path}.enableK8sTokenAuth: expected nothing inside a RayService"
    if options.get("mode") == "token" and not _is_at_least(cluster, "2.52"):
        yield f"{CLUSTER}.rayVersion: expected 2.52 or later for {path}.mode: token"


def _fault_tolerance(service: Part) -> Iterator[str]:
    options = _cluster(service).get("gcsFaultToleranceOptions")
    yield from _redis_username(service)
    if options is not None:
        yield from _fault_tolerance_options(options)
        yield from _fault_tolerance_elsewhere(service)
    elif any(item["name"] == "RAY_REDIS_ADDRESS" for _, item in _environment(service)):
        yield f"{_FAULT_TOLERANCE}: expected a mapping beside the environment variable RAY_REDIS_ADDRESS, got nothing"


def _fault_tolerance_options(options: Part) -> Iterator[str]:
    if options.get("backend") == "rocksdb" or "storage" in options:
        yield f"{_FAULT_TOLERANCE}: the operator refuses rocksdb while its feature gate is off, as it is by default"
    elif not options.get("redisAddress"):
        yield f"{_FAULT_TOLERANCE}.redisAddress: expected an address as redis:6379, got nothing"
    if "externalStorageNamespace" in options:
        path = f"{_FAULT_TOLERANCE}.externalStorageNamespace"
        yield f"{path}: expected nothing: both clusters of an upgrade would write into the same"


def _fault_tolerance_elsewhere(service: Part) -> Iterator[str]:
    """The same settings in the places they had before there were options."""
    for path, item in _environment(service):
        if item["name"] in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS"):
            yield f"{path}: expected nothing beside {_FAULT_TOLERANCE}"
    if "redis-password" in _cluster(service)["headGroupSpec"].get("rayStartParams", {}):
        yield f"{CLUSTER}.headGroupSpec.rayStartParams.redis-password: expected nothing beside {_FAULT_TOLERANCE}"
    for key in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
        if key in service["metadata"].get("annotations", {}):
            yield f"metadata.annotations.{key}: expected nothing beside {_FAULT_TOLERANCE}"


def _redis_username(service: Part) -> Iterator[str]:
    """Refused with fault tolerance and without."""
    paths = [path for path, item in _head_environment(service) if item["name"] == "REDIS_USERNAME"]
    if "redis-username" in _cluster(service)["headGroupSpec"].get("rayStartParams", {}):
        paths.append(f"{CLUSTER}.headGroupSpec.rayStartParams.redis-username")
    for path in paths:
        yield f"{path}: expected nothing: its place is {_FAULT_TOLERANCE}.redisUsername"


def _cluster(service: Part) -> Part:
    cluster: Part = service["spec"]["rayClusterConfig"]
    return cluster


def _workers(service: Part) -> Iterator[tuple[str, Part]]:
    for index, group in enumerate(_cluster(service).get("workerGroupSpecs", ())):
        yield f"{CLUSTER}.workerGroupSpecs[{index}]", group


def _groups(service: Part) -> Iterator[tuple[str, Part]]:
    return chain([(f"{CLUSTER}.headGroupSpec", _cluster(service)["headGroupSpec"])], _workers(service))


def _head_environment(service: Part) -> Iterator[tuple[str, Part]]:
    """The variables of the head's Ray container, the only one that the operator looks at."""
    head = f"{CLUSTER}.headGroupSpec"
    return (found for found in _environment(service) if found[0].startswith(head))


def _environment(service: Part) -> Iterator[tuple[str, Part]]:
    """The variables of the Ray containers."""
    for path, group in _groups(service):
        for container in group["template"].get("spec", {}).get("containers", ())[:1]:
            for index, item in enumerate(container.get("env", ())):
                yield join_path(path, "template", "spec", "containers", 0, "env", index), item


def _is_at_least(cluster: Part, version: str) -> bool:
    try:
        return Version(cluster.get("rayVersion", "0")) >= Version(version)
    except InvalidVersion:
        return False


RULES: Final[tuple[Callable[[Part], Iterator[str]], ...]] = (
    _names,
    _service,
    _upgrade,
    _gates,
    _within_service,
    _groups_counts,
    _groups_sizes,
    _pods,
    _labels,
    _head_ports,
    _autoscaler,
    _auth,
    _fault_tolerance,
)
