# SPDX-License-Identifier: Apache-2.0
"""How a name, a version and a label find their revision."""

from __future__ import annotations

import pytest

from modelyard.errors import ModelNotFound, ModelNotReady
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.signature import Signature

SIGNATURE = Signature((), ())


def _revision(number: str, state: str = "ready", **changes: object) -> RevisionRoute:
    return RevisionRoute("m", number, f"m@{number}", "fake", state, signature=SIGNATURE, **changes)


@pytest.fixture
def table() -> RouteTable:
    revisions = {"1": _revision("1"), "2": _revision("2"), "3": _revision("3", "loading", reason="it starts")}
    return RouteTable("e", 1, {"m": ModelRoute("m", "2", revisions, {"stable": "2", "canary": "3", "lost": "9"})})


@pytest.mark.parametrize(("version", "number"), [("", "2"), ("1", "1"), ("stable", "2"), ("canary", "3")])
def test_a_version_or_label_finds_its_revision(table: RouteTable, version: str, number: str):
    assert table.get_revision("m", version).version == number


@pytest.mark.parametrize(("name", "version"), [("x", ""), ("x", "1"), ("m", "9"), ("m", "beta"), ("m", "lost")])
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
