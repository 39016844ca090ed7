# SPDX-License-Identifier: Apache-2.0
"""The shapes of the other custom resources, as far as the manifests use them; what is not written here is refused.

Source: the types of the Prometheus operator's ``monitoring.coreos.com/v1`` and of Gateway API's
``gateway.networking.k8s.io/v1``. Their definitions are not at hand as data; a new key has to be looked up and added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator

Schema = Mapping[str, Any]


def _closed(properties: Mapping[str, Schema], *required: str) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": items}


def _one_of(*values: str) -> Schema:
    return {"enum": values}


_TEXT: Final[Schema] = {"type": "string", "minLength": 1}
_TEXTS: Final[Schema] = {"type": "object", "additionalProperties": _TEXT}
_PORT: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 65535}
_DURATION: Final[Schema] = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}

_RELABELING = _closed(
    {"action": _one_of("replace", "keep", "drop"), "sourceLabels": _list(_TEXT), "targetLabel": _TEXT}, "action"
)
_POD_MONITOR = _closed(
    {
        "selector": _closed({"matchLabels": _TEXTS}, "matchLabels"),
        "namespaceSelector": _closed({"matchNames": _list(_TEXT)}, "matchNames"),
        "podMetricsEndpoints": _list(
            _closed({"port": _TEXT, "honorLabels": {"type": "boolean"}, "relabelings": _list(_RELABELING)}, "port")
        ),
    },
    "selector",
    "podMetricsEndpoints",
)
_ALERT = _closed(
    {"alert": _TEXT, "expr": _TEXT, "for": _DURATION, "labels": _TEXTS, "annotations": _TEXTS}, "alert", "expr"
)
_RULE = _closed({"groups": _list(_closed({"name": _TEXT, "rules": _list(_ALERT)}, "name", "rules"))}, "groups")

_LISTENER = _closed(
    {
        "name": _TEXT,
        "protocol": _one_of("HTTP", "HTTPS", "TLS", "TCP", "UDP"),
        "port": _PORT,
        "hostname": _TEXT,
        "tls": _closed(
            {"mode": _one_of("Terminate", "Passthrough"), "certificateRefs": _list(_closed({"name": _TEXT}, "name"))},
            "certificateRefs",
        ),
        "allowedRoutes": _closed({"namespaces": _closed({"from": _one_of("All", "Same", "Selector", "None")})}),
    },
    "name",
    "protocol",
    "port",
)
_GATEWAY = _closed(
    {"gatewayClassName": _TEXT, "listeners": _list(_LISTENER)},
    "gatewayClassName",
    "listeners",
)
_PARENTS = _list(_closed({"name": _TEXT, "sectionName": _TEXT}, "name"))
_TARGETS = _list(_closed({"name": _TEXT, "port": _PORT}, "name", "port"))
_PATH = _closed({"type": _one_of("Exact", "PathPrefix"), "value": {"type": "string", "pattern": "^/"}}, "type", "value")
_REDIRECT = _closed({"scheme": _one_of("http", "https"), "statusCode": {"enum": [301, 302, 303, 307, 308]}})
_HTTP_RULE = _closed(
    {
        "matches": _list(_closed({"path": _PATH})) | {"maxItems": 8},  # 64 in newer versions
        "filters": _list(
            _closed({"type": _one_of("RequestRedirect"), "requestRedirect": _REDIRECT}, "type", "requestRedirect")
        ),
        "timeouts": _closed({"request": _DURATION, "backendRequest": _DURATION}),
        "backendRefs": _TARGETS,
    }
)
_METHOD = _closed({"service": _TEXT, "method": _TEXT}, "service")
_GRPC_RULE = _closed(
    {"matches": _list(_closed({"method": _METHOD}, "method")) | {"maxItems": 8}, "backendRefs": _TARGETS}
)


def _route(rule: Schema) -> Schema:
    return _closed({"parentRefs": _PARENTS, "hostnames": _list(_TEXT), "rules": _list(rule)}, "parentRefs", "rules")


_PROMETHEUS, _GATEWAY_API = "monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1"
_SPECS: Final[Mapping[tuple[str, str], Schema]] = {
    (_PROMETHEUS, "PodMonitor"): _POD_MONITOR,
    (_PROMETHEUS, "PrometheusRule"): _RULE,
    (_GATEWAY_API, "Gateway"): _GATEWAY,
    (_GATEWAY_API, "HTTPRoute"): _route(_HTTP_RULE),
    (_GATEWAY_API, "GRPCRoute"): _route(_GRPC_RULE),
}
KINDS: Final = frozenset(kind for _, kind in _SPECS)
_METADATA = _closed({"name": _TEXT, "namespace": _TEXT, "annotations": _TEXTS}, "name", "namespace")


def check(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with it: a line for each problem."""
    spec = _SPECS.get((str(document.get("apiVersion")), str(document.get("kind"))))
    if spec is None:
        return ["apiVersion, kind: unknown"]
    shape = _closed({"apiVersion": _TEXT, "kind": _TEXT, "metadata": _METADATA, "spec": spec}, "metadata", "spec")
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(shape).iter_errors(document)]
