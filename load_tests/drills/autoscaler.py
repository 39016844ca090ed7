# SPDX-License-Identifier: Apache-2.0
"""Ray's autoscaler with a group of nodes from zero to two, on this machine: its fake provider, on ports of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

from load_tests.drills.nodes import Node

SPARES: Final = (8, 9)
"""Their numbers after that of the head."""
RESOURCE: Final = "spare"
"""What only nodes of this group have."""
_IDLE_MINUTES: Final = 0.25
_COMMANDS: Final = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
)
"""Lists that Ray's autoscaler wants to find; there is nothing to do on these nodes."""
_HEAD: Final = "ray.head.default"


def write_autoscaling(path: Path, spares: Sequence[Node]) -> Path:
    """Writes what the head's autoscaler reads, and returns where.

    Args:
        path: The file.
        spares: What the nodes of the group are.
    """
    node = {"environments": [spare.own_environment() for spare in spares]}
    document = {
        "cluster_name": "drills",
        "max_workers": len(spares),
        "idle_timeout_minutes": _IDLE_MINUTES,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": f"{SpareNodes.__module__}.{SpareNodes.__name__}",
            "gcs_address": spares[0].gcs,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "file_mounts": {},
        **{name: [] for name in _COMMANDS},
        "available_node_types": {
            _HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            RESOURCE: {
                # No CPU: nothing else is to have it started, or to be on it when it goes.
                "resources": {"CPU": 0, RESOURCE: 1, "object_store_memory": 100_000_000},
                "node_config": node,
                "min_workers": 0,
                "max_workers": len(spares),
            },
        },
        "head_node_type": _HEAD,
    }
    path.write_text(yaml.safe_dump(document))
    return path


class SpareNodes(FakeMultiNodeProvider):  # type: ignore[misc]  # Ray gives no types
    """Starts nodes as children of the head's autoscaler, with another environment than the head's."""

    def __init__(self, *args: Any) -> None:
        os.environ["RAY_FAKE_CLUSTER"] = "1"  # which it wants, of its own process
        super().__init__(*args)
        self._numbers: dict[str, int] = {}  # by id of a node, which of the environments it has

    def _create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: Any, count: int, resources: Any, labels: Any
    ) -> None:
        """One node; see the base class, which calls it for each."""
        taken = {number for node, number in self._numbers.items() if node in self._nodes}
        environments = node_config["environments"]
        number = next(number for number in range(len(environments)) if number not in taken)
        os.environ.pop("RAY_REDIS_ADDRESS", None)  # which only heads have
        os.environ.update(environments[number])
        super()._create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
        self._numbers[next(reversed(self._nodes))] = number
