# SPDX-License-Identifier: Apache-2.0
"""What no definition asks for: that pods drain, are reached, are found by what selects them, and may do little."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from ray.scripts.scripts import start
from ray.serve._private.application_state import ApplicationState
from ray.serve.schema import ApplicationStatus
from rendering import COMBINED, FOLDERS, KUBERAY, SERVICES, find, find_all, kustomize

from modelyard.protocol.openai import BARE
from modelyard.serve import controller
from modelyard.serve.news import METRIC

LABEL = {"app.kubernetes.io/part-of": "modelyard"}
HEAD_PORTS = {"gcs-server", "dashboard", "client", "serve", "serve-grpc", "metrics", "as-metrics", "dash-metrics"}
WORKER_PORTS = {"serve", "serve-grpc", "metrics"}
INCREMENTAL = ("kustomization.yaml", "rayservice.yaml")
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"

Pod = Mapping[str, Any]


def cluster(folder: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = find(folder, "RayService")["spec"]["rayClusterConfig"]
    return found


def groups(folder: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The head and the worker groups, with their names."""
    yield "head", cluster(folder)["headGroupSpec"]
    for group in cluster(folder).get("workerGroupSpecs", ()):
        yield group["groupName"], group


def longest_request_s(folder: str) -> int:
    """Of the platform's models; 60 s is the default."""
    text = find(folder, "RayService")["spec"]["serveConfigV2"]
    return max([60, *map(int, re.findall(r"request_timeout_s: (\d+)", text))])


def pods(folder: str) -> dict[str, Pod]:
    return {name: group["template"]["spec"] for name, group in groups(folder)}


def containers(folder: str) -> dict[str, Mapping[str, Any]]:
    found = {}
    for name, pod in pods(folder).items():
        (found[name],) = pod["containers"]
    return found


def labels(folder: str) -> list[dict[str, str]]:
    """Those of each kind of pod, with what the operator adds."""
    return [
        group["template"]["metadata"]["labels"]
        | {"ray.io/node-type": "head" if name == "head" else "worker"}
        | {"ray.io/group": "headgroup" if name == "head" else name}
        for name, group in groups(folder)
    ]


def environment(folder: str) -> Mapping[str, str]:
    (found,) = [item for item in find_all(folder, "ConfigMap") if item["metadata"]["name"].startswith("modelyard-ray")]
    data: Mapping[str, str] = found["data"]
    return data


@pytest.mark.parametrize("folder", SERVICES)
def test_pods_have_the_time_to_drain(folder: str) -> None:
    drain_s = int(environment(folder)[DRAIN])
    assert all(pod["terminationGracePeriodSeconds"] >= drain_s + 30 for pod in pods(folder).values())
    # Serve stops a replica so long before the end as its requests may take: not before there is another one.
    assert drain_s >= longest_request_s(folder) + 50
    assert not any("lifecycle" in container for container in containers(folder).values())  # no `ray stop`


@pytest.mark.parametrize("folder", SERVICES)
def test_head_and_workers_read_the_same_settings(folder: str) -> None:
    name = re.search(r"^  name: (modelyard-ray-\w+)$", kustomize(folder), re.MULTILINE)
    assert name is not None
    first = [container["envFrom"][0] for container in containers(folder).values()]
    assert first == [{"configMapRef": {"name": name[1]}}] * len(first)
    assert environment(folder)["RAY_SERVE_ENABLE_HA_PROXY"] == "1"


@pytest.mark.parametrize("folder", SERVICES)
def test_every_pod_names_its_ports(folder: str) -> None:
    named = {name: {port["name"] for port in item["ports"]} for name, item in containers(folder).items()}
    assert named == {name: HEAD_PORTS if name == "head" else WORKER_PORTS for name in named}
    everywhere = {
        (port["name"], port["containerPort"]) for item in containers(folder).values() for port in item["ports"]
    }
    assert len(everywhere) == len(HEAD_PORTS)  # one number for each name


@pytest.mark.parametrize("folder", SERVICES)
def test_every_pod_may_do_little(folder: str) -> None:
    for name, pod in pods(folder).items():
        security = pod["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] == security["fsGroup"] == 1000  # the user of the image
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["serviceAccountName"] == ("modelyard-head" if name == "head" else "modelyard-worker")
        # The autoscaler, in the head's pod, asks the API server; nothing else does.
        scales = cluster(folder).get("enableInTreeAutoscaling", False)
        assert pod.get("automountServiceAccountToken", True) == (name == "head" and scales)
    for container in containers(folder).values():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("folder", SERVICES)
def test_every_pod_can_write_where_ray_and_the_platform_do(folder: str) -> None:
    for container in containers(folder).values():
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert {"/tmp", "/opt/modelyard/state"} <= writable
        assert container["workingDir"] == "/opt/modelyard"


@pytest.mark.parametrize("folder", SERVICES)
def test_every_pod_reserves_its_memory(folder: str) -> None:
    for container in containers(folder).values():
        wanted = container["resources"]
        assert wanted["requests"]["memory"] == wanted["limits"]["memory"]
        assert wanted["requests"].keys() | wanted["limits"].keys() <= {"cpu", "memory", "nvidia.com/gpu"}
        assert wanted["requests"].get("nvidia.com/gpu") == wanted["limits"].get("nvidia.com/gpu")


@pytest.mark.parametrize("folder", SERVICES)
def test_every_pod_has_the_same_image_and_version_of_ray(folder: str) -> None:
    assert len({container["image"] for container in containers(folder).values()}) == 1
    pinned = re.search(r"^ray==(\S+)$", (KUBERAY / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster(folder)["rayVersion"] == pinned[1]


@pytest.mark.parametrize("folder", SERVICES)
def test_worker_groups_are_bounded_and_the_autoscaler_is_the_second(folder: str) -> None:
    for name, group in groups(folder):
        assert name == "head" or 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] <= 100
    if len(pods(folder)) > 1:
        assert cluster(folder)["enableInTreeAutoscaling"] is True
        assert cluster(folder)["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize("folder", SERVICES)
def test_start_parameters_are_those_of_ray(folder: str) -> None:
    known = {name.removeprefix("--") for option in start.params for name in option.opts}
    for _, group in groups(folder):
        assert group["rayStartParams"].keys() <= known


@pytest.mark.parametrize("folder", SERVICES)
def test_a_group_s_resources_are_what_its_pods_ask_for(folder: str) -> None:
    for name, group in groups(folder):
        wanted = containers(folder)[name]["resources"]["requests"]
        if "resources" in group:
            assert group["resources"] == {"CPU": wanted["cpu"], "GPU": wanted["nvidia.com/gpu"]}


@pytest.mark.parametrize("folder", SERVICES)
def test_nothing_runs_on_a_head_that_no_request_may_enter_by(folder: str) -> None:
    service = find(folder, "RayService")["spec"]
    has_workers = bool(cluster(folder).get("workerGroupSpecs"))
    assert service["excludeHeadPodFromServeSvc"] is has_workers
    assert (cluster(folder)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0") is has_workers


@pytest.mark.parametrize("folder", SERVICES)
def test_a_worker_is_ready_when_serve_says_so(folder: str) -> None:
    for name, container in containers(folder).items():
        if name != "head":  # the operator asks the head itself
            probe = container["readinessProbe"]
            assert probe["httpGet"] == {"path": "/-/healthz", "port": "serve"}
            assert probe["failureThreshold"] == 1


@pytest.mark.parametrize("folder", SERVICES)
def test_nobody_reaches_the_dashboard_without_the_token(folder: str) -> None:
    assert cluster(folder)["authOptions"] == {"mode": "token", "secretName": "modelyard-ray-token"}


@pytest.mark.parametrize("folder", SERVICES)
def test_the_old_cluster_outlives_the_longest_request(folder: str) -> None:
    service = find(folder, "RayService")["spec"]
    assert service["rayClusterDeletionDelaySeconds"] >= longest_request_s(folder)


@pytest.mark.parametrize("folder", SERVICES)
def test_two_clusters_of_an_upgrade_never_share_a_namespace_in_redis(folder: str) -> None:
    assert "externalStorageNamespace" not in cluster(folder).get("gcsFaultToleranceOptions", {})


def selectors(value: object) -> Iterator[dict[str, str]]:
    """Every selector of our pods anywhere in an object."""
    if isinstance(value, dict):
        found = value.get("matchLabels", {})
        if "app.kubernetes.io/part-of" in found:
            yield found
        for item in value.values():
            yield from selectors(item)
    elif isinstance(value, list):
        for item in value:
            yield from selectors(item)


@pytest.mark.parametrize("folder", SERVICES)
@pytest.mark.parametrize("kind", ["NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "RayService"])
def test_what_selects_pods_finds_some_in_every_cluster_of_an_upgrade(folder: str, kind: str) -> None:
    for item in find_all(folder, kind):
        for selector in selectors(item["spec"]):
            assert selector.items() >= LABEL.items()
            assert "ray.io/cluster" not in selector
            assert any(selector.items() <= found.items() for found in labels(folder)), selector


@pytest.mark.parametrize("folder", SERVICES)
def test_policies_close_both_directions_and_open_what_is_needed(folder: str) -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in find_all(folder, "NetworkPolicy")}
    inside = policies["modelyard-inside"]
    assert inside["podSelector"] == {"matchLabels": LABEL}
    assert inside["policyTypes"] == ["Ingress", "Egress"]
    (incoming,), (outgoing,) = inside["ingress"], inside["egress"]
    assert incoming == {"from": [{"podSelector": {"matchLabels": LABEL}}]}  # every port: Ray uses random ones
    assert outgoing == {"to": [{"podSelector": {"matchLabels": LABEL}}]}
    assert open_ports(policies["modelyard-operator"]) == {8265, 8000}
    assert open_ports(policies["modelyard-clients"]) == {8000, 9000}
    assert open_ports(policies["modelyard-dns"]) == {53}


@pytest.mark.parametrize("folder", SERVICES)
def test_what_is_asked_for_names_and_of_the_api_server_is_reached_by_both_versions_of_ip(folder: str) -> None:
    policies = {item["metadata"]["name"]: item["spec"] for item in find_all(folder, "NetworkPolicy")}
    (names,) = policies["modelyard-dns"]["egress"]
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in names["to"]  # NodeLocal DNSCache
    for name in ("modelyard-autoscaler", "modelyard-stores", "modelyard-https-out"):
        assert all("to" not in rule for rule in policies.get(name, {}).get("egress", ()))


@pytest.mark.parametrize("folder", SERVICES)
def test_credentials_of_a_node_are_out_of_reach_unless_a_component_says_otherwise(folder: str) -> None:
    opened = {
        (target["ipBlock"]["cidr"], port["port"])
        for item in find_all(folder, "NetworkPolicy")
        for rule in item["spec"].get("egress", ())
        for target in rule.get("to", ())
        for port in rule.get("ports", ())
        if "ipBlock" in target and port["port"] != 53
    }
    metadata = {("169.254.169.254/32", 80), ("169.254.169.252/32", 988)}  # with GKE's Workload Identity
    agent = {("169.254.170.23/32", 80), ("fd00:ec2::23/128", 80)}  # of EKS Pod Identity
    own = COMBINED.get(folder, ())
    expected = (metadata if "gke-workload-identity" in own else set()) | (agent if "eks-pod-identity" in own else set())
    assert opened == expected
    everywhere = [rule for item in find_all(folder, "NetworkPolicy") for rule in item["spec"].get("egress", ())]
    assert all({port["port"] for port in rule["ports"]} & {80, 988} == set() for rule in everywhere if "to" not in rule)


@pytest.mark.parametrize("folder", FOLDERS)
def test_nobody_outside_reaches_ray_itself(folder: str) -> None:
    for item in find_all(folder, "NetworkPolicy"):
        if item["metadata"]["name"] not in ("modelyard-inside", "modelyard-operator"):
            incoming = {"ingress": item["spec"].get("ingress", [])}
            assert open_ports(incoming) <= {8000, 9000, 8080, 44217, 44227}


def open_ports(policy: Mapping[str, Any]) -> set[int]:
    rules = [*policy.get("ingress", ()), *policy.get("egress", ())]
    return {port["port"] for rule in rules for port in rule["ports"]}


@pytest.mark.parametrize("folder", SERVICES)
def test_what_is_monitored_is_a_port_of_the_pods(folder: str) -> None:
    for monitor in find_all(folder, "PodMonitor"):
        if monitor["metadata"]["name"] == "modelyard-operator":
            continue
        is_head = monitor["spec"]["selector"]["matchLabels"]["ray.io/node-type"] == "head"
        wanted = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
        assert wanted <= (HEAD_PORTS if is_head else WORKER_PORTS)


MONITORED = [name for name in SERVICES if name not in ("base", "overlays/dev")]


@pytest.mark.parametrize("folder", SERVICES)
def test_every_overlay_but_the_small_one_has_alerts_and_what_they_ask(folder: str) -> None:
    monitors = {item["metadata"]["name"]: item["spec"] for item in find_all(folder, "PodMonitor")}
    rules = find_all(folder, "PrometheusRule")
    assert bool(monitors) is bool(rules) is (folder in MONITORED)
    if not monitors:
        return
    text = json.dumps(rules)
    assert "kuberay_service_condition_ready" in text
    # Of the operator, wherever it may be: its metrics name the RayService's namespace, which is not its own.
    operator = monitors["modelyard-operator"]
    policy = next(
        item for item in find_all(folder, "NetworkPolicy") if item["metadata"]["name"] == "modelyard-operator"
    )
    ((source,),) = [rule["from"] for rule in policy["spec"]["ingress"]]
    (expression,) = source["namespaceSelector"]["matchExpressions"]
    assert operator["namespaceSelector"]["matchNames"] == expression["values"]
    assert operator["selector"] == source["podSelector"]
    assert operator["podMetricsEndpoints"] == [{"port": "http", "honorLabels": True}]


def test_a_model_that_fails_and_a_platform_that_fails_are_different_alerts() -> None:
    ((group,),) = [item["spec"]["groups"] for item in find_all("overlays/cpu", "PrometheusRule")]
    asked = {rule["alert"]: rule["expr"] for rule in group["rules"]}
    # The platform takes the application of a failed revision away, so Serve's own metric knows of none.
    assert asked["ModelyardModelFailed"] == f"max by (namespace, model, revision) (ray_{METRIC}) == 1"
    assert asked["ModelyardPlatformFailed"] == 'ray_serve_application_status{application="platform"} == 1'
    assert [item["name"] for item in serve_applications("overlays/cpu")] == ["platform"]
    assert ApplicationStatus.DEPLOY_FAILED.to_numeric() == 1
    assert ApplicationStatus.UNHEALTHY.to_numeric() == 2


def serve_applications(folder: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = yaml.safe_load(find(folder, "RayService")["spec"]["serveConfigV2"])["applications"]
    return found


@pytest.mark.parametrize("folder", SERVICES)
def test_a_budget_is_a_number_of_pods_that_stay(folder: str) -> None:
    for budget in find_all(folder, "PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"]
        pairs = zip(labels(folder), groups(folder), strict=True)
        ((name, group),) = [found for own, found in pairs if selector.items() <= own.items()]
        least, hosts = group.get("minReplicas", 1), group.get("numOfHosts", 1)
        stay, policy = budget["spec"]["minAvailable"], budget["spec"]["unhealthyPodEvictionPolicy"]
        if hosts > 1:  # of a model over several pods none may go, nor any that is not ready: it has workers alone
            # A rendered group may have any size, an upgrade has two of them, and no cluster of Kubernetes so many pods.
            assert (stay > 150_000, policy) == (True, "IfHealthyBudget")
        elif name == "head":  # none may, nor one of two
            assert (stay, policy) == (2, "AlwaysAllow")
        else:  # of the ingress one may go, of the last GPU none
            assert (stay, policy) == (least - 1 if name == "cpu" else max(least, 1), "AlwaysAllow")


@pytest.mark.parametrize("folder", [name for name in SERVICES if name != "overlays/dev"])
def test_every_group_of_workers_has_a_budget_and_a_place_by_intent(folder: str) -> None:
    selectors = [item["spec"]["selector"]["matchLabels"] for item in find_all(folder, "PodDisruptionBudget")]
    for own, (name, pod) in zip(labels(folder)[1:], list(pods(folder).items())[1:], strict=True):
        assert [found for found in selectors if found.items() <= own.items()], name
        together = pod.get("affinity", {}).get("podAffinity")
        apart = pod.get("topologySpreadConstraints", ())
        keys = {constraint["topologyKey"] for constraint in apart}
        assert keys == (set() if together else {"topology.kubernetes.io/zone", "kubernetes.io/hostname"})
        assert bool(together) is (name == "llm")


def test_only_a_cluster_that_outlives_its_head_lets_it_be_evicted() -> None:
    guarded = {
        folder: {item["metadata"]["name"] for item in find_all(folder, "PodDisruptionBudget")} for folder in SERVICES
    }
    without = {folder for folder, names in guarded.items() if "modelyard-head" not in names}
    outlives = {folder for folder in SERVICES if "gcsFaultToleranceOptions" in cluster(folder)}
    assert outlives >= {"overlays/ha", "overlays/gpu with everything", "overlays/llm with everything"}
    assert without == outlives | {"overlays/dev"}


def test_groups_of_gpus_start_at_none_and_groups_of_hosts_stay_together() -> None:
    gpu = dict(groups("overlays/gpu"))["gpu"]
    assert (gpu["minReplicas"], gpu["replicas"]) == (0, 0)
    llm = dict(groups("overlays/llm"))["llm"]
    assert llm["numOfHosts"] == 2
    assert int(llm["resources"]["GPU"]) * 2 == 8


@pytest.mark.parametrize("folder", [name for name in SERVICES if "gpu" in name or "llm" in name or "volume" in name])
def test_every_pod_sees_the_models_and_none_can_change_them(folder: str) -> None:
    for name, pod in pods(folder).items():
        (volume,) = [item for item in pod["volumes"] if item["name"] == "models"]
        assert volume["persistentVolumeClaim"]["claimName"] == find(folder, "PersistentVolumeClaim")["metadata"]["name"]
        (mount,) = [item for item in containers(folder)[name]["volumeMounts"] if item["name"] == "models"]
        assert mount == {"name": "models", "mountPath": "/opt/modelyard/models", "readOnly": True}


@pytest.mark.parametrize("folder", [name for name, (_, *own) in COMBINED.items() if "object-store" in own])
def test_copies_of_artifacts_have_a_place_that_is_larger_than_they_may_become(folder: str) -> None:
    cache, limit = environment(folder)["MODELYARD_CACHE"], float(environment(folder)["MODELYARD_CACHE_GB"])
    for name, container in containers(folder).items():
        (volume,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == cache]
        (size,) = [one["emptyDir"]["sizeLimit"] for one in pods(folder)[name]["volumes"] if one["name"] == volume]
        assert float(size.removesuffix("Gi")) * 2**30 > limit * 10**9
        assert {"secretRef": {"name": "modelyard-store", "optional": True}} in container["envFrom"]


def test_added_groups_differ_from_the_base_s_in_nothing_but_what_they_are_for() -> None:
    own = {"resources", "volumeMounts"}
    for folder, name in (("overlays/gpu", "gpu"), ("overlays/llm", "llm")):
        ours, base = containers(folder)[name], containers(folder)["cpu"]
        assert {key: ours[key] for key in ours.keys() - own} == {key: base[key] for key in base.keys() - own}


def test_an_incremental_upgrade_can_be_one() -> None:
    strategy = find("overlays/incremental-upgrade", "RayService")["spec"]["upgradeStrategy"]
    options = strategy["clusterUpgradeOptions"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
    assert options["intervalSeconds"] > 0


def test_steps_of_an_upgrade_reach_what_the_file_declares_and_no_model() -> None:
    # So nobody is told that they save resources: an application of `serve.run` has no share that Serve could scale.
    source = inspect.getsource(ApplicationState.deploy_app)
    assert "target_capacity=None" in source
    assert "target_capacity" in inspect.signature(ApplicationState.apply_app_config).parameters
    assert "serve.run_many(" in inspect.getsource(controller)
    texts = [(KUBERAY / "overlays/incremental-upgrade" / name).read_text() for name in INCREMENTAL]
    told = [*texts, (KUBERAY.parent / "docs/kuberay.md").read_text()]
    assert not any("half as much" in text for text in told)
    assert all("models" in text for text in told)


@pytest.mark.parametrize("folder", [name for name in SERVICES if "incremental-upgrade" not in name])
def test_every_other_upgrade_is_one_switch(folder: str) -> None:
    assert find(folder, "RayService")["spec"]["upgradeStrategy"] == {"type": "NewCluster"}


@pytest.mark.parametrize("folder", [name for name in SERVICES if name.endswith(("ha", "everything", "databases"))])
def test_the_databases_are_told_to_every_pod_by_secrets_alone(folder: str) -> None:
    redis = cluster(folder)["gcsFaultToleranceOptions"]
    assert redis["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "modelyard-redis", "key": "password"}}}
    assert "@" not in redis["redisAddress"]
    for container in containers(folder).values():
        assert {"secretRef": {"name": "modelyard-postgres"}} in container["envFrom"]
    policies = {item["metadata"]["name"]: item["spec"] for item in find_all(folder, "NetworkPolicy")}
    assert open_ports(policies["modelyard-databases"]) == {6379, 5432}


def test_routes_lead_to_the_operator_s_service_and_ports_that_it_has() -> None:
    service = find("base", "RayService")
    ports = {port["port"] for port in service["spec"]["serveService"]["spec"]["ports"]}
    listeners = {item["name"]: item for item in find("gateway", "Gateway")["spec"]["listeners"]}
    for kind, allowed in (("HTTPRoute", {8000}), ("GRPCRoute", {9000})):
        for route in find_all("gateway", kind):
            (parent,) = route["spec"]["parentRefs"]
            assert route["spec"]["hostnames"] == [listeners[parent["sectionName"]]["hostname"]]
            targets = [target for rule in route["spec"]["rules"] for target in rule.get("backendRefs", ())]
            assert {target["name"] for target in targets} <= {f"{service['metadata']['name']}-serve-svc"}
            assert {target["port"] for target in targets} <= allowed & ports


def test_calls_that_are_at_the_root_pass_the_gateway() -> None:
    rules = next(item for item in find_all("gateway", "HTTPRoute") if item["metadata"]["name"] == "modelyard")["spec"][
        "rules"
    ]
    exact = {match["path"]["value"] for rule in rules for match in rule["matches"] if match["path"]["type"] == "Exact"}
    assert exact >= {f"/{name}" for name in BARE}
    # All rules of inference wait as long as the slowest model.
    assert {rule["timeouts"]["request"] for rule in rules} == {"600s"}


def test_the_ports_of_the_service_are_those_of_the_pods() -> None:
    ports = find("base", "RayService")["spec"]["serveService"]["spec"]["ports"]
    own = {port["name"]: port["containerPort"] for port in containers("base")["cpu"]["ports"]}
    assert [own[port["name"]] for port in ports] == [port["port"] for port in ports] == [8000, 9000]
