# SPDX-License-Identifier: Apache-2.0
"""Trying a registration, registering only what nobody else has changed, and carrying models elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from modelyard import ModelSpec, Platform
from modelyard.admin import Action, Plan
from modelyard.catalog import ModelEntry, Owner
from modelyard.client import ApiError, HttpTransport
from modelyard.errors import Conflict, InvalidConfig, ModelNotFound
from modelyard.testing.platform import FakePlatform

SPECS = (
    {"name": "a", "framework": "sklearn", "uri": "models/a"},
    {"name": "b", "framework": "sklearn", "uri": "models/b", "batching": {"max_batch_size": 8}, "sticky": "cookie:x"},
)


@pytest.fixture
def platform(fake: FakePlatform) -> Iterator[Platform]:
    with fake.connect() as connected:
        yield connected


def declare(fake: FakePlatform, name: str) -> None:
    spec = ModelSpec(name=name, framework="sklearn", uri=f"models/{name}")
    fake.catalog.put_model(ModelEntry(name, spec.to_json(), {}, "d"), owner=Owner.DECLARED)


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(platform: Platform) -> None:
    assert platform.register("m", framework="sklearn", uri="x", dry_run=True) == Plan("m", Action.CREATE, 1)
    assert platform.list() == ()
    platform.register("m", framework="sklearn", uri="x", rollout={"steps": [10, 100]})
    plan = platform.register("m", framework="sklearn", uri="y", rollout={"steps": [10, 100]}, dry_run=True)
    assert (plan.action, plan.revision, plan.generation, plan.changed) == (Action.REVISE, 2, 1, {"uri": ["x", "y"]})
    assert plan.rollout is not None
    assert (plan.rollout.steps, plan.rollout.base) == ((10, 100), {1: 100})
    assert platform.status("m").generation == 1


def test_a_dry_run_refuses_what_would_be_refused(platform: Platform, fake: FakePlatform) -> None:
    declare(fake, "m")
    with pytest.raises(Conflict, match="is declared in the configuration file"):
        platform.register("m", framework="sklearn", uri="x", dry_run=True)
    with pytest.raises(InvalidConfig, match=r"^framework: expected one of"):
        platform.register("m", framework="third-party", uri="x", dry_run=True)


def test_only_the_generation_that_is_expected_is_changed(platform: Platform) -> None:
    spec = ModelSpec(name="m", framework="sklearn", uri="x")
    assert platform.register_spec(spec, expected_generation=0).generation == 1
    for dry_run in (False, True):
        with pytest.raises(Conflict, match="was changed meanwhile: expected generation 0, got 1"):
            platform.register_spec(spec, expected_generation=0, dry_run=dry_run)
    plan = platform.register("m", framework="sklearn", uri="y", dry_run=True)
    assert platform.register("m", framework="sklearn", uri="y", expected_generation=plan.generation).version == "2"


def test_models_come_out_as_they_went_in(platform: Platform) -> None:
    plans = platform.import_(SPECS, message="moved")
    assert plans == (Plan("a", Action.CREATE, 1), Plan("b", Action.CREATE, 1))
    assert platform.export() == SPECS
    assert platform.status("b").message == "moved"
    assert [plan.action for plan in platform.import_(platform.export())] == [Action.NOTHING] * 2


def test_only_what_differs_is_registered(platform: Platform, fake: FakePlatform) -> None:
    platform.import_(SPECS)
    asked = len(fake.requests)
    plans = platform.import_([SPECS[0], ModelSpec(name="b", framework="sklearn", uri="models/b2")])
    assert [plan.action for plan in plans] == [Action.NOTHING, Action.REVISE]
    assert [request.url.query for request in fake.requests[asked:]] == [
        b"dry_run=true",
        b"dry_run=true",
        b"expected_generation=1",
    ]


def test_models_are_exported_by_owner_or_name(platform: Platform, fake: FakePlatform) -> None:
    declare(fake, "declared")
    platform.import_(SPECS)
    platform.unregister("a")
    assert [spec["name"] for spec in platform.export()] == ["b"]
    assert [spec["name"] for spec in platform.export(all_owners=True)] == ["b", "declared"]
    assert [spec["name"] for spec in platform.export(["declared"])] == ["declared"]
    with pytest.raises(ModelNotFound):
        platform.export(["b", "none"])


def test_models_of_which_one_is_wrong_are_all_refused(platform: Platform, fake: FakePlatform) -> None:
    declare(fake, "mine")
    wrong = [
        SPECS[0],
        {"name": "mine", "framework": "sklearn", "uri": "x"},
        {"name": "c", "framework": "third-party", "uri": "x"},
        {"name": "d", "framework": "sklearn", "uri": "x", "options": {"x": 1}},
    ]
    with pytest.raises(InvalidConfig) as caught:
        platform.import_(wrong)
    first, second, third = caught.value.problems
    assert first.startswith('models[1]: model "mine" is declared in the configuration file')
    assert second.startswith("models[2].framework: expected one of")
    assert third.startswith("models[3].options.x: unknown key")
    assert [model.name for model in platform.list()] == ["mine"]


def test_a_wrong_shape_is_refused_before_anything_is_sent(platform: Platform, fake: FakePlatform) -> None:
    with pytest.raises(InvalidConfig, match=r'models\[1\].urii: unknown key; did you mean "uri"'):
        platform.import_([SPECS[0], {"name": "x", "framework": "sklearn", "urii": "y"}])
    assert fake.requests == []


def test_a_dry_run_of_an_import_registers_nothing(platform: Platform) -> None:
    assert [plan.action for plan in platform.import_(SPECS, dry_run=True)] == [Action.CREATE] * 2
    assert platform.list() == ()


def answering(reply: object) -> Platform:
    network = httpx.MockTransport(lambda _: httpx.Response(200, json=reply))
    return Platform(lambda: HttpTransport("http://platform.test", transport=network))


@pytest.mark.parametrize("reply", [[], {"action": "create"}, {"name": "m", "action": "fly", "revision": 1}], ids=str)
def test_an_answer_that_is_no_plan_is_refused(reply: object) -> None:
    with answering(reply) as platform, pytest.raises(ApiError, match="expected a plan"):
        platform.register("m", framework="sklearn", uri="x", dry_run=True)


@pytest.mark.parametrize("reply", [[], {"framework": "sklearn"}], ids=str)
def test_an_answer_that_is_no_specification_is_refused(reply: object) -> None:
    with answering(reply) as platform, pytest.raises(ApiError, match="expected a model's specification"):
        platform.export(["m"])
