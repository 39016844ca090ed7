# SPDX-License-Identifier: Apache-2.0
"""What operators want of the traffic, while something else changes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.catalog import Catalog, ModelEntry, ModelRecord, Owner
from modelyard.errors import Conflict
from modelyard.rollout import Rollout, RolloutState
from modelyard.serve.rollouts import Traffic

STEPS = {"steps": [10, 50, 100], "gates": {"error_rate": 0.01, "p99_ms": 50, "shadow_mismatch": None}}


class Busy(Catalog):
    """In which somebody changes a model between the moment it is read and what follows from it."""

    meanwhile: Callable[[], object] | None = None

    def get_model(self, name: str, expected_generation: int | None = None) -> ModelRecord:
        record = super().get_model(name, expected_generation)
        change, self.meanwhile = self.meanwhile, None
        if change is not None:
            change()
        return record


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Busy]:
    """A model of three revisions: the second has the traffic, the third is at its first step."""
    with Busy(f"sqlite:///{tmp_path}/catalog.db") as opened:
        for number in (1, 2, 3):
            spec = {"name": "m", "number": number, "rollout": STEPS}
            entry = ModelEntry("m", spec, {"framework": str(number)}, f"d{number}")
            record = opened.put_model(entry, owner=Owner.REGISTERED)
            if number == 2:
                record = opened.promote("m", 2, is_ready=True)
        opened.set_label("m", "tested", 1)
        assert record.rollout is not None
        opened.advance_rollout("m", replace(record.rollout, state=RolloutState.RUNNING, step=0))
        yield opened


@pytest.fixture
def tried() -> list[tuple[str, int]]:
    """Which revisions are tried again."""
    return []


@pytest.fixture
def traffic(catalog: Busy, tried: list[tuple[str, int]]) -> Traffic:
    return Traffic(catalog, is_ready=lambda *_: True, try_again=lambda *revision: tried.append(revision))


@pytest.mark.parametrize("verb", ["abort", "roll_back"])
def test_what_a_rollout_is_taken_back_to_is_tried_again(
    traffic: Traffic, tried: list[tuple[str, int]], verb: str
) -> None:
    if verb == "abort":
        traffic.abort("m", "", "")
    else:
        traffic.roll_back("m", None, "", "")
    assert tried == [("m", 2)]


def rollout_of(record: ModelRecord) -> Rollout:
    assert record.rollout is not None
    return record.rollout


def step_on(catalog: Catalog) -> ModelRecord:
    """What the controller does."""
    rollout = rollout_of(catalog.get_model("m"))
    return catalog.advance_rollout("m", replace(rollout, step=rollout.step + 1))


def test_a_gate_that_does_not_hold_wins_over_a_promotion(catalog: Busy, traffic: Traffic) -> None:
    catalog.meanwhile = lambda: catalog.abort("m", actor="rollout", message="2 of 31 requests failed")
    with pytest.raises(Conflict, match="the rollout of revision 3 has ended meanwhile"):
        traffic.promote("m", None, "ann", "")
    assert catalog.get_model("m").traffic == {2: 100.0}


def test_a_step_meanwhile_does_not_keep_a_rollout_from_being_promoted(catalog: Busy, traffic: Traffic) -> None:
    catalog.meanwhile = lambda: step_on(catalog)
    assert traffic.promote("m", None, "ann", "").traffic == {3: 100.0}


def test_a_step_meanwhile_does_not_keep_a_rollout_from_being_paused(catalog: Busy, traffic: Traffic) -> None:
    catalog.meanwhile = lambda: step_on(catalog)
    paused = rollout_of(traffic.pause("m", "ann", "look"))
    assert (paused.state, paused.reason) == (RolloutState.PAUSED, "look")
    catalog.meanwhile = lambda: catalog.set_label("m", "tested", 2)
    assert rollout_of(traffic.resume("m", "ann", "")).state is RolloutState.RUNNING


VERBS: dict[str, Callable[..., ModelRecord]] = {
    "label": lambda traffic, revision, *more: traffic.set_label("m", "mine", revision, "ann", "", *more),
    "rollout": lambda traffic, revision, *more: traffic.roll_out("m", {"to": revision}, "ann", "", *more),
    "promote": lambda traffic, revision, *more: traffic.promote("m", revision, "ann", "", *more),
    "rollback": lambda traffic, revision, *more: traffic.roll_back("m", revision, "ann", "", *more),
    "traffic": lambda traffic, revision, *more: traffic.set_traffic(
        "m", {"shadow": {"revision": revision}}, "ann", "", *more
    ),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_label_that_points_elsewhere_by_now_changes_nothing(catalog: Busy, traffic: Traffic, verb) -> None:
    catalog.meanwhile = lambda: catalog.set_label("m", "tested", 2)
    before = catalog.list_events()
    with pytest.raises(Conflict, match="was changed meanwhile"):
        verb(traffic, "tested")
    assert len(catalog.list_events()) == len(before) + 1
    assert verb(traffic, "tested").generation > 0


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_number_is_what_it_is_whatever_changes_meanwhile(catalog: Busy, traffic: Traffic, verb) -> None:
    catalog.meanwhile = lambda: catalog.set_label("m", "tested", 2)
    verb(traffic, "1")


@pytest.mark.parametrize("revision", ["1", "tested"])
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_change_is_for_the_generation_that_is_named(
    catalog: Busy, traffic: Traffic, tried: list[tuple[str, int]], verb, revision: str
) -> None:
    generation = catalog.get_model("m").generation
    with pytest.raises(Conflict, match=f"expected generation {generation - 1}, got {generation}"):
        verb(traffic, revision, generation - 1)
    assert tried == []  # nothing is loaded for a change that is refused
    catalog.meanwhile = lambda: catalog.set_label("m", "other", 2)
    with pytest.raises(Conflict, match=f"expected generation {generation}, got {generation + 1}"):
        verb(traffic, revision, generation)
    assert verb(traffic, revision, generation + 1).generation == generation + 2


def test_a_label_is_taken_away_from_the_generation_that_is_named(catalog: Busy, traffic: Traffic) -> None:
    generation = catalog.get_model("m").generation
    with pytest.raises(Conflict, match="was changed meanwhile"):
        traffic.set_label("m", "tested", None, "ann", "", generation - 1)
    assert "tested" not in traffic.set_label("m", "tested", None, "ann", "", generation).labels


@pytest.mark.parametrize("verb", [Traffic.abort, Traffic.pause])
def test_a_step_meanwhile_is_another_generation(catalog: Busy, traffic: Traffic, verb) -> None:
    generation = catalog.get_model("m").generation
    step_on(catalog)
    with pytest.raises(Conflict, match="was changed meanwhile"):
        verb(traffic, "m", "ann", "", generation)
    assert verb(traffic, "m", "ann", "", generation + 1).generation == generation + 2


def test_gates_that_are_left_out_of_a_rollout_are_the_models(traffic: Traffic) -> None:
    gates = rollout_of(traffic.roll_out("m", {"to": 3, "gates": {"error_rate": 0.05}}, "ann", "")).gates
    assert (gates.error_rate, gates.p99_ms) == (0.05, 50)
    gates = rollout_of(traffic.roll_out("m", {"to": 3, "gates": {"p99_ms": None}}, "ann", "")).gates
    assert (gates.error_rate, gates.p99_ms) == (0.01, None)
