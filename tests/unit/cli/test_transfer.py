# SPDX-License-Identifier: Apache-2.0
"""The commands that try a registration, and carry models from one platform to another."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
import yaml

from modelyard.cli.session import app

REGISTER = ("register", "iris", "--framework", "sklearn", "--uri")


def rows(out: str) -> dict[str, str]:
    return {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines()}


def test_a_dry_run_is_a_table_of_what_would_be_done(shell):
    status, out, err = shell.run(*REGISTER, "a", "--dry-run")
    assert (status, err) == (0, "")
    assert rows(out) == {"name": "iris", "action": "create", "revision": "1", "traffic": "all at once"}
    assert shell.json("list") == {"models": []}
    shell.json(*REGISTER, "a")
    settings = ("-s", "autoscaling.max_replicas=4", "-s", 'runtime.env_vars={"TOKEN": "hunter2"}')
    steps = ("-s", "rollout.steps=[10,100]", "-s", "rollout.gates.p99_ms=50")
    _, out, _ = shell.run(*REGISTER, "b", *settings, *steps, "--dry-run")
    found = rows(out)
    assert (found["action"], found["revision"]) == ("revise", "2")
    assert found["autoscaling.max_replicas"] == "1 → 4"
    assert (found["uri"], found["runtime"]) == ('"a" → "b"', "changed")
    assert found["traffic"] == "10 %, 100 %, 60 s each, while p99_ms 50 hold"
    assert "hunter2" not in out


@pytest.mark.parametrize(
    ("steps", "traffic"), [("[100]", "all as soon as it is ready"), ("[]", "none until it is promoted")]
)
def test_a_dry_run_tells_how_the_traffic_would_go(shell, steps, traffic):
    shell.json(*REGISTER, "a")
    _, out, _ = shell.run(*REGISTER, "b", "-s", f"rollout.steps={steps}", "--dry-run")
    assert rows(out)["traffic"] == traffic


def test_a_dry_run_for_machines_is_json(shell):
    plan = shell.json(*REGISTER, "a", "--dry-run")
    assert (plan["action"], plan["generation"], plan["rollout"]) == ("create", 0, None)


def test_only_the_generation_that_is_expected_is_changed(shell):
    shell.json(*REGISTER, "a", "--expected-generation", "0")
    for more in ((), ("--dry-run",)):
        status, _, err = shell.run(*REGISTER, "b", "--expected-generation", "0", *more)
        assert (status, err) == (
            1,
            'modelyard: model "iris" was changed meanwhile: expected generation 0, got 1\n',
        )
    assert shell.json(*REGISTER, "b", "--expected-generation", "1")["traffic"] == {"2": 100}


CHANGES = {
    "load": (),
    "unload": (),
    "unregister": (),
    "traffic": ("1=100",),
    "label": ("own", "--remove"),
    "rollout": ("2", "--steps", "10"),
    "promote": ("2",),
    "rollback": (),
    "abort": (),
    "pause": (),
    "resume": (),
}


@pytest.mark.parametrize("command", CHANGES)
def test_every_change_may_be_for_one_generation_only(shell, command):
    for uri in ("a", "b"):
        shell.json(*REGISTER, uri, "-s", "rollout.steps=[]")
    shell.json("label", "iris", "own", "2")
    if command == "resume":
        shell.json("pause", "iris")
    generation = shell.json("status", "iris")["generation"]
    change = (command, "iris", *CHANGES[command], "--expected-generation")
    status, _, err = shell.run(*change, str(generation - 1))
    assert status == 1
    assert err.endswith(f"was changed meanwhile: expected generation {generation - 1}, got {generation}\n")
    shell.json(*change, str(generation))


def test_every_command_with_a_reason_is_one_of_these_changes():
    commands = typer.main.get_command(app).commands
    options = {name: {option.name for option in command.params} for name, command in commands.items()}
    assert {name for name, known in options.items() if "message" in known} == {*CHANGES, "register", "import"}


def test_models_are_written_as_a_configuration_file_has_them_and_read_again(shell, tmp_path: Path):
    shell.json(*REGISTER, "models/iris", "-s", "autoscaling.max_replicas=4")
    _, out, _ = shell.run("export")
    spec = {"name": "iris", "framework": "sklearn", "uri": "models/iris", "autoscaling": {"max_replicas": 4}}
    assert yaml.safe_load(out) == {"models": [spec]} == shell.json("export", "iris")
    (tmp_path / "models.yaml").write_text(out.replace("iris", "flowers"))
    assert shell.run("import", str(tmp_path / "models.yaml"), "--dry-run") == (0, "flowers: create, revision 1\n", "")
    assert len(shell.json("list")["models"]) == 1
    imported = shell.json("import", str(tmp_path / "models.yaml"), "-m", "moved")["models"]
    assert [plan["action"] for plan in imported] == ["create"]
    assert shell.json("status", "flowers")["message"] == "moved"
    assert shell.run("import", str(tmp_path / "models.yaml")) == (0, "flowers: nothing, revision 1\n", "")


def test_what_is_wrong_in_a_file_is_a_line_each_and_none_is_registered(shell, tmp_path: Path):
    file = tmp_path / "models.yaml"
    file.write_text("models: [{name: a, framework: sklearn, uri: a}, {name: b, framework: x}, {name: c, framework: y}]")
    status, out, err = shell.run("import", str(file))
    assert (status, out, err.count("\n")) == (1, "", 2)
    assert err.startswith("modelyard: models[1].framework: expected one of")
    assert shell.json("list") == {"models": []}


def test_names_and_all_of_them_do_not_go_together(shell):
    assert shell.run("export", "iris", "--all")[0] == 2
