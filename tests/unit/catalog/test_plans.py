# SPDX-License-Identifier: Apache-2.0
"""What putting a model would do: the very change, of which nothing is kept."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.admin import Action, Plan
from modelyard.catalog import Catalog, ModelEntry, Owner, VersionEntry
from modelyard.errors import Conflict
from modelyard.rollout import Rollout

STEPS = {"steps": [10, 100], "interval_s": 5}


def entry(digest: str = "d1", versions: tuple[VersionEntry, ...] = (), **spec: Any) -> ModelEntry:
    return ModelEntry("m", {"name": "m", **spec}, {"framework": "sklearn"}, digest, versions)


def put(catalog: Catalog, one: ModelEntry, owner: Owner = Owner.REGISTERED) -> None:
    catalog.put_model(one, owner=owner)


def plan(catalog: Catalog, one: ModelEntry, **more: Any) -> Plan:
    """The plan, which has left no trace."""
    before = catalog.list_models(), catalog.list_events(), catalog.list_revisions("m")
    try:
        return catalog.plan_model(one, owner=Owner.REGISTERED, **more)
    finally:
        assert (catalog.list_models(), catalog.list_events(), catalog.list_revisions("m")) == before


def test_a_new_model_would_be_created(catalog: Catalog) -> None:
    assert plan(catalog, entry()) == Plan("m", Action.CREATE, 1)


def test_a_model_that_is_so_already_would_not_be_touched(catalog: Catalog) -> None:
    put(catalog, entry(batching=1))
    assert plan(catalog, entry(batching=1)) == Plan("m", Action.NOTHING, 1, 1)


def test_settings_would_be_changed_in_place(catalog: Catalog) -> None:
    put(catalog, entry(batching=1))
    assert plan(catalog, entry(batching=2)) == Plan("m", Action.CHANGE, 1, 1, {"batching": [1, 2]})


def test_another_digest_would_be_the_next_revision_on_its_way(catalog: Catalog) -> None:
    put(catalog, entry(rollout=STEPS))
    found = plan(catalog, entry("d2", rollout=STEPS))
    assert found == Plan("m", Action.REVISE, 2, 1, {}, Rollout(2, (10, 100), 5, base={1: 100.0}))


def test_secrets_are_in_no_plan(catalog: Catalog) -> None:
    put(catalog, entry(runtime={"env_vars": {"TOKEN": "hunter2"}}))
    assert plan(catalog, entry("d2", runtime={"env_vars": {"TOKEN": "hunter3"}})).changed == {"runtime": []}


def test_an_unloaded_model_would_be_loaded(catalog: Catalog) -> None:
    put(catalog, entry())
    catalog.unload_model("m")
    assert plan(catalog, entry()) == Plan("m", Action.LOAD, 1, 2)
    assert plan(catalog, entry("d2")) == Plan("m", Action.REVISE, 2, 2)


def test_a_failed_model_would_be_tried_again(catalog: Catalog) -> None:
    put(catalog, entry())
    assert plan(catalog, entry(), again=True).action is Action.LOAD


def test_a_removed_model_would_come_back(catalog: Catalog) -> None:
    put(catalog, entry())
    catalog.remove_model("m")
    assert plan(catalog, entry()) == Plan("m", Action.LOAD, 1, 2)
    assert plan(catalog, entry("d2")) == Plan("m", Action.REVISE, 2, 2)


def test_a_version_that_appears_would_be_revised(catalog: Catalog) -> None:
    versions = tuple(VersionEntry(number, {}, f"v{number}") for number in (3, 7))
    put(catalog, entry("v3", versions[:1]))
    found = plan(catalog, entry("v7", versions))
    assert (found.action, found.revision, found.rollout) == (Action.REVISE, 7, None)


def test_what_would_be_refused_is(catalog: Catalog) -> None:
    put(catalog, entry(), Owner.DECLARED)
    with pytest.raises(Conflict, match="is declared in the configuration file"):
        plan(catalog, entry())
    with pytest.raises(Conflict, match="expected generation 0, got 1"):
        catalog.plan_model(entry(), owner=Owner.DECLARED, expected_generation=0)


def test_the_next_event_follows_the_last_one_that_is_kept(catalog: Catalog) -> None:
    plan(catalog, entry())
    put(catalog, entry())
    assert [event.kind for event in catalog.list_events()] == ["created"]
    assert [revision.number for revision in catalog.list_revisions("m")] == [1]
