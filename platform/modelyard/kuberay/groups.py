# SPDX-License-Identifier: Apache-2.0
"""Worker groups for what models need: one with CPUs, and one with GPUs for each type of accelerator."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelyard.kuberay.needs import Amounts, Need, count_nodes
from modelyard.kuberay.quantity import to_number

Group = dict[str, Any]

_ACCELERATOR: Final = "accelerator_type:"
"""Source: Ray ``RESOURCE_CONSTRAINT_PREFIX``; nodes of the type have 1 of it."""
_RAYS: Final = "ray.io/"
_OPERATORS: Final = ("!", "in(")
MAX_NAME_CHARACTERS: Final = 57
"""Of a group's name: a label's value has 63, and where a group has several hosts the operator adds six to it."""

CPU: Final = "cpu"
"""The base's group, for the ingress and what has no GPUs."""
_KEYS: Final = {"CPU": "num_cpus", "GPU": "num_gpus"}


@dataclass(frozen=True, slots=True)
class Size:
    """Of one worker; what is None is as the overlay has it."""

    cpus: int | None = None
    memory: str | None = None
    gpus: int | None = None


def capacity(group: Mapping[str, Any]) -> Amounts:
    """What one pod of a group adds to the Ray cluster, as Ray's autoscaler reads it off the group.

    Source: Ray ``autoscaler/_private/kuberay/autoscaling_config.py``.
    """
    container = group["template"]["spec"]["containers"][0]["resources"]
    limits, requests = container.get("limits", {}), container.get("requests", {})
    found: dict[str, str | int] = {"CPU": limits.get("cpu", requests.get("cpu", 0))}
    found["memory"] = limits.get("memory", requests.get("memory", 0))
    gpus = [amount for key, amount in {**requests, **limits}.items() if key.endswith("gpu")]
    found |= {"GPU": gpus[0]} if gpus else {}
    if "num-cpus" in group.get("rayStartParams", {}):
        found["CPU"] = group["rayStartParams"]["num-cpus"]
    found |= group.get("resources", {})
    return {name: math.ceil(to_number(amount)) for name, amount in found.items()}


def has_gpus(group: Mapping[str, Any]) -> bool:
    """Whether models with GPUs go there."""
    return capacity(group).get("GPU", 0) > 0


def resize(template: Mapping[str, Any], size: Size) -> Group:
    """The group with pods of another size."""
    group: Group = copy.deepcopy(dict(template))
    container, own = group["template"]["spec"]["containers"][0]["resources"], group.get("resources", {})
    if size.cpus is not None:
        container["requests"]["cpu"] = str(size.cpus)
        own |= {"CPU": str(size.cpus)} if "CPU" in own else {}
    if size.memory is not None:
        container["requests"]["memory"] = container["limits"]["memory"] = size.memory
    if size.gpus is not None:
        for amounts in container.values():
            amounts |= {key: str(size.gpus) for key in amounts if key.endswith("gpu")}
        own |= {"GPU": str(size.gpus)} if "GPU" in own else {}
    return group


def split_by_accelerator(template: Group, needs: Sequence[Need]) -> Iterator[Group]:
    """A group for each type of accelerator that models ask for.

    Models that ask for none in particular share the first of these, or have the template itself.
    """
    kinds = sorted({need.accelerator_type for need in needs if need.accelerator_type is not None})
    names: list[str] = []
    for kind in kinds:
        group = copy.deepcopy(template)
        plain = re.sub("[^a-z0-9]+", "-", kind.lower()).strip("-")
        names.append(_new_name(f"{template['groupName']}-{plain}", names))
        group["groupName"] = names[-1]
        group["resources"] = {**group.get("resources", {}), f"{_ACCELERATOR}{kind}": "1"}
        yield group
    if not kinds:
        yield template


def _new_name(text: str, names: Sequence[str]) -> str:
    """A name of a group that no other has: types that differ in nothing a name can have are numbered."""
    number, end = 1, ""
    while (name := text[: MAX_NAME_CHARACTERS - len(end)].rstrip("-") + end) in names:
        number += 1
        end = f"-{number}"
    return name


def has_type(group: Mapping[str, Any]) -> bool:
    """Whether its pods are said to have accelerators of some type."""
    return any(name.startswith(_ACCELERATOR) for name in group.get("resources", {}))


def spreads(need: Need, group: Mapping[str, Any]) -> int:
    """Over how many pods of a group one replica spreads, each of which fits."""
    return count_nodes([(bundle, 1) for bundle in need.bundles], capacity(group))


def assign(needs: Sequence[Need], groups: Sequence[Group]) -> list[list[Need]]:
    """Which models go to which group, in the order of the groups; one that has none is left out."""
    found: list[list[Need]] = [[] for _ in groups]
    for need in needs:
        index = next((index for index, group in enumerate(groups) if _is_for(group, need)), None)
        if index is not None:
            found[index].append(need)
    return found


def _is_for(group: Mapping[str, Any], need: Need) -> bool:
    if need.accelerator_type is not None:
        return f"{_ACCELERATOR}{need.accelerator_type}" in group.get("resources", {})
    return has_gpus(group) == need.is_accelerated


def misfit(need: Need, group: Mapping[str, Any]) -> str:
    """What a replica needs that no pod of the group has, in words; empty where it fits."""
    node = capacity(group)
    for bundle in need.bundles:
        for name, amount in bundle.items():
            if amount > node.get(name, 0):
                return f"it needs {describe(name, amount)}, and a pod has {describe(name, node.get(name, 0))}"
    own = group.get("labels", {})
    for name, value in need.labels.items():
        # Ray's own labels are known on the node only, and what operators mean is for Ray to say.
        if not name.startswith(_RAYS) and not value.startswith(_OPERATORS) and own.get(name) != value:
            return f"it needs a node with the label {name}={value}, and a pod has {own.get(name, 'none of that name')}"
    return ""


def describe(name: str, amount: float) -> str:
    """An amount as the configuration has it."""
    if name == "memory":
        return f"memory_mb {amount / 2**20:.0f}"
    return f"{_KEYS.get(name, name)} {amount:g}"


def set_replicas(group: Group, needs: Sequence[Need], ingresses: int) -> None:
    """Bounds of a group, in place: room for every model at its most, and for one new revision beside the old.

    Args:
        group: Of pods as large as they will be.
        needs: Of those models that it is for.
        ingresses: Processes of the ingress in it, each of which is on a pod of its own, one more in an update.
    """
    node = capacity(group)
    if "numOfHosts" in group:
        group["numOfHosts"] = max([1, *(math.ceil(need.total("GPU") / node["GPU"]) for need in needs)])
    fitting = [need for need in needs if not misfit(need, group)]
    wanted = [(bundle, need.replicas) for need in (*fitting, *_largest(fitting)) for bundle in need.bundles]
    pods = max(count_nodes(wanted, node), ingresses + 1 if ingresses else 0)
    group["minReplicas"] = group["replicas"] = max(group["minReplicas"], ingresses)
    group["maxReplicas"] = max(group["minReplicas"], math.ceil(pods / group.get("numOfHosts", 1)))


def _largest(needs: Sequence[Need]) -> Sequence[Need]:
    """The one that takes most at its most; none of none."""
    return sorted(needs, key=lambda need: (need.replicas * need.total("GPU"), need.replicas * need.total("CPU")))[-1:]
