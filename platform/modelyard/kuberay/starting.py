# SPDX-License-Identifier: Apache-2.0
"""What keeps pods of a group from starting or from stopping well, though definition and operator take it.

Nobody says so before the operator makes the pods, and then only in its log or theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from modelyard.config.problems import join_path, nearest, shown
from modelyard.kuberay.groups import MAX_NAME_CHARACTERS
from modelyard.kuberay.metadata import LABEL, is_label
from modelyard.kuberay.quantity import to_number

Part = Mapping[str, Any]

INTEGERS: Final = frozenset(
    {
        *("num-cpus", "num-gpus", "memory", "object-store-memory", "system-reserved-memory", "verbose"),
        *("port", "object-manager-port", "node-manager-port", "min-worker-port", "max-worker-port"),
        *("ray-client-server-port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
        *("runtime-env-agent-port", "metrics-export-port"),
    }
)
"""Options of ``ray start`` that take whole numbers. Source: Ray 2.60.0 ``scripts/scripts.py`` (``start``)."""
OTHERS: Final = frozenset(
    {
        *("node-ip-address", "address", "node-name", "redis-username", "redis-password", "redis-shard-ports"),
        *("worker-port-list", "resources", "head", "include-dashboard", "dashboard-host", "block", "labels"),
        *("plasma-directory", "object-spilling-directory", "autoscaling-config", "no-redirect-output", "temp-dir"),
        *("system-config", "enable-object-reconstruction", "no-monitor", "tracing-startup-hook", "labels-file"),
        *("ray-debugger-external", "disable-usage-stats", "include-log-monitor", "enable-resource-isolation"),
        *("system-reserved-cpu", "cgroup-path", "proxy-server-url", "log-style", "log-color"),
    }
)
"""The others."""
_READ: Final = frozenset({"num-cpus", "num-gpus", "memory", "port", "dashboard-agent-listen-port"})
"""What operator and autoscaler read as it stands; the others a shell expands when the pod starts."""
_DRAIN: Final = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
_AFTER_DRAIN_S: Final = 30
_GRACE_S: Final = 30
"""Kubernetes' own, where a pod says nothing."""
_PROBES: Final = ("readinessProbe", "livenessProbe", "startupProbe")
_HANDLERS: Final = ("httpGet", "tcpSocket")
_ADDED_PORT: Final = "metrics"
"""What the operator adds to a list of ports."""


def check_starting(group: Part, path: str) -> Iterator[str]:
    """Problems of one group.

    Args:
        group: The head's, or one of workers.
        path: Of the group.
    """
    if "groupName" in group:
        yield from _check_name(group, path)
    for name, amount in group.get("resources", {}).items():
        if not _is_amount(amount):
            where = join_path(path, "resources", name)
            yield f"{where}: expected a quantity as 500m, 2 or 4Gi, got {shown(amount, '')}"
    yield from _check_parameters(group, f"{path}.rayStartParams")
    pod, where = group["template"].get("spec", {}), f"{path}.template.spec"
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(pod.get(kind, ())):
            yield from _check_container(container, join_path(where, kind, index))
    yield from _check_grace(pod, where)


def _check_name(group: Part, path: str) -> Iterator[str]:
    name, hosts = group["groupName"], group.get("numOfHosts", 1)
    if not name or not is_label(name) or "_" in name:
        # A label of the pods, and a part of their names.
        yield f"{path}.groupName: expected {LABEL}, not empty and without _, got {shown(name, '')}"
    elif hosts > 1 and len(name) > MAX_NAME_CHARACTERS:
        yield f"{path}.groupName: expected at most {MAX_NAME_CHARACTERS} characters with numOfHosts, got {len(name)}"


def _is_amount(text: str) -> bool:
    try:
        return to_number(text) >= 0
    except ValueError:
        return False


def _check_parameters(group: Part, path: str) -> Iterator[str]:
    for key, value in group.get("rayStartParams", {}).items():
        where = join_path(path, key)
        if key not in INTEGERS | OTHERS:
            yield f"{where}: no option of ray start{nearest(key, sorted(INTEGERS | OTHERS))}"
        elif key in INTEGERS and not value.isdecimal() and not ("$" in value and key not in _READ):
            yield f"{where}: expected a whole number, got {shown(value, '')}"


def _check_container(container: Part, path: str) -> Iterator[str]:
    if not container.get("image"):
        yield f"{path}.image: expected the name of an image, got nothing"
    ports = {port.get("name") for port in container.get("ports", ())} - {None} | {_ADDED_PORT}
    for probe in _PROBES:
        for handler in _HANDLERS:
            port = container.get(probe, {}).get(handler, {}).get("port")
            # Without a list of ports the operator makes one.
            if isinstance(port, str) and port not in ports and container.get("ports"):
                where = f"{path}.{probe}.{handler}.port"
                yield f"{where}: expected a number or the name of a port{nearest(port, sorted(ports))}"


def _check_grace(pod: Part, path: str) -> Iterator[str]:
    (first, *_) = pod.get("containers") or [{}]
    drain_s = next((item.get("value", "") for item in first.get("env", ()) if item["name"] == _DRAIN), "")
    grace_s = pod.get("terminationGracePeriodSeconds", _GRACE_S)
    if drain_s.isdecimal() and grace_s < int(drain_s) + _AFTER_DRAIN_S:
        least_s = int(drain_s) + _AFTER_DRAIN_S
        yield (
            f"{path}.terminationGracePeriodSeconds: expected at least {least_s}, {_AFTER_DRAIN_S} more than {_DRAIN}, "
            f"got {grace_s}"
        )
