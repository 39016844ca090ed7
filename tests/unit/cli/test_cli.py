# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, and its exit status."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from modelyard import __version__
from modelyard.admin import ModelState
from modelyard.cli import main
from modelyard.testing.platform import FakePlatform

REGISTER = ("register", "iris", "--framework", "sklearn", "--uri", "models/iris")


def test_a_model_goes_through_its_life(shell) -> None:
    assert shell.json(*REGISTER, "--wait", "-m", "first")["state"] == "ready"
    assert [model["name"] for model in shell.json("list")["models"]] == ["iris"]
    assert shell.json("status", "iris")["message"] == "first"
    assert shell.json("unload", "iris", "--wait", "-m", "night")["state"] == "unloaded"
    assert shell.json("load", "iris", "--wait")["state"] == "ready"
    assert shell.json("unregister", "iris", "--wait")["state"] == "removing"
    assert shell.json("list") == {"models": []}


def test_people_get_tables(shell) -> None:
    status, out, err = shell.run(*REGISTER)
    assert (status, err) == (0, "")
    assert "input-0 FP64 [-1,4]" in out
    _, out, _ = shell.run("list")
    header, row = out.splitlines()[:2]
    assert header.split() == ["name", "framework", "version", "state", "replicas", "owner", "reason"]
    assert row.split() == ["iris", "sklearn", "1", "ready", "1/1", "registered"]


def test_options_and_settings_are_json_or_text(shell, fake: FakePlatform) -> None:
    shell.json(
        *REGISTER, "-o", "model_file=a.joblib", "-s", "autoscaling.max_replicas=4", "-s", "runtime.version=3.0.5"
    )
    (record,) = fake.catalog.list_models()
    assert record.spec["options"] == {"model_file": "a.joblib"}
    assert record.spec["autoscaling"]["max_replicas"] == 4
    assert record.spec["runtime"]["version"] == "3.0.5"


def test_settings_may_be_deep_or_a_single_value(shell, fake: FakePlatform) -> None:
    settings = ("rollout.steps=[1,10,100]", "rollout.gates.error_rate=0.01", "rollout.gates.p99_ms=50")
    shell.json(
        *REGISTER,
        *(part for text in settings for part in ("-s", text)),
        "--set",
        "sticky=header:x-user-id",
        "-s",
        'warmup=[{"instances":[[1]]}]',
    )
    (record,) = fake.catalog.list_models()
    assert record.spec["rollout"]["steps"] == [1, 10, 100]
    assert record.spec["rollout"]["gates"] == {"error_rate": 0.01, "p99_ms": 50, "shadow_mismatch": None}
    assert record.spec["sticky"] == "header:x-user-id"
    assert record.spec["warmup"] == [{"instances": [[1]]}]


@pytest.mark.parametrize(
    "data",
    [
        "[[1, 2], [3, 4]]",
        '{"instances": [[1, 2], [3, 4]]}',
        '{"inputs": [[1, 2], [3, 4]]}',
        '{"x": [[1, 2], [3, 4]]}',
        '{"inputs": [{"name": "x", "datatype": "FP64", "shape": [2, 2], "data": [1, 2, 3, 4]}]}',
    ],
)
def test_every_form_of_data_is_understood(shell, data: str) -> None:
    shell.json(*REGISTER)
    assert shell.json("predict", "iris", "--data", data)["outputs"] == {"output-0": [3, 7]}


def test_data_comes_from_a_file_or_standard_input(shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.json(*REGISTER)
    (tmp_path / "rows.json").write_text("[[1, 2]]")
    assert shell.json("predict", "iris", "-d", str(tmp_path / "rows.json"))["outputs"] == {"output-0": [3]}
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"[[2, 2]]")))
    assert shell.json("predict", "iris", "-d", "-", "--output", "sum", "--version", "1")["outputs"] == {"sum": [4]}


def test_a_prediction_is_a_table_with_a_row_per_row(shell) -> None:
    shell.json(*REGISTER)
    _, out, _ = shell.run("predict", "iris", "-d", '{"city": ["Ulm", "Köln"]}')
    assert [line.strip() for line in out.splitlines()] == ["output-0", "Ulm", "Köln"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("status", "none"), 'model "none" is not found'),
        (("register", "a/b", "--framework", "sklearn", "--uri", "x"), "name: expected a text that matches"),
        ((*REGISTER, "-s", "batching.max_batch_size=0"), "batching.max_batch_size: expected an integer >= 1, got 0"),
        (("predict", "iris", "-d", "{"), "--data: expected JSON"),
        (("predict", "iris", "-d", "none.json"), '--data: "none.json" cannot be read: No such file'),
        (("predict", "none", "-d", "[1]"), 'model "none" is not found'),
        (("serve", "none.yaml"), "none.yaml: cannot be read: No such file"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_expected_error_is_one_line_and_status_1(shell, arguments: tuple[str, ...], sentence: str) -> None:
    status, out, err = shell.run(*arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"modelyard: {sentence}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("nonsense",),
        ("register", "a"),
        (*REGISTER, "-o", "x"),
        (*REGISTER, "-s", "x=1"),
        (*REGISTER, "-s", "rollout=1"),
        (*REGISTER, "-s", "sticky.x=1"),
        (*REGISTER, "-s", "rollout.gates=1", "-s", "rollout.gates.p99_ms=1"),
        ("traffic", "iris", "1=all"),
        ("traffic", "iris", "--shadow", "2:x"),
        ("traffic", "iris", "--shadow", "2", "--no-shadow"),
        ("label", "iris", "mine"),
        ("label", "iris", "mine", "1", "--remove"),
        ("rollout", "iris", "2", "--steps", "1,x"),
        ("events", "--limit", "0"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_status_2(shell, arguments: tuple[str, ...]) -> None:
    status, _, err = shell.run(*arguments)
    assert status == 2
    assert "Traceback" not in err


def test_a_model_that_failed_ends_the_wait_with_status_1(shell, fake: FakePlatform) -> None:
    fake.coming["iris"] = [(ModelState.LOADING, ""), (ModelState.LOADING, ""), (ModelState.FAILED, "no such file")]
    status, _, err = shell.run(*REGISTER, "--wait")
    assert (status, err.splitlines()[-1]) == (1, 'modelyard: model "iris" is not ready: failed: no such file')


def test_a_revision_that_failed_ends_the_wait_with_status_1(shell, fake: FakePlatform) -> None:
    shell.json(*REGISTER)
    fake.failures["iris", 2] = "no such file"
    status, out, err = shell.run("register", "iris", "--framework", "sklearn", "--uri", "models/2", "--wait")
    assert (status, out) == (1, "")
    assert "revision 2 failed and gets no traffic: no such file" in err.splitlines()[-1]
    assert shell.run("load", "iris", "--wait")[0] == 1


def test_waiting_prints_a_line_for_each_change_beside_the_result(shell, fake: FakePlatform) -> None:
    fake.coming["iris"] = [(ModelState.PENDING, "no CPU is free")] * 3 + [(ModelState.LOADING, "its replicas start")]
    status, out, err = shell.run(*REGISTER, "--wait")
    assert (status, out.split()[:4]) == (0, ["name", "iris", "state", "ready"])
    assert err.splitlines() == [
        "revision 1: pending; no CPU is free",
        "revision 1: loading; its replicas start",
        "revision 1: ready",
    ]
    assert shell.run("unload", "iris", "--wait")[2].splitlines() == [
        "revision 1: unloading",
        "revision 1: unloaded; unloaded",
    ]
    assert shell.run("load", "iris", "--wait")[2] == "revision 1: ready\n"
    assert shell.run("unregister", "iris", "--wait") == (0, "iris is gone\n", "revision 1: removing\n")


def test_one_that_is_registered_again_while_it_goes_is_not_gone(shell, fake: FakePlatform) -> None:
    shell.run(*REGISTER)
    answer = fake.answer

    def register_again(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            fake.coming.clear()
            with fake.connect() as platform:
                fake.answer = answer  # type: ignore[method-assign]  # what is behind the transport
                platform.register("iris", framework="sklearn", uri="models/iris")
        return answer(request)

    fake.answer = register_again  # type: ignore[method-assign]
    status, out, _ = shell.run("unregister", "iris", "--wait")
    assert status == 0
    assert ["state", "ready"] in [line.split() for line in out.splitlines()]


def test_a_model_is_waited_for(shell, fake: FakePlatform) -> None:
    shell.run(*REGISTER)
    fake.coming["iris"] = [(ModelState.LOADING, "")] * 2
    assert shell.json("wait", "iris")["state"] == "ready"
    fake.coming["iris"] = [(ModelState.LOADING, "its replicas start")] * 9
    sentence = 'modelyard: model "iris" is not ready: loading: its replicas start (waited 0 s)\n'
    assert shell.run("wait", "iris", "--timeout", "0") == (1, "", sentence)
    fake.coming["iris"] = [(ModelState.FAILED, "no such file")]
    assert shell.run("wait", "iris")[0] == 1


def test_without_waiting_or_for_machines_nothing_is_printed_beside_the_result(shell) -> None:
    assert shell.run(*REGISTER)[2] == ""
    for verb in ("unload", "load", "unregister"):
        assert shell.json(verb, "iris", "--wait")["name"] == "iris"


def test_the_history_says_who_has_run_a_command(shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_ACTOR", "pipeline 7")
    shell.json(*REGISTER)
    assert [one["actor"] for one in shell.json("revisions", "iris")["revisions"]] == ["pipeline 7"]


def test_nothing_at_the_address_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--url", "nowhere", "list"])
    assert caught.value.code == 1
    assert capsys.readouterr().err == 'modelyard: url: expected http:// or https:// and a host, got "nowhere"\n'


def test_the_version_is_printed(shell) -> None:
    assert shell.run("--version") == (0, f"{__version__}\n", "")


def test_help_names_every_verb(shell) -> None:
    status, out, _ = shell.run("--help")
    assert status == 0
    verbs = ("serve", "register", "list", "status", "wait", "load", "unload", "unregister", "predict", "--version")
    for verb in (
        *verbs,
        "traffic",
        "label",
        "rollout",
        "promote",
        "rollback",
        "abort",
        "pause",
        "resume",
        "revisions",
        "events",
        "export",
        "import",
    ):
        assert f" {verb} " in out
