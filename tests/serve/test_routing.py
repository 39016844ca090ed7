# SPDX-License-Identifier: Apache-2.0
"""How a name, a version and a label find their revision."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from modelyard.errors import ModelNotFound, ModelNotReady, SignatureNotFound
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.signature import SavedSignature, Signature

SIGNATURE = Signature((), ())


def _revision(number: str, state: str = "ready", **changes: object) -> RevisionRoute:
    return RevisionRoute("m", number, f"m@{number}", "fake", state, signature=SIGNATURE, **changes)


@pytest.fixture
def table() -> RouteTable:
    revisions = {"1": _revision("1"), "2": _revision("2"), "3": _revision("3", "loading", reason="it starts")}
    return RouteTable("e", 1, {"m": ModelRoute("m", "2", revisions, {"stable": "2", "canary": "3", "lost": "9"})})


@pytest.mark.parametrize(
    ("version", "number"), [("", "2"), ("1", "1"), ("0001", "1"), ("stable", "2"), ("canary", "3")]
)
def test_a_version_or_label_finds_its_revision(table: RouteTable, version: str, number: str):
    assert table.get_revision("m", version).version == number


@pytest.mark.parametrize(
    ("name", "version"), [("x", ""), ("x", "1"), ("m", "9"), ("m", "0"), ("m", "beta"), ("m", "lost")]
)
def test_what_is_unknown_is_not_found(table: RouteTable, name: str, version: str):
    with pytest.raises(ModelNotFound) as caught:
        table.get_ready(name, version)
    assert (caught.value.model, caught.value.version) == (name, version if name == "m" else "")


def test_a_revision_that_is_not_ready_says_why(table: RouteTable):
    with pytest.raises(ModelNotReady, match="it starts"):
        table.get_ready("m", "canary")


def test_the_newest_revision_has_the_highest_number_whatever_its_state():
    revisions = {"9": _revision("9"), "10": _revision("10", "failed")}
    model = ModelRoute("m", "9", revisions)
    assert (model.newest.version, model.ready_versions) == ("10", ("9",))


@pytest.mark.parametrize("state", ["pending", "loading", "failed", "unloading", "unloaded", "removing"])
def test_only_ready_is_ready(state: str):
    table = RouteTable("e", 1, {"m": ModelRoute("m", "1", {"1": _revision("1", state)})})
    with pytest.raises(ModelNotReady, match=state):
        table.get_ready("m")
    assert not table.get_revision("m").is_ready


def test_without_a_signature_nothing_is_ready():
    revision = RevisionRoute("m", "1", "m@1", "fake", "ready")
    assert not revision.is_ready
    with pytest.raises(ModelNotReady):
        RouteTable("e", 1, {"m": ModelRoute("m", "1", {"1": revision})}).get_ready("m")


def test_models_are_found_by_name(table: RouteTable):
    assert table.find_model("m") is table.get_model("m")
    assert table.find_model("x") is None
    with pytest.raises(ModelNotFound):
        table.get_model("x")


TWO = {"predict": SIGNATURE, "serving_default": SIGNATURE}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["serving_default"]),
        ({"members": TWO}, ["serving_default", "predict"]),
        ({"members": TWO, "publishes_members": True}, ["serving_default"]),
        ({"signature": Signature((), (), saved=SavedSignature("mine", "")), "members": TWO}, ["mine", *TWO]),
    ],
)
def test_a_revisions_signatures_by_name_its_own_first(changes: dict[str, object], names: list[str]):
    revision = replace(_revision("1"), **changes)
    assert list(revision.signatures) == names
    assert revision.get_signature("") == revision.get_signature(names[0]) == (revision, revision.signature)
    for name in names[1:]:
        route, signature = revision.get_signature(name)
        assert (route.member, route.signature_name, route.signature) == (name, name, signature)
    with pytest.raises(SignatureNotFound, match='"other" not found'):
        revision.get_signature("other")


def test_a_member_that_is_a_model_has_the_name_of_every_models_signature():
    (member,) = ModelRoute(
        "m", "1", {"1": _revision("1", members={"one": SIGNATURE}, publishes_members=True)}
    ).published_members()
    route = member.revisions["1"]
    assert (route.member, route.signature_name, route.get_signature("serving_default")[0]) == (
        "one",
        "serving_default",
        route,
    )


def test_signatures_are_not_known_before_a_replica_runs():
    revision = RevisionRoute("m", "1", "m@1", "fake", "loading", "it starts")
    assert (revision.signatures, revision.signature_name) == ({}, "serving_default")
    with pytest.raises(ModelNotReady, match="it starts"):
        revision.get_signature("serving_default")


class From:
    """A request from somewhere."""

    def __init__(self, **headers: str) -> None:
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def header(self, name: str) -> str:
        return self._headers.get(name, "")

    def cookie(self, name: str) -> str:
        return f"{name} of {self._headers['user']}" if "user" in self._headers else ""


def _shared(weights: dict[str, float], **more: object) -> RouteTable:
    revisions = {number: _revision(number) for number in ("1", "2", "3")}
    return RouteTable("e", 1, {"m": ModelRoute("m", "1", revisions, {"canary": "2"}, weights=weights, **more)})


def _choices(table: RouteTable, senders: list[From]) -> list[str]:
    return [table.choose("m", sender=sender)[0].version for sender in senders]


def test_who_names_none_is_answered_as_the_weights_have_it(monkeypatch):
    monkeypatch.setattr("modelyard.routing._chance", random.Random(0))
    found = Counter(_choices(_shared({"1": 90, "2": 10}), [From()] * 10_000))
    assert set(found) == {"1", "2"}, "one that runs without a weight gets nothing"
    assert abs(found["2"] - 1000) < 3 * 30
    assert set(_choices(_shared({}), [From()] * 10)) == {"1"}


@pytest.mark.parametrize("sticky", ["header:user", "cookie:session"])
def test_changed_weights_move_as_few_as_they_have_to(sticky: str):
    users = [From(user=f"user {number}") for number in range(2000)]
    before = _choices(_shared({"1": 80, "2": 20}, sticky=sticky), users)
    assert _choices(_shared({"1": 80, "2": 20}, sticky=sticky), users) == before
    assert 0.17 < before.count("2") / len(users) < 0.23
    for weights, moves in (({"1": 60, "2": 40}, {("1", "2")}), ({"1": 64, "2": 16, "3": 20}, {("1", "3"), ("2", "3")})):
        after = _choices(_shared(weights, sticky=sticky), users)
        moved = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        assert set(moved) == moves
        assert 0.17 < len(moved) / len(users) < 0.23


def test_without_anybody_it_belongs_to_a_request_goes_by_chance():
    table = _shared({"1": 50, "2": 50}, sticky="header:user")
    assert set(_choices(table, [From()] * 100)) == {"1", "2"}
    assert {table.choose("m")[0].version for _ in range(100)} == {"1", "2"}


def test_a_pin_stands_for_a_version_and_a_version_wins():
    table = _shared({"1": 100})
    for pin, number in (("canary", "2"), ("3", "3"), ("03", "3")):
        assert _choices(table, [From(x_modelyard_revision=pin)]) == [number]
    assert table.choose("m", "1", From(x_modelyard_revision="3"))[0].version == "1"
    with pytest.raises(ModelNotFound):
        table.choose("m", sender=From(x_modelyard_revision="9"))
    with pytest.raises(ModelNotFound):
        table.choose("x", sender=From())


def test_members_are_shared_as_their_model_is():
    revisions = {
        number: _revision(number, publishes_members=True, members={"inner": SIGNATURE}) for number in ("1", "2")
    }
    model = ModelRoute("m", "1", revisions, weights={"1": 50, "2": 50})
    (inner,) = model.published_members()
    assert {inner.choose() for _ in range(100)} == {"1", "2"}
