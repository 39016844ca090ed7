# SPDX-License-Identifier: Apache-2.0
"""The choice of a replica for a call by handle, without Serve around it; the drills and test_nodes have the rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from modelyard.serve.router import NamedReplicaRouter


@pytest.fixture
def router() -> NamedReplicaRouter:
    """A router that has not been connected to anything."""
    return NamedReplicaRouter.__new__(NamedReplicaRouter)


def _replicas(*names: str) -> list[Any]:
    return [SimpleNamespace(replica_id=SimpleNamespace(unique_id=name)) for name in names]


def _pending(name: str) -> Any:
    return SimpleNamespace(
        metadata=SimpleNamespace(session_id=name), routing_context=SimpleNamespace(should_backoff=False)
    )


def _names(groups: list[list[Any]]) -> list[list[str]]:
    return [[one.replica_id.unique_id for one in group] for group in groups]


async def test_the_named_replica_is_tried_first_and_then_two_of_all(router):
    pending = _pending("b")
    first, then = _names(await router.choose_replicas(_replicas("a", "b", "c"), pending))
    assert first == ["b"]
    assert len(set(then)) == 2
    assert pending.routing_context.should_backoff


@pytest.mark.parametrize("name", ["", "gone"])
async def test_without_such_a_replica_two_of_all_are_tried(router, name):
    seen = set()
    for _ in range(200):
        first, then = _names(await router.choose_replicas(_replicas("a", "b", "c"), _pending(name)))
        assert first == []
        seen.add(frozenset(then))
    assert seen == {frozenset("ab"), frozenset("ac"), frozenset("bc")}


async def test_few_replicas_are_enough(router):
    assert _names(await router.choose_replicas(_replicas("a"), _pending(""))) == [[], ["a"]]
    assert _names(await router.choose_replicas([], _pending("a"))) == [[], []]
    assert _names(await router.choose_replicas(_replicas("a"), None)) == [["a"]]
