# SPDX-License-Identifier: Apache-2.0
"""Ray's autoscaler with a group of nodes from zero to two, on this machine: its fake provider, on ports of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

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


def write_autoscaling(path: Path, gcs: str) -> Path:
    """Writes what the head's autoscaler reads, and returns where.

    Args:
        path: The file.
        gcs: Where the head keeps the state.
    """
    spares = 2
    node = {"environments": [_make_environment(path.parent, number) for number in range(spares)]}
    document = {
        "cluster_name": "drills",
        "max_workers": spares,
        "idle_timeout_minutes": _IDLE_MINUTES,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": f"{SpareNodes.__module__}.{SpareNodes.__name__}",
            "gcs_address": gcs,
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
                "max_workers": spares,
            },
        },
        "head_node_type": _HEAD,
    }
    path.write_text(yaml.safe_dump(document))
    return path


def _make_environment(folder: Path, number: int) -> dict[str, str]:
    """What one of them has otherwise than the head, in whose network it is: ports, and a folder of temporary files."""
    temporary = folder / f"spare-{number}"
    temporary.mkdir(exist_ok=True)
    first = 20_000 + 1_000 * number
    ports = {
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": 8001 + number,
        "RAY_SERVE_WORKER_PROXY_GRPC_PORT": 9001 + number,
        "RAY_SERVE_HAPROXY_STATS_PORT": 8405 + number,
        "RAY_SERVE_HAPROXY_METRICS_PORT": 9102 + number,
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8511 + number,
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": 8611 + number,
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": first,
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": first + 250,
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": first + 300,
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": first + 550,
    }
    return {"TMPDIR": str(temporary), **{name: str(port) for name, port in ports.items()}}


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
