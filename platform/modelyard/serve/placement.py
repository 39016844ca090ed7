# SPDX-License-Identifier: Apache-2.0
"""Whether any node of the cluster could hold a replica, were it empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_OPERATORS: Final = ("!", "in(")


@dataclass(frozen=True, slots=True)
class Need:
    """What one process takes of a node.

    Attributes:
        resources: Amounts by Ray's names.
        labels: What the node's labels have to be, in Ray's language.
    """

    resources: Mapping[str, float]
    labels: Mapping[str, str]


def find_misfit(needs: Sequence[Need], nodes: Sequence[Mapping[str, Any]]) -> str:
    """Why there is a process that no node could hold; empty where each fits somewhere.

    Args:
        needs: Of one replica's processes.
        nodes: As ``ray.nodes()`` tells of them.
    """
    alive = [node for node in nodes if node.get("Alive")]
    for need in needs:
        fitting = [node for node in alive if _has_labels(node, need.labels)]
        if not fitting:
            return f"no node has the labels {_show(need.labels)}"
        if not any(_has_room(node, need.resources) for node in fitting):
            return _explain(need, fitting)
    return ""


def _has_labels(node: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Values with operators are left to Ray."""
    labels = node.get("Labels", {})
    return all(value.startswith(_OPERATORS) or labels.get(name) == value for name, value in wanted.items())


def _has_room(node: Mapping[str, Any], resources: Mapping[str, float]) -> bool:
    total = node.get("Resources", {})
    return all(total.get(name, 0.0) >= amount for name, amount in resources.items())


def _explain(need: Need, nodes: Sequence[Mapping[str, Any]]) -> str:
    """What is too much for every node, or where that is nothing by itself, for any one node."""
    most = {name: max(node["Resources"].get(name, 0.0) for node in nodes) for name in need.resources}
    missing = [name for name, amount in need.resources.items() if amount > most[name]] or list(need.resources)
    has = ", ".join(f"{name} {most[name]:g}" for name in missing)
    wants = ", ".join(f"{name} {need.resources[name]:g}" for name in missing)
    return f"it needs {wants} on one node, the nodes have at most {has}"


def _show(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels.items())
