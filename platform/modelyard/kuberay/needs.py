# SPDX-License-Identifier: Apache-2.0
"""What the models of a platform need of a cluster, and how many workers that fills."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelyard.config import Autoscaling, ModelSpec, PlatformConfig, Resources
from modelyard.errors import InvalidConfig
from modelyard.model import get_framework, runs_elsewhere
from modelyard.store import resolve
from modelyard.store.remote import is_remote

Amounts = Mapping[str, float]
"""Of each of Ray's resources so much: ``CPU``, ``GPU``, ``memory`` in bytes, and a cluster's own."""


@dataclass(frozen=True, slots=True)
class Need:
    """What replicas of one kind take.

    Attributes:
        path: Of what they are, in the configuration.
        name: Of the model; ``ingress`` and ``controller`` for what is not one.
        accelerator_type: Which nodes they have to be on; None for any.
        bundles: What one replica takes, each on one node; several where it may spread over as many.
        replicas: How many there may be, at any hour.
        least: How many there are at least, at the hour when these are most.
        labels: What the labels of its nodes have to be, in Ray's language.
    """

    path: str
    name: str
    accelerator_type: str | None
    bundles: tuple[Amounts, ...]
    replicas: int
    least: int
    labels: Mapping[str, str] = field(default_factory=dict)

    def total(self, name: str) -> float:
        """How much of a resource one replica takes."""
        return sum(bundle.get(name, 0) for bundle in self.bundles)

    @property
    def is_accelerated(self) -> bool:
        """It has to be where GPUs are."""
        return self.accelerator_type is not None or self.total("GPU") > 0


def find_needs(config: PlatformConfig) -> tuple[Need, ...]:
    """Of ingress and controller, of each declared model that has a process of its own, in their order, of the pools."""
    own = (_need_of(spec, f"models[{index}]") for index, spec in enumerate(config.models) if not spec.shared)
    return (*_platform(config), *own, *_pools(config))


def _platform(config: PlatformConfig) -> Iterator[Need]:
    count, labels = config.ingress.num_replicas, config.ingress.node_labels
    yield Need("ingress", "ingress", None, ({"CPU": config.ingress.num_cpus},), count, count, labels)
    if config.controller.num_cpus:  # as it is by default, it takes no room
        yield Need("controller", "controller", None, ({"CPU": config.controller.num_cpus},), 1, 1, labels)


def _pools(config: PlatformConfig) -> Iterator[Need]:
    """One for each framework and runtime that models have which are shared, or have a standby."""
    resources = config.pools.resources
    least, most = _bounds(config.pools.autoscaling)
    living = [spec for spec in config.models if spec.shared or spec.autoscaling.standby]
    kinds = {(spec.framework, spec.runtime.model_dump_json()) for spec in living}
    for framework, _ in sorted(kinds):
        bundles, name = (_amounts(resources),), f"that of {framework}"
        yield Need("pools", name, resources.accelerator_type, bundles, most, least, resources.node_labels)


def _need_of(spec: ModelSpec, path: str) -> Need:
    resources = spec.resources
    workers = _count_workers(spec)
    each = {"GPU": resources.num_gpus / max(1, workers)} if resources.num_gpus else {}
    bundles = (_amounts(resources) | each, *([each] * (workers - 1)))
    least, most = _bounds(spec.autoscaling)
    return Need(path, spec.name, resources.accelerator_type, bundles, most, max(1, least), resources.node_labels)


def _bounds(scaling: Autoscaling) -> tuple[int, int]:
    """The largest least and the largest most of all hours."""
    bounds = scaling.to_bounds()
    least = max([bounds.min_replicas, *(window.min_replicas for window in bounds.windows)])
    return least, max([bounds.max_replicas, *(window.max_replicas for window in bounds.windows)])


def _amounts(resources: Resources) -> dict[str, float]:
    """All but the GPUs."""
    own: dict[str, float] = {"CPU": resources.num_cpus, **resources.custom}
    if resources.memory_mb is not None:
        own["memory"] = resources.memory_mb * 1024 * 1024
    return own


def _count_workers(spec: ModelSpec) -> int:
    """Processes of one replica that share its GPUs among them; 0 where it is one."""
    framework = get_framework(spec.framework)
    if not spec.resources.num_gpus or runs_elsewhere(framework, spec.uri):
        return 0
    try:
        path = Path(spec.uri) if is_remote(spec.uri) else resolve(spec.uri)
        return framework.workers(path, framework.options.model_validate(spec.options))
    except InvalidConfig:
        return 0  # where the artifact is can be told in the cluster only


def count_nodes(wanted: Iterable[tuple[Amounts, int]], node: Amounts) -> int:
    """How many nodes of a size hold so many of each of the bundles: the largest first, each where it first fits.

    Args:
        wanted: Bundles, each of which fits a node, and how often.
        node: What one node has.
    """
    rooms: list[tuple[Amounts, int]] = []  # what is free on a node, and on how many nodes so much is
    for bundle, count in sorted(wanted, key=lambda one: _share(one[0], node), reverse=True):
        left, filled = count, []
        for free, nodes in rooms:
            more, left = _fill(free, nodes, bundle, left)
            filled += more
        each = _how_often(bundle, node, left)
        if left:
            filled += _fill(node, math.ceil(left / each), bundle, left)[0]
        rooms = filled
    return sum(nodes for _, nodes in rooms)


def _fill(free: Amounts, nodes: int, bundle: Amounts, count: int) -> tuple[list[tuple[Amounts, int]], int]:
    """Nodes with the same room after they have taken what they can, and how many bundles are left."""
    each = _how_often(bundle, free, count)
    full = min(nodes, count // each) if each else 0
    rest = min(count - full * each, each) if full < nodes else 0
    parts = [(_without(free, bundle, each), full), (_without(free, bundle, rest), 1 if rest else 0)]
    parts.append((free, nodes - full - (1 if rest else 0)))
    return [(room, number) for room, number in parts if number], count - full * each - rest


def _how_often(bundle: Amounts, free: Amounts, most: int) -> int:
    # A tenth of a CPU has no exact number: ten of them fit one.
    return min((int(free.get(name, 0) / amount + 1e-9) for name, amount in bundle.items() if amount), default=most)


def _without(free: Amounts, bundle: Amounts, count: int) -> Amounts:
    return {name: free[name] - bundle.get(name, 0) * count for name in free}


def _share(bundle: Amounts, node: Amounts) -> float:
    return max((amount / node[name] for name, amount in bundle.items() if amount), default=0)
