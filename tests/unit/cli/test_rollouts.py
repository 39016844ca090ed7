# SPDX-License-Identifier: Apache-2.0
"""The commands that move a model's traffic and show its history."""

from __future__ import annotations

import json

import httpx
import pytest

from modelyard.admin import ModelState, Revision
from modelyard.cli import main
from modelyard.cli.printing import describe_shadow, print_revisions
from modelyard.outcomes import Outcomes
from modelyard.rollout import Shadow


@pytest.fixture
def models(shell):
    """A model with two revisions, of which the second has the traffic."""
    for number in (1, 2):
        shell.json("register", "iris", "--framework", "sklearn", "--uri", f"models/{number}", "-m", f"number {number}")


@pytest.mark.usefixtures("models")
def test_traffic_is_shared_and_shown(shell):
    status = shell.json("traffic", "iris", "1=90", "stable=10", "--shadow", "1:5", "-m", "try")
    assert (status["traffic"], status["shadow"]["percent"]) == ({"1": 90, "2": 10}, 5)
    assert shell.json("traffic", "iris", "--shadow", "2")["shadow"] == {
        "revision": 2,
        "percent": 100,
        "tolerance": 1e-5,
    }
    _, out, _ = shell.run("status", "iris")
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines()}
    assert lines["traffic"] == "1: 90 %, 2: 10 %"
    assert lines["labels"] == "shadow → 2, stable → 2"
    assert lines["shadow"] == "revision 2, 100 % of the requests"
    assert lines["rollout"] == "revision 2: promoted"
    assert shell.json("traffic", "iris", "--no-shadow")["shadow"] is None
    measured = {"compared": 9.0, "different": 2.0, "dropped": 1.0}
    text = "revision 2, 5 % of the requests; 9 compared, 2 different, 1 dropped"
    assert describe_shadow(Shadow(2, 5, measured=measured)) == text


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    "command",
    [
        ("traffic", "iris", "1=90", "2=10"),
        ("label", "iris", "mine", "1"),
        ("rollout", "iris", "1", "--steps", "10,100", "--wait"),
        ("promote", "iris", "1", "--wait"),
        ("rollback", "iris", "--wait"),
        ("load", "iris", "--wait"),
        ("unload", "iris", "--wait"),
        ("unregister", "iris", "--wait"),
    ],
    ids=lambda command: command[0],
)
def test_a_dry_run_shows_what_would_be_waits_for_nothing_and_changes_nothing(shell, fake, command):
    before = fake.catalog.list_models(), fake.catalog.list_events()
    status, out, err = shell.run(*command, "--dry-run")
    assert (status, err) == (0, "dry run: nothing was changed\n")
    assert out.split()[:2] == ["name", "iris"]
    assert (fake.catalog.list_models(), fake.catalog.list_events()) == before


@pytest.mark.usefixtures("models")
def test_labels_come_and_go(shell):
    assert shell.json("label", "iris", "mine", "1")["labels"] == {"mine": "1", "stable": "2"}
    assert shell.json("label", "iris", "mine", "--remove")["labels"] == {"stable": "2"}


@pytest.mark.usefixtures("models")
def test_a_rollout_prints_a_line_for_each_change_while_it_is_waited_for(shell, fake):
    fake.seen["iris"] = Outcomes(requests=100, errors=1)
    options = ("--steps", "10,100", "--interval", "0", "--min-requests", "50", "--error-rate", "0.1")
    status, out, err = shell.run("rollout", "iris", "1", *options, "--wait")
    assert status == 0
    first, tenth, whole, last = err.splitlines()
    assert first.startswith("revision 1: waiting")
    assert tenth == "revision 1: running; step 1 of 2, 10 %; 100 requests, 1.00 % failed, 99 % within 0 ms"
    assert whole.startswith("revision 1: running; step 2 of 2, 100 %")
    assert last.startswith("revision 1: promoted; 100 requests")
    assert any(line.split() == ["traffic", "1:", "100", "%"] for line in out.splitlines())


@pytest.mark.usefixtures("models")
def test_a_rollout_that_is_rolled_back_is_status_1(shell, fake):
    fake.seen["iris"] = Outcomes(requests=100, errors=50)
    status, out, err = shell.run("rollout", "iris", "1", "--steps", "10", "--error-rate", "0.1", "--wait")
    assert (status, out) == (1, "")
    waiting, running, end = err.splitlines()
    assert (waiting[:19], running[:19]) == ("revision 1: waiting", "revision 1: running")
    assert end.startswith('modelyard: model "iris": revision 1 was rolled back: at 10 % 50 of 100 requests failed')


@pytest.mark.usefixtures("models")
def test_a_rollout_has_the_gates_of_the_model_unless_it_wants_none(shell):
    gates = ("--set", "rollout.gates.p99_ms=50")
    shell.json("register", "iris", "--framework", "sklearn", "--uri", "models/2", *gates)
    started = ("rollout", "iris", "1", "--error-rate", "0.1")
    assert shell.json(*started)["rollout"]["gates"] == {"error_rate": 0.1, "p99_ms": 50, "shadow_mismatch": None}
    only = shell.json(*started, "--no-gates")["rollout"]["gates"]
    assert only == {"error_rate": 0.1, "p99_ms": None, "shadow_mismatch": None}


@pytest.mark.usefixtures("models")
def test_moving_the_traffic_prints_how_it_goes(shell, fake):
    fake.coming["iris"] = [(ModelState.LOADING, "its replicas start")] * 2
    assert shell.run("promote", "iris", "1", "--wait")[2].splitlines() == [
        "revision 1: loading; its replicas start",
        "revision 1: promoted",
    ]
    fake.coming["iris"] = [(ModelState.LOADING, "")] * 2
    assert shell.run("rollback", "iris", "--wait")[2].splitlines() == ["revision 2: loading", "revision 2: promoted"]


@pytest.mark.usefixtures("models")
def test_a_revision_on_its_way_in_steps_prints_its_rollout(shell, fake):
    fake.coming["iris"] = [(ModelState.LOADING, "")] * 2
    arguments = ("--framework", "sklearn", "--uri", "models/3", "--set", "rollout.steps=[10,100]", "--wait")
    status, out, err = shell.run("register", "iris", *arguments)
    assert (status, err) == (0, "revision 3: waiting\n")
    assert "2: 100 %, 3: 0 %" in out


@pytest.mark.usefixtures("models")
def test_a_rollout_is_aborted_once(shell):
    shell.json("rollout", "iris", "1", "--steps", "10,20")
    status = shell.json("abort", "iris", "-m", "no")
    assert (status["rollout"]["state"], status["rollout"]["reason"]) == ("rolled_back", "no")
    assert status["traffic"] == {"2": 100}
    assert shell.run("abort", "iris") == (1, "", 'modelyard: model "iris" has no rollout on its way\n')


@pytest.mark.usefixtures("models")
def test_a_rollout_as_json_is_json_only(shell):
    assert shell.json("rollout", "iris", "1", "--wait")["rollout"]["state"] == "promoted"


@pytest.mark.usefixtures("models")
def test_a_rollout_goes_through_its_verbs(shell):
    assert shell.json("rollout", "iris", "1", "--steps", "10,20")["rollout"]["steps"] == [10, 20]
    shell.json("status", "iris")
    assert shell.json("pause", "iris", "-m", "look")["rollout"]["state"] == "paused"
    assert shell.json("resume", "iris")["rollout"]["state"] == "running"
    assert shell.json("rollback", "iris", "-m", "no")["rollout"]["reason"] == "no"
    assert shell.json("promote", "iris", "1", "--wait")["traffic"] == {"1": 100}
    assert shell.json("rollback", "iris", "--wait")["traffic"] == {"2": 100}
    assert shell.json("rollout", "iris", "1", "--steps", "")["rollout"]["steps"] == []


@pytest.mark.usefixtures("models")
def test_the_history_is_a_table(shell):
    _, out, _ = shell.run("revisions", "iris")
    header, newest, oldest, *_ = out.splitlines()
    assert header.split() == ["number", "state", "traffic", "labels", "created", "by", "message", "changed"]
    assert newest.split()[:5] == ["2", "ready", "100", "%", "stable"]
    assert newest.rstrip().endswith('number 2  uri: "models/1" → "models/2"')
    assert oldest.split()[0] == "1"
    assert [one["number"] for one in shell.json("revisions", "iris")["revisions"]] == [2, 1]


def test_changes_are_shown_by_key_shortened_and_without_secrets(capsys):
    changed = {
        "options": [{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": "x" * 80}],
        "runtime": [],
        "uri": [None, "models/2"],
    }
    print_revisions([Revision(2, "d", "now", changed=changed)], as_json=False)
    shown = capsys.readouterr().out.splitlines()[1].split("now")[1].strip()
    long = '"' + "x" * 58 + "…"
    assert shown == f'options.b: 2 → 3, options.c: null → {long}, runtime, uri: null → "models/2"'


@pytest.mark.usefixtures("models")
def test_events_are_lines_oldest_first(shell):
    _, out, _ = shell.run("events", "iris")
    assert [line.split()[2] for line in out.splitlines()] == ["created", "revised", "promoted"]
    assert 'number 2  revision=2 changed={"uri":["models/1","models/2"]}' in out
    _, out, _ = shell.run("events", "--limit", "1", "--json")
    assert json.loads(out)["kind"] == "promoted"
    assert shell.run("events", "none") == (0, "", "")


@pytest.mark.usefixtures("models")
def test_following_events_goes_on_with_those_that_come(shell, fake):
    answer, asked = fake.answer, []

    def later(request: httpx.Request) -> httpx.Response:
        if "after" not in request.url.params:
            return answer(request)
        asked.append(request.url.params["after"])
        if len(asked) == 2:
            fake.catalog.set_label("iris", "mine", 1)
        if len(asked) == 4:
            return httpx.Response(403, json={"error": "no more", "code": "forbidden"})
        return answer(request)

    fake.answer = later
    status, out, err = shell.run("events", "iris", "--follow", "--limit", "1")
    assert (status, err) == (1, "modelyard: no more\n")
    assert [line.split()[2] for line in out.splitlines()] == ["promoted", "label"]
    assert asked == ["3", "3", "4", "4"]


def test_an_interrupt_ends_following(shell, fake, capsys):
    class Interrupted:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def events(self, name, *, limit):
            return ()

        def watch(self, name, *, after):
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        main(["events", "-f"], connect=Interrupted)
    assert caught.value.code == 0
    assert capsys.readouterr() == ("", "")
