# SPDX-License-Identifier: Apache-2.0
"""Weights, labels, rollouts and shadows in the catalog."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from modelyard.catalog import Catalog, ModelEntry, ModelRecord, Owner, VersionEntry
from modelyard.errors import Conflict, InvalidConfig, ModelNotFound
from modelyard.rollout import Gates, Rollout, RolloutState, Shadow

STEPS = {"steps": [1, 10, 100], "interval_s": 5, "min_requests": 20, "gates": {"error_rate": 0.01}}


def put(catalog: Catalog, digest: str, **spec: Any) -> ModelRecord:
    entry = ModelEntry("m", {"name": "m", "digest": digest, **spec}, {"framework": digest}, digest)
    return catalog.put_model(entry, owner=Owner.REGISTERED, actor="ann")


def promoted(catalog: Catalog, count: int) -> ModelRecord:
    """A model whose revisions have each had all traffic, one after the other."""
    record = put(catalog, "d1")
    for number in range(2, count + 1):
        put(catalog, f"d{number}")
        record = catalog.promote("m", number, is_ready=True)
    return record


def kinds(catalog: Catalog) -> list[str]:
    return [event.kind for event in reversed(catalog.list_events("m"))]


@pytest.mark.parametrize(
    ("weights", "stable", "back"),
    [({1: 90, 2: 10}, 1, 1), ({2: 90, 3: 10}, 2, 2), ({2: 50, 3: 50}, 2, 2), ({3: 100}, 3, 2), ({1: 60, 3: 40}, 2, 2)],
)
def test_weights_set_by_hand_are_rolled_back_to_who_had_all_traffic_last(
    catalog: Catalog, weights: dict[int, float], stable: int, back: int
) -> None:
    promoted(catalog, stable)
    for number in range(stable + 1, 4):
        put(catalog, f"d{number}", rollout={"steps": []})
    record = catalog.set_traffic("m", weights)
    assert record.labels["stable"] == stable
    assert catalog.find_rollback("m") == back
    assert catalog.roll_back("m", back, is_ready=True).traffic == {back: 100}


def test_a_rollout_is_aborted_and_never_something_before_it(catalog: Catalog) -> None:
    promoted(catalog, 2)
    put(catalog, "d3", rollout=STEPS)
    aborted = catalog.abort("m", actor="ann", message="wrong")
    assert aborted.rollout is not None
    assert (aborted.rollout.state, aborted.rollout.reason, aborted.traffic) == ("rolled_back", "wrong", {2: 100})
    with pytest.raises(Conflict, match="no rollout on its way"):
        catalog.abort("m")
    assert catalog.get_model("m").traffic == {2: 100}


def running(catalog: Catalog, step: int = 0) -> ModelRecord:
    """A model of two revisions, whose rollout is at a step."""
    promoted(catalog, 1)
    record = put(catalog, "d2", rollout=STEPS)
    assert record.rollout is not None
    return catalog.advance_rollout("m", replace(record.rollout, state=RolloutState.RUNNING, step=step))


def test_what_a_gate_has_taken_back_is_not_promoted_as_the_rollout_on_its_way(catalog: Catalog) -> None:
    running(catalog)
    assert catalog.promote("m", 2, is_on_its_way=True, is_ready=True).traffic == {2: 100.0}
    put(catalog, "d3", rollout=STEPS)
    catalog.abort("m", message="a gate did not hold")
    with pytest.raises(Conflict, match="the rollout of revision 3 has ended meanwhile"):
        catalog.promote("m", 3, is_on_its_way=True, is_ready=True)
    put(catalog, "d4", rollout=STEPS)
    with pytest.raises(Conflict, match="the rollout of revision 3 has ended meanwhile"):
        catalog.promote("m", 3, is_on_its_way=True, is_ready=True)
    assert catalog.get_model("m").traffic == {2: 100.0, 4: 0.0}
    assert catalog.promote("m", 3, is_ready=True).traffic == {3: 100.0}


def test_a_rollout_is_paused_and_resumed_at_the_step_it_has_come_to(catalog: Catalog) -> None:
    running(catalog, step=1)
    paused = catalog.pause("m", message="look")
    assert paused.rollout is not None
    assert (paused.rollout.state, paused.rollout.reason, paused.traffic) == ("paused", "look", {1: 90.0, 2: 10.0})
    with pytest.raises(Conflict, match="expected a rollout that is waiting or running, got one that is paused"):
        catalog.pause("m")
    resumed = catalog.resume("m")
    assert resumed.rollout is not None
    assert (resumed.rollout.state, resumed.rollout.step, resumed.rollout.reason) == ("running", 1, "")
    with pytest.raises(Conflict, match="expected a rollout that is paused, got one that is running"):
        catalog.resume("m")
    assert kinds(catalog)[-2:] == ["paused", "resumed"]


def test_a_rollout_that_waits_is_paused_too_and_waits_again(catalog: Catalog) -> None:
    promoted(catalog, 1)
    waiting = put(catalog, "d2", rollout=STEPS)
    paused = catalog.pause("m")
    assert paused.rollout is not None
    assert (paused.rollout.state, paused.traffic) == ("paused", waiting.traffic)
    assert catalog.resume("m").rollout == waiting.rollout
    assert kinds(catalog)[-2:] == ["paused", "resumed"]


def test_a_model_without_a_rollout_is_not_paused(catalog: Catalog) -> None:
    put(catalog, "d1")
    with pytest.raises(Conflict, match="expected a rollout that is waiting or running, got none"):
        catalog.pause("m")


CHANGES: dict[str, Callable[[Catalog, int], ModelRecord]] = {
    "load": lambda catalog, expected: catalog.load_model(
        ModelEntry("m", {}, {"framework": "d3"}, "d3"), expected_generation=expected
    ),
    "unload": lambda catalog, expected: catalog.unload_model("m", expected_generation=expected),
    "remove": lambda catalog, expected: catalog.remove_model("m", expected_generation=expected),
    "traffic": lambda catalog, expected: catalog.set_traffic("m", shadow=Shadow(1), expected_generation=expected),
    "label": lambda catalog, expected: catalog.set_label("m", "own", 1, expected_generation=expected),
    "rollout": lambda catalog, expected: catalog.begin_rollout("m", Rollout(1), expected_generation=expected),
    "promote": lambda catalog, expected: catalog.promote("m", 1, expected_generation=expected),
    "rollback": lambda catalog, expected: catalog.roll_back("m", 1, expected_generation=expected),
    "abort": lambda catalog, expected: catalog.abort("m", expected_generation=expected),
    "pause": lambda catalog, expected: catalog.pause("m", expected_generation=expected),
    "resume": lambda catalog, expected: catalog.resume("m", expected_generation=expected),
}


@pytest.mark.parametrize("verb", CHANGES)
def test_a_change_may_be_for_one_generation(catalog: Catalog, verb: str) -> None:
    record = running(catalog)
    if verb == "resume":
        record = catalog.pause("m")
    before = catalog.list_events()
    for expected in (record.generation - 1, record.generation + 1, 0):
        with pytest.raises(Conflict, match=f"expected generation {expected}, got {record.generation}"):
            CHANGES[verb](catalog, expected)
    assert catalog.list_events() == before
    assert CHANGES[verb](catalog, record.generation).generation == record.generation + 1


@pytest.mark.parametrize("verb", ["unload", "remove"])
def test_a_change_that_was_made_already_is_of_an_older_generation(catalog: Catalog, verb: str) -> None:
    expected = promoted(catalog, 1).generation
    done = CHANGES[verb](catalog, expected)
    with pytest.raises(Conflict, match="was changed meanwhile"):
        CHANGES[verb](catalog, expected)
    assert CHANGES[verb](catalog, done.generation) == done


def test_a_new_revision_waits_without_traffic_and_then_has_all(catalog: Catalog) -> None:
    put(catalog, "d1")
    waiting = put(catalog, "d2")
    assert waiting.rollout == Rollout(2, base={1: 100.0})
    done = catalog.advance_rollout("m", waiting.rollout.promoted(), expected_generation=waiting.generation)
    assert (done.traffic, done.labels) == ({2: 100.0}, {"stable": 2})
    assert [one.number for one in done.revisions] == [2]
    assert done.active.promoted_at is not None
    assert kinds(catalog) == ["created", "revised", "promoted"]


def test_the_spec_says_how_a_new_revision_gets_its_traffic(catalog: Catalog) -> None:
    put(catalog, "d1", rollout=STEPS)
    record = put(catalog, "d2", rollout=STEPS)
    expected = Rollout(2, (1, 10, 100), 5, 20, Gates(error_rate=0.01), base={1: 100.0})
    assert record.rollout == expected
    assert (record.traffic, record.labels) == ({1: 100.0, 2: 0.0}, {"canary": 2, "stable": 1})
    step = replace(expected, state=RolloutState.RUNNING, step=1)
    assert catalog.advance_rollout("m", step).traffic == {1: 90.0, 2: 10.0}
    assert kinds(catalog) == ["created", "revised", "step"]


def test_what_a_rollout_does_not_get_is_shared_as_before(catalog: Catalog) -> None:
    promoted(catalog, 2)
    catalog.set_traffic("m", {1: 20, 2: 80})
    record = put(catalog, "d3", rollout=STEPS)
    assert record.rollout is not None
    step = replace(record.rollout, state=RolloutState.RUNNING, step=1)
    assert catalog.advance_rollout("m", step).traffic == {1: 18.0, 2: 72.0, 3: 10.0}
    assert catalog.roll_back("m").traffic == {1: 20.0, 2: 80.0}


def test_another_revision_replaces_a_rollout_on_its_way(catalog: Catalog) -> None:
    put(catalog, "d1", rollout=STEPS)
    record = put(catalog, "d2", rollout=STEPS)
    assert record.rollout is not None
    catalog.advance_rollout("m", replace(record.rollout, state=RolloutState.RUNNING, step=1))
    record = put(catalog, "d3", rollout=STEPS)
    assert record.traffic == {1: 100.0, 3: 0.0}
    with pytest.raises(Conflict, match="no rollout of revision 2"):
        catalog.advance_rollout("m", Rollout(2))


def test_what_was_taken_back_is_not_a_new_revision_when_it_is_put_again(catalog: Catalog) -> None:
    """The configuration file still has it, at the next start too."""
    put(catalog, "d1")
    put(catalog, "d2")
    back = catalog.roll_back("m", message="wrong labels")
    assert (back.traffic, back.rollout and back.rollout.state) == ({1: 100.0}, RolloutState.ROLLED_BACK)
    assert back.rollout is not None
    assert back.rollout.reason == "wrong labels"
    assert put(catalog, "d2") == back
    assert kinds(catalog) == ["created", "revised", "rolled_back"]


def test_going_back_to_the_old_content_while_the_new_one_waits(catalog: Catalog) -> None:
    put(catalog, "d1")
    put(catalog, "d2")
    record = put(catalog, "d1")
    assert record.rollout == Rollout(3, base={1: 100.0})


def test_rollback_returns_to_what_had_all_traffic_before(catalog: Catalog) -> None:
    promoted(catalog, 3)
    assert catalog.find_rollback("m") == 2
    waiting = catalog.roll_back("m")
    assert (waiting.traffic, waiting.rollout) == ({2: 0.0, 3: 100.0}, Rollout(2, base={3: 100.0}))
    assert waiting.rollout is not None
    catalog.advance_rollout("m", waiting.rollout.promoted())
    assert catalog.roll_back("m", 1, is_ready=True).traffic == {1: 100.0}
    assert catalog.find_rollback("m") == 2


def test_there_may_be_nothing_to_return_to_or_to_promote(catalog: Catalog) -> None:
    put(catalog, "d1")
    with pytest.raises(Conflict, match="no earlier revision"):
        catalog.roll_back("m")
    with pytest.raises(Conflict, match="no rollout on its way"):
        catalog.promote("m")
    with pytest.raises(Conflict, match="has all traffic already"):
        catalog.promote("m", 1)
    with pytest.raises(ModelNotFound):
        catalog.promote("m", 7)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({1: 90, 2: 9}, "weights: expected 100 in sum, got 99"),
        ({1: 101, 2: -1}, "weights.2: expected 0 to 100 in steps of 0.1, got -1"),
        ({1: 99.95, 2: 0.05}, "weights.2: expected 0 to 100 in steps of 0.1, got 0.05"),
    ],
)
def test_weights_are_tenths_of_a_percent_and_100_in_sum(
    catalog: Catalog, weights: dict[int, float], reason: str
) -> None:
    before = promoted(catalog, 2)
    with pytest.raises(InvalidConfig) as refused:
        catalog.set_traffic("m", weights)
    assert reason in refused.value.problems
    assert catalog.get_model("m") == before


def test_traffic_is_set_by_hand(catalog: Catalog) -> None:
    before = promoted(catalog, 2)
    record = catalog.set_traffic("m", {1: 0.1, 2: 99.9}, message="a look", expected_generation=before.generation)
    assert (record.traffic, record.labels) == ({1: 0.1, 2: 99.9}, {"stable": 2})
    assert catalog.set_traffic("m", {1: 100, 2: 0}).labels == {"stable": 1}
    with pytest.raises(ModelNotFound):
        catalog.set_traffic("m", {1: 50, 7: 50})
    with pytest.raises(Conflict, match="changed meanwhile"):
        catalog.set_traffic("m", {2: 100}, expected_generation=before.generation)
    put(catalog, "d3")
    with pytest.raises(Conflict, match="a rollout is on its way"):
        catalog.set_traffic("m", {2: 100})


def test_a_dark_revision_gets_its_traffic_by_hand(catalog: Catalog) -> None:
    put(catalog, "d1", rollout={"steps": []})
    dark = put(catalog, "d2", rollout={"steps": []})
    assert (dark.traffic, dark.labels) == ({1: 100.0, 2: 0.0}, {"canary": 2, "stable": 1})
    record = catalog.set_traffic("m", {1: 90, 2: 10})
    assert (record.rollout, record.labels) == (None, {"canary": 2, "stable": 1})
    assert catalog.set_traffic("m", {2: 100}).labels == {"stable": 2}


def test_a_shadow_stays_until_it_is_ended(catalog: Catalog) -> None:
    promoted(catalog, 2)
    shadow = Shadow(1, 10.0, 0.01)
    assert catalog.set_traffic("m", shadow=shadow).shadow == shadow
    record = catalog.set_traffic("m", {2: 100})
    assert (record.shadow, record.labels) == (shadow, {"shadow": 1, "stable": 2})
    assert [one.number for one in record.revisions] == [1, 2], "it runs for that"
    record = catalog.set_traffic("m", keep_shadow=False)
    assert (record.shadow, [one.number for one in record.revisions]) == (None, [2])
    with pytest.raises(ModelNotFound):
        catalog.set_traffic("m", shadow=Shadow(7))


def test_labels_of_ones_own(catalog: Catalog) -> None:
    promoted(catalog, 2)
    record = catalog.set_label("m", "audit", 1)
    assert (record.labels, [one.number for one in record.revisions]) == ({"audit": 1, "stable": 2}, [1, 2])
    assert catalog.set_label("m", "audit", 1) == record
    assert catalog.set_label("m", "audit", None).labels == {"stable": 2}
    with pytest.raises(ModelNotFound):
        catalog.set_label("m", "audit", None)
    with pytest.raises(InvalidConfig, match='got "stable", which follows the traffic'):
        catalog.set_label("m", "stable", 1)


def test_nothing_is_sent_to_what_is_unloaded(catalog: Catalog) -> None:
    promoted(catalog, 2)
    catalog.unload_model("m")
    for change in (
        lambda: catalog.set_traffic("m", {1: 100}),
        lambda: catalog.promote("m", 1),
        lambda: catalog.roll_back("m"),
        lambda: catalog.set_label("m", "own", 1),
    ):
        with pytest.raises(Conflict, match="is unloaded: load it first"):
            change()
    assert put(catalog, "d3").traffic == {3: 100.0}


def versions(catalog: Catalog, *numbers: int, labels: Mapping[str, int] | None = None, **spec: Any) -> ModelRecord:
    entries = tuple(VersionEntry(number, {}, f"v{number}") for number in numbers)
    whole = {"version_policy": {"all": True}, **spec}
    entry = ModelEntry("m", whole, {}, entries[-1].digest, entries, labels or {})
    (record,) = catalog.sync_declared([entry])
    return record


def test_versions_of_a_folder_run_side_by_side(catalog: Catalog) -> None:
    versions(catalog, 1, 2)
    record = versions(catalog, 1, 2, 3)
    assert (record.traffic, record.rollout) == ({1: 0.0, 2: 0.0, 3: 100.0}, None)


def test_versions_keep_the_traffic_that_they_were_given(catalog: Catalog) -> None:
    versions(catalog, 1, 2, 3)
    record = catalog.set_traffic("m", {2: 50, 3: 50})
    assert record.traffic == {1: 0.0, 2: 50.0, 3: 50.0}, "all of them are served"
    assert versions(catalog, 1, 2, 3) == record
    assert versions(catalog, 2, 3).traffic == {2: 50.0, 3: 50.0}, "an old folder was deleted"
    assert versions(catalog, 2, 3, 4).traffic == {2: 0.0, 3: 0.0, 4: 100.0}, "a new one came"


def test_a_version_that_was_taken_back_stays_so(catalog: Catalog) -> None:
    versions(catalog, 1, 2)
    versions(catalog, 1, 2, 3)
    record = catalog.roll_back("m", is_ready=True)
    assert (record.traffic, record.labels) == ({1: 0.0, 2: 100.0, 3: 0.0}, {"stable": 2})
    assert versions(catalog, 1, 2, 3) == record
    assert versions(catalog, 2, 3).traffic == {2: 100.0, 3: 0.0}


def test_only_versions_that_are_served_get_traffic(catalog: Catalog) -> None:
    versions(catalog, 1)
    versions(catalog, 2)
    for change in (
        lambda: catalog.roll_back("m", 1),
        lambda: catalog.promote("m", 1),
        lambda: catalog.set_traffic("m", {1: 100}),
    ):
        with pytest.raises(Conflict, match="version 1 is not served"):
            change()
    with pytest.raises(Conflict, match="no earlier revision"):
        catalog.roll_back("m")


def test_labels_of_a_version_policy_stay_where_it_points(catalog: Catalog) -> None:
    policy = {"all": True, "labels": {"stable": 1, "canary": 2}}
    versions(catalog, 1, 2, 3, version_policy=policy, labels=policy["labels"])
    record = catalog.promote("m", 2, is_ready=True)
    assert record.labels == {"canary": 2, "stable": 1}
    record = catalog.set_traffic("m", {1: 100})
    assert record.labels == {"canary": 2, "stable": 1}
    assert versions(catalog, 1, 2, 3, version_policy=policy, labels=policy["labels"]) == record
    without = versions(catalog, 1, 2, 3)
    assert (without.labels, without.traffic) == ({"stable": 1}, {1: 100.0, 2: 0.0, 3: 0.0})
    with pytest.raises(Conflict, match="is a folder of versions"):
        catalog.set_label("m", "own", 1)


def test_loading_something_else_ends_a_shadow_and_keeps_own_labels(catalog: Catalog) -> None:
    promoted(catalog, 2)
    catalog.set_traffic("m", shadow=Shadow(1))
    catalog.set_label("m", "audit", 1)
    catalog.unload_model("m")
    record = put(catalog, "d3")
    assert (record.traffic, record.shadow, record.labels) == ({3: 100.0}, None, {"audit": 1, "stable": 3})


def test_events_after_one(catalog: Catalog) -> None:
    promoted(catalog, 2)
    first, *_ = reversed(catalog.list_events("m"))
    assert [event.kind for event in catalog.list_events("m", after=first.id)] == ["revised", "rollout", "promoted"]
    assert [event.kind for event in catalog.list_events("m", 1, after=first.id)] == ["revised"]
