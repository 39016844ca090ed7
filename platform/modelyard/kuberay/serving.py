# SPDX-License-Identifier: Apache-2.0
"""The Serve file inside a RayService: what has to hold of it in a pod, whatever it serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from modelyard.config.documents import parse_yaml
from modelyard.config.problems import join_path, shown
from modelyard.errors import InvalidConfig

PATH: Final = "spec.serveConfigV2"
_LOOPBACK: Final = ("127.", "localhost", "::1")
EVERY_NODE: Final = "EveryNode"
"""Serve's own default of where proxies are, which readiness goes by."""
HTTP_PORT: Final = 8000
GRPC_PORT: Final = 9000


def read_serve_file(service: Mapping[str, Any]) -> Mapping[str, Any]:
    """The Serve file of a RayService.

    Raises:
        InvalidConfig: It is no YAML, or no mapping.
    """
    document = parse_yaml(service["spec"]["serveConfigV2"], PATH)
    if not isinstance(document, Mapping):
        raise InvalidConfig((f"{PATH}: expected a mapping with the key applications, got {shown(document, '')}",))
    return document


def check_serving(service: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[str]:
    """What keeps the pods from being reached or from becoming ready.

    Args:
        service: A RayService of the right shape.
        document: Its Serve file.
    """
    yield from _check_proxies(service, document.get("proxy_location", EVERY_NODE))
    http = _section(document, "http_options")
    host = http.get("host")
    if isinstance(host, str) and host.startswith(_LOOPBACK):
        yield f'{PATH}.http_options.host: expected "0.0.0.0" or "::", got {shown(host, "")}, where no other pod gets'
    for key in http:
        if str(key).startswith("ssl_"):
            yield f"{PATH}.http_options.{key}: expected nothing: the operator asks by plain HTTP whether a pod is ready"
    ports = {"serve": http.get("port", HTTP_PORT)}
    if _section(document, "grpc_options").get("grpc_servicer_functions"):
        ports["serve-grpc"] = _section(document, "grpc_options").get("port", GRPC_PORT)
    cluster = service["spec"]["rayClusterConfig"]
    groups = [("headGroupSpec", cluster["headGroupSpec"])]
    groups += [(join_path("workerGroupSpecs", index), g) for index, g in enumerate(cluster.get("workerGroupSpecs", ()))]
    for name, group in groups:
        yield from _check_ports(group, ports, f"spec.rayClusterConfig.{name}.template.spec.containers[0].ports")


def _check_proxies(service: Mapping[str, Any], location: object) -> Iterator[str]:
    """The operator takes a pod for ready whose proxy says so, and sends requests to no other."""
    spec = service["spec"]
    has_workers = bool(spec["rayClusterConfig"].get("workerGroupSpecs"))
    if location == "HeadOnly" and not spec.get("excludeHeadPodFromServeSvc") and not has_workers:
        return
    if location != EVERY_NODE:
        where = f"{PATH}.proxy_location"
        yield f"{where}: expected {EVERY_NODE}, got {shown(location, '')}: a pod without a proxy is never ready"


def _check_ports(group: Mapping[str, Any], wanted: Mapping[str, Any], path: str) -> Iterator[str]:
    containers = group["template"].get("spec", {}).get("containers") or [{}]
    for index, port in enumerate(containers[0].get("ports", ())):
        expected = wanted.get(port.get("name", ""), port["containerPort"])
        if port["containerPort"] != expected:
            where = join_path(path, index, "containerPort")
            yield f"{where}: expected {expected}, the port in {PATH}, got {port['containerPort']}"


def _section(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = document.get(key)
    return section if isinstance(section, Mapping) else {}
