# SPDX-License-Identifier: Apache-2.0
"""What the NetworkPolicies of an overlay let pods reach."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.kuberay.overlays import Overlay

OURS = {"matchLabels": {"app.kubernetes.io/part-of": "modelyard"}}


def _policy(*egress: dict[str, Any], types: tuple[str, ...] = ("Ingress", "Egress"), **selector: Any) -> dict[str, Any]:
    spec = {"podSelector": selector or OURS, "policyTypes": list(types), "egress": list(egress)}
    return {"kind": "NetworkPolicy", "spec": spec}


@pytest.mark.parametrize(
    ("policies", "lets"),
    [
        pytest.param([], True, id="no policy"),
        pytest.param([_policy(types=("Ingress",))], True, id="none for what leaves"),
        pytest.param([_policy()], False, id="nothing leaves"),
        pytest.param([_policy({"ports": [{"port": 53}]})], False, id="another port"),
        pytest.param([_policy({"ports": [{"port": 443}]})], True, id="this port"),
        pytest.param([_policy({"ports": [{"port": 400, "endPort": 500}]})], True, id="a range"),
        pytest.param([_policy({"ports": [{"port": 444, "endPort": 500}]})], False, id="another range"),
        pytest.param([_policy({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]})], True, id="all ports"),
        pytest.param([_policy({"to": [{"podSelector": OURS}]})], False, id="only to its own pods"),
        pytest.param([_policy(), _policy({}, matchLabels={"some": "pods"})], False, id="some pods only"),
    ],
)
def test_what_pods_may_reach(policies: list[dict[str, Any]], lets: bool) -> None:
    assert Overlay({}, {}, policies).lets_out(443) is lets
