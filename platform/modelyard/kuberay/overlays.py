# SPDX-License-Identifier: Apache-2.0
"""The RayService of one of ``kuberay/overlays``, and what of the objects around it there are warnings about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelyard.config.problems import nearest
from modelyard.errors import InvalidConfig
from modelyard.kuberay.kustomization import ENVIRONMENT, build, groups_of
from modelyard.kuberay.patches import Item, refuse

_PACKAGED: Final = Path(__file__).with_name("manifests")
FOLDER: Final = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "kuberay"
"""In an installed package, or in a checkout."""
_OURS: Final = "app.kubernetes.io/part-of"
"""The label that all pods have."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """What one comes to.

    Attributes:
        service: Its RayService, without the Serve file; anew for each caller, who may change it.
        environment: What Ray and Serve read when their processes start.
        around: NetworkPolicies and budgets.
    """

    service: Item
    environment: Mapping[str, str]
    around: Sequence[Item]

    def lets_out(self, port: int) -> bool:
        """Whether every pod may reach a port of others, anywhere at all."""
        policies = [item for item in self.around if item["kind"] == "NetworkPolicy" and _is_for_egress(item)]
        return not policies or any(_lets_out(rule, port) for policy in policies for rule in _ways_out(policy))

    def pods_that_stay(self, group: str) -> int | None:
        """How many pods of a group evictions leave; None where no budget says."""
        for budget in self.around:
            if budget["kind"] == "PodDisruptionBudget":
                stay = budget["spec"].get("minAvailable")
                if _labels(budget["spec"].get("selector")).get("ray.io/group") == group and isinstance(stay, int):
                    return stay
        return None


def _is_for_egress(policy: Item) -> bool:
    """Source: Kubernetes ``NetworkPolicySpec.policyTypes``."""
    spec = policy["spec"]
    return "Egress" in spec.get("policyTypes", ("Egress",) if spec.get("egress") else ())


def _ways_out(policy: Item) -> Iterator[Mapping[str, Any]]:
    """The rules for all pods that lead to others than the cluster's own."""
    if _labels(policy["spec"].get("podSelector")).keys() <= {_OURS}:  # one with more labels is for some of the pods
        for rule in policy["spec"].get("egress") or ():
            if not any(_OURS in _labels(target.get("podSelector")) for target in rule.get("to") or ()):
                yield rule


def _lets_out(rule: Mapping[str, Any], port: int) -> bool:
    ports = rule.get("ports") or ()
    return not ports or any(_is_within(port, one.get("port"), one.get("endPort")) for one in ports)


def _is_within(port: int, first: object, last: object) -> bool:
    if first is None:
        return True
    return port == first or (isinstance(first, int) and isinstance(last, int) and first <= port <= last)


def _labels(selector: Mapping[str, Any] | None) -> Mapping[str, str]:
    labels: Mapping[str, str] = (selector or {}).get("matchLabels") or {}
    return labels


def overlay_names() -> tuple[str, ...]:
    """Of the overlays there are."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob("overlays/*/kustomization.yaml")))


def load_overlay(name: str) -> Overlay:
    """An overlay by its name.

    Raises:
        InvalidConfig: There is none of that name, or something in it is not read.
    """
    if name not in overlay_names():
        raise InvalidConfig((f'--overlay: unknown overlay "{name}"{nearest(name, overlay_names())}',))
    try:
        items = build(FOLDER / "overlays" / name)
    except (AttributeError, KeyError, TypeError, re.error):  # a text where a mapping has to be, and the like
        refuse(name, "a kustomization is not of the right shape: `kubectl kustomize` says where")
    services = [item for item in items if item["kind"] == "RayService"]
    if len(services) != 1:
        refuse(name, f"expected one RayService, got {len(services)}")
    maps = {item["metadata"]["name"]: item for item in items if item["kind"] == "ConfigMap"}
    environment = maps[ENVIRONMENT]["data"] if ENVIRONMENT in maps else {}
    for group in groups_of(services[0]):
        for source in group["template"]["spec"]["containers"][0].get("envFrom", ()):
            named = source.get("configMapRef", {}).get("name")
            if maps.get(named, {"metadata": {}})["metadata"].get("is_hashed"):
                refuse(name, f"envFrom: {named} gets a name with a hash: options: {{disableNameSuffixHash: true}}")
    around = [item for item in items if item["kind"] in ("NetworkPolicy", "PodDisruptionBudget")]
    return Overlay(services[0], environment, around)


def load_service(overlay: str) -> Item:
    """The RayService of an overlay, without its Serve file.

    Raises:
        InvalidConfig: See :func:`load_overlay`.
    """
    return load_overlay(overlay).service
