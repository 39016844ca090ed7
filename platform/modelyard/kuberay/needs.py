# SPDX-License-Identifier: Apache-2.0
"""What the models of a platform need of a cluster, and how many workers that fills."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modelyard.config import ModelSpec, PlatformConfig
from modelyard.errors import InvalidConfig
from modelyard.model import get_framework, runs_elsewhere
from modelyard.store import resolve

Amounts = Mapping[str, float]
"""Of each of Ray's resources so much: ``CPU``, ``GPU``, ``memory`` in bytes, and a cluster's own."""


@dataclass(frozen=True, slots=True)
class Need:
    """What replicas of one kind take.

    Attributes:
        path: Of what they are, in the configuration.
        name: Of the model; ``ingress`` for the ingress.
        accelerator_type: Which nodes they have to be on; None for any.
        bundles: What one replica takes, each on one node; several where it may spread over as many.
        replicas: How many there may be.
        least: How many there are at least.
    """

    path: str
    name: str
    accelerator_type: str | None
    bundles: tuple[Amounts, ...]
    replicas: int
    least: int

    def total(self, name: str) -> float:
        """How much of a resource one replica takes."""
        return sum(bundle.get(name, 0) for bundle in self.bundles)

    @property
    def is_accelerated(self) -> bool:
        """It has to be where GPUs are."""
        return self.accelerator_type is not None or self.total("GPU") > 0


def find_needs(config: PlatformConfig) -> tuple[Need, ...]:
    """Of the ingress and of each declared model, in their order."""
    count = config.ingress.num_replicas
    ingress = Need("ingress", "ingress", None, ({"CPU": config.ingress.num_cpus},), count, count)
    return (ingress, *(_need_of(spec, f"models[{index}]") for index, spec in enumerate(config.models)))


def _need_of(spec: ModelSpec, path: str) -> Need:
    resources = spec.resources
    own: dict[str, float] = {"CPU": resources.num_cpus, **resources.custom}
    if resources.memory_mb is not None:
        own["memory"] = resources.memory_mb * 1024 * 1024
    workers = _count_workers(spec)
    each = {"GPU": resources.num_gpus / max(1, workers)} if resources.num_gpus else {}
    bundles = (own | each, *([each] * (workers - 1)))
    return Need(
        path,
        spec.name,
        resources.accelerator_type,
        bundles,
        spec.autoscaling.max_replicas,
        max(1, spec.autoscaling.min_replicas),
    )


def _count_workers(spec: ModelSpec) -> int:
    """Processes of one replica that share its GPUs among them; 0 where it is one."""
    framework = get_framework(spec.framework)
    if not spec.resources.num_gpus or runs_elsewhere(framework, spec.uri):
        return 0
    try:
        return framework.workers(resolve(spec.uri), framework.options.model_validate(spec.options))
    except InvalidConfig:
        return 0  # where the artifact is can be told in the cluster only


def fits(amounts: Amounts, node: Amounts) -> bool:
    """Whether a node with nothing else on it has room."""
    return all(amount <= node.get(name, 0) for name, amount in amounts.items())


def count_nodes(bundles: Iterable[Amounts], node: Amounts) -> int:
    """How many nodes of a size hold the bundles, each of which fits: the largest first, each where it first fits."""
    free: list[dict[str, float]] = []
    shares = [(max((amount / node[name] for name, amount in one.items() if amount), default=0), one) for one in bundles]
    for _, bundle in sorted(shares, key=lambda pair: pair[0], reverse=True):
        room = next((room for room in free if fits(bundle, room)), None)
        if room is None:
            room = dict(node)
            free.append(room)
        for name, amount in bundle.items():
            room[name] = round(room.get(name, 0) - amount, 9)
    return len(free)
