# SPDX-License-Identifier: Apache-2.0
"""Whether a cluster could hold a replica at all."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.serve.placement import Need, find_misfit

NODES: list[dict[str, Any]] = [
    {"Alive": True, "Resources": {"CPU": 2.0, "memory": 8e9}, "Labels": {"zone": "a"}},
    {"Alive": True, "Resources": {"CPU": 8.0, "memory": 4e9}, "Labels": {"zone": "b"}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}, "Labels": {"zone": "c"}},
]


@pytest.mark.parametrize(
    ("resources", "labels", "misfit"),
    [
        ({"CPU": 2}, {}, ""),
        ({"CPU": 8}, {}, ""),
        ({"CPU": 9}, {}, "it needs CPU 9 on one node, the nodes have at most CPU 8"),
        ({"CPU": 1, "GPU": 0.5}, {}, "it needs GPU 0.5 on one node, the nodes have at most GPU 0"),
        (
            {"CPU": 4, "memory": 6e9},
            {},
            "it needs CPU 4, memory 6e+09 on one node, the nodes have at most CPU 8, memory 8e+09",
        ),
        ({"CPU": 2}, {"zone": "a"}, ""),
        ({"CPU": 4}, {"zone": "a"}, "it needs CPU 4 on one node, the nodes have at most CPU 2"),
        ({"CPU": 1}, {"zone": "c"}, "no node has the labels zone=c"),
        ({"CPU": 1}, {"zone": "!a"}, ""),
    ],
)
def test_what_no_node_could_hold_is_told(resources: dict[str, float], labels: dict[str, str], misfit: str) -> None:
    assert find_misfit([Need({"CPU": 0.1}, {}), Need(resources, labels)], NODES) == misfit
