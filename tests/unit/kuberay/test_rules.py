# SPDX-License-Identifier: Apache-2.0
"""What KubeRay's operator refuses although the definition allows it: each rule with an example that breaks it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from modelyard.kuberay import check_rules, check_serving, check_shape, read_serve_file
from modelyard.kuberay.rules import RULES

CLUSTER = "spec.rayClusterConfig"
HEAD = f"{CLUSTER}.headGroupSpec"
WORKER = f"{CLUSTER}.workerGroupSpecs.0"
POD = "template.spec"
RAY = f"{POD}.containers.0"
REMOVED = object()
OPTIONS = {"gatewayClassName": "istio", "stepSizePercent": 10, "intervalSeconds": 30}
REDIS = {"redisAddress": "redis:6379"}


def put(service: dict[str, Any], path: str, value: object) -> None:
    """Puts a value where the path says, and makes mappings on the way; REMOVED takes the key away."""
    owner: Any = service
    *keys, last = (int(key) if key.isdecimal() else key.replace("~", ".") for key in path.split("."))
    for key in keys:
        owner = owner[key] if isinstance(owner, list) else owner.setdefault(key, {})
    if value is REMOVED:
        del owner[last]
    else:
        owner[last] = value


def incremental(**options: Any) -> dict[str, Any]:
    return {"type": "NewClusterWithIncrementalUpgrade", "clusterUpgradeOptions": OPTIONS | options}


BROKEN = [
    ("apiVersion", "ray.io/v1alpha1", "apiVersion: expected ray.io/v1"),
    ("metadata.name", "a" * 48, "metadata.name: expected at most 47"),
    ("metadata.name", "1st", "metadata.name: expected at most 47"),
    ("metadata.name", "Upper", "metadata.name: expected at most 47"),
    ("metadata.annotations.ray~io/initializing-timeout", "soon", "expected seconds or a time as 30m"),
    ("metadata.annotations.ray~io/initializing-timeout", "0s", "expected seconds or a time as 30m"),
    ("spec.serviceUnhealthySecondThreshold", 900, "the operator does not read it any more"),
    ("spec.serveConfigV2", REMOVED, "spec.serveConfigV2: expected the text of a Serve file, got nothing"),
    ("spec.upgradeStrategy.type", "Recreate", "spec.upgradeStrategy.type: expected one of NewCluster, "),
    ("spec.upgradeStrategy", {"type": "NewClusterWithIncrementalUpgrade"}, "clusterUpgradeOptions: expected a mapping"),
    ("spec.upgradeStrategy", incremental(maxSurgePercent=101), "maxSurgePercent: expected 0 to 100, got 101"),
    ("spec.upgradeStrategy", incremental(maxSurgePercent=5), "stepSizePercent: expected 0 to maxSurgePercent (5)"),
    ("spec.upgradeStrategy", incremental(intervalSeconds=0), "intervalSeconds: expected more than 0, got 0"),
    ("spec.upgradeStrategy", incremental(gatewayClassName=""), "gatewayClassName: expected the name of a GatewayClass"),
    (f"{CLUSTER}.networkPolicy", {"mode": "DenyAll"}, "feature gate RayClusterNetworkPolicy is off"),
    (f"{CLUSTER}.tlsOptions", {}, "feature gate RayClusterMTLS is off"),
    (f"{CLUSTER}.upgradeStrategy", {"type": "None"}, "expected nothing inside a RayService"),
    (f"{HEAD}.headService.metadata.name", "mine", "headService.metadata.name: expected nothing inside"),
    (f"{WORKER}.minReplicas", -1, "minReplicas: expected 0 or more, got -1"),
    (f"{WORKER}.maxReplicas", 1, "maxReplicas: expected at least minReplicas (2), got 1"),
    (f"{WORKER}.numOfHosts", 0, "numOfHosts: expected 1 or more, got 0"),
    (f"{WORKER}.suspend", True, "only those of a RayJob can be suspended"),
    (f"{WORKER}.rayStartParams.labels", "a=b", "labels has its own place"),
    (f"{WORKER}.{POD}.containers", [], "containers: expected at least one, got none"),
    (f"{WORKER}.{RAY}.volumeMounts.0.name", "tpm", 'expected the name of a volume; did you mean "tmp"?'),
    (f"{WORKER}.{RAY}.resources.requests.memory", "17Gi", "requests.memory: expected at most the limit, 16Gi"),
    (f"{WORKER}.template.metadata.labels.ray~io/cluster", "a", "the operator's own services go by it"),
    (f"{HEAD}.template.metadata.labels.app~kubernetes~io/name", "a", "the operator's own services go by it"),
    (f"{HEAD}.{RAY}.ports.1.name", "board", 'expected one named "dashboard"'),
    (f"{CLUSTER}.autoscalerOptions.version", REMOVED, "idleTimeoutSeconds: expected spec.rayClusterConfig.autoscaler"),
    (f"{CLUSTER}.autoscalerOptions.env", [{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD"}], "the operator sets it"),
    (f"{WORKER}.{POD}.restartPolicy", "Always", "restartPolicy: expected Never with the autoscaler v2"),
    (f"{HEAD}.{RAY}.env.0", {"name": "RAY_enable_autoscaler_v2", "value": "0"}, "version alone says which autoscaler"),
    (f"{HEAD}.{RAY}.env.0", {"name": "RAY_enable_autoscaler_v2", "value": "1"}, "version alone says which autoscaler"),
    (f"{CLUSTER}.autoscalerOptions.idleTimeoutSeconds", -1, "Options.idleTimeoutSeconds: expected 0 or more, got -1"),
    (f"{WORKER}.idleTimeoutSeconds", -1, "workerGroupSpecs[0].idleTimeoutSeconds: expected 0 or more, got -1"),
    (f"{CLUSTER}.authOptions.mode", REMOVED, "authOptions.mode: expected token or disabled, got nothing"),
    (f"{CLUSTER}.authOptions.enableK8sTokenAuth", True, "enableK8sTokenAuth: expected nothing inside"),
    (f"{CLUSTER}.rayVersion", "2.51.0", "rayVersion: expected 2.52 or later"),
    (f"{CLUSTER}.rayVersion", "newest", "rayVersion: expected 2.52 or later"),
    (f"{HEAD}.{RAY}.env.0", {"name": "RAY_REDIS_ADDRESS", "value": "a"}, "expected a mapping beside the environment"),
    (f"{HEAD}.{RAY}.env.0", {"name": "REDIS_USERNAME", "value": "a"}, "gcsFaultToleranceOptions.redisUsername"),
    (f"{HEAD}.rayStartParams.redis-username", "a", "redis-username: expected nothing: its place is "),
    (f"{CLUSTER}.gcsFaultToleranceOptions", {"backend": "rocksdb"}, "the operator refuses rocksdb"),
    (f"{CLUSTER}.gcsFaultToleranceOptions", {}, "redisAddress: expected an address"),
    (f"{CLUSTER}.gcsFaultToleranceOptions", REDIS | {"externalStorageNamespace": "a"}, "both clusters of an upgrade"),
]  # fmt: skip


@pytest.mark.parametrize("overlay", ["cpu"], indirect=True)
@pytest.mark.parametrize(("path", "value", "problem"), BROKEN, ids=[f"{path}-{text[:20]}" for path, _, text in BROKEN])
def test_what_the_operator_would_refuse_is_refused(
    service: dict[str, Any], path: str, value: Any, problem: str
) -> None:
    put(service, path, value)
    assert check_shape(service) == ()
    assert any(problem in text for text in check_rules(service)), check_rules(service)


@pytest.mark.parametrize("overlay", ["ha"], indirect=True)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.annotations.ray~io/ft-enabled", "true"),
        (f"{HEAD}.rayStartParams.redis-password", "secret"),
        (f"{HEAD}.{RAY}.env.0", {"name": "REDIS_PASSWORD", "value": "secret"}),
    ],
)
def test_fault_tolerance_is_set_in_one_place(service: dict[str, Any], path: str, value: Any) -> None:
    put(service, path, value)
    (problem,) = check_rules(service)
    assert "expected nothing beside spec.rayClusterConfig.gcsFaultToleranceOptions" in problem
    assert "secret" not in problem


@pytest.mark.parametrize("overlay", ["dev"], indirect=True)
@pytest.mark.parametrize(("value", "count"), [("1", 1), ("true", 1), ("0", 0)])
def test_without_the_autoscaler_its_variable_may_only_switch_it_off(
    service: dict[str, Any], value: str, count: int
) -> None:
    put(service, f"{HEAD}.{RAY}.env.0", {"name": "RAY_enable_autoscaler_v2", "value": value})
    assert len(check_rules(service)) == count


@pytest.mark.parametrize("overlay", ["ha"], indirect=True)
def test_a_username_of_redis_has_one_place_with_fault_tolerance_too(service: dict[str, Any]) -> None:
    put(service, f"{HEAD}.rayStartParams.redis-username", "a")
    (problem,) = check_rules(service)
    assert problem.endswith("gcsFaultToleranceOptions.redisUsername")


@pytest.mark.parametrize("overlay", ["gpu"], indirect=True)
@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (f"{CLUSTER}.workerGroupSpecs.1.rayStartParams.num-gpus", "1", "rayStartParams.num-gpus: expected nothing"),
        (f"{CLUSTER}.workerGroupSpecs.1.groupName", "cpu", 'expected different names of groups, got "cpu" 2 times'),
    ],
)  # fmt: skip
def test_groups_that_contradict_themselves_are_refused(
    service: dict[str, Any], path: str, value: Any, problem: str
) -> None:
    put(service, path, value)
    (found,) = check_rules(service)
    assert problem in found


@pytest.mark.parametrize("overlay", ["cpu"], indirect=True)
def test_every_rule_has_an_example(service: dict[str, Any]) -> None:
    silent = set(RULES)
    for path, value, _ in BROKEN:
        broken = copy.deepcopy(service)
        put(broken, path, value)
        silent -= {rule for rule in silent if any(rule(broken))}
    assert {rule.__name__ for rule in silent} == set()


def test_what_is_made_breaks_no_rule(service: dict[str, Any]) -> None:
    assert check_rules(service) == ()
    assert list(check_serving(service, read_serve_file(service))) == []


@pytest.mark.parametrize("overlay", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"http_options": {"host": "127.0.0.1"}}, "http_options.host: expected "),
        ({"http_options": {"ssl_keyfile": "a"}}, "http_options.ssl_keyfile: expected nothing"),
        ({"http_options": {"port": 8001}}, "containers[0].ports[3].containerPort: expected 8001, the port in "),
        ({"grpc_options": {"port": 9001, "grpc_servicer_functions": ["a.b"]}}, "ports[4].containerPort: expected 9001"),
    ],
)
def test_a_serve_file_that_keeps_pods_from_being_reached_is_refused(
    service: dict[str, Any], options: dict[str, Any], problem: str
) -> None:
    found = list(check_serving(service, options))
    assert problem in found[0]
