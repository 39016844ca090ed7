# SPDX-License-Identifier: Apache-2.0
"""Checking a Serve file and running Ray Serve's command; the command is a small script here."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard import launch
from modelyard.config import PlatformConfig
from modelyard.errors import InvalidConfig

FILE = """
http_options: {port: 8123}
applications:
  - name: platform
    import_path: modelyard.serve.app:build
    args: {models: MODELS}
"""


def _file(tmp_path: Path, models: str = "[]") -> Path:
    path = tmp_path / "platform.yaml"
    path.write_text(FILE.replace("MODELS", models))
    return path


def test_a_good_file_is_accepted(tmp_path: Path) -> None:
    assert launch.check_file(_file(tmp_path)).http_url == "http://127.0.0.1:8123"


def test_where_models_are_is_checked_too(tmp_path: Path) -> None:
    names = {"a": "ftp://b/a", "b": "/", "c": "s3://b/c", "d": "https://user:password@host/d.onnx"}
    frameworks = {"d": "onnx"}
    specs = (f"{{name: {n}, framework: {frameworks.get(n, 'sklearn')}, uri: '{uri}'}}" for n, uri in names.items())
    models = f"[{', '.join(specs)}]"
    with pytest.raises(InvalidConfig) as caught:
        launch.check_file(_file(tmp_path, models))
    first, second, third, fourth = caught.value.problems
    assert first.startswith("models[0].uri: expected a path")
    assert second.startswith("models[1].uri: the artifact")
    assert third.startswith("models[2].uri: the artifact")
    assert fourth.startswith("models[3].uri: expected one without a password")


def test_a_missing_artifact_is_no_problem_of_the_file() -> None:
    models = [{"name": "a", "framework": "sklearn", "uri": "models/none"}]
    assert launch.check_locations(PlatformConfig.model_validate({"models": models})) == ()


@pytest.mark.parametrize(
    ("limit", "environment", "problem"),
    [
        (10_440, {}, None),
        (resource.RLIM_INFINITY, {}, None),
        (1024, {"RAY_SERVE_HAPROXY_MAXCONN": "329"}, None),
        (1024, {"RAY_SERVE_ENABLE_HA_PROXY": "0"}, None),
        (1024, {}, "at least 10440 .* 4096 connections .* got 1024; raise it, or set RAY_SERVE_HAPROXY_MAXCONN=329"),
        (1024, {"RAY_SERVE_HAPROXY_MAXCONN": "many"}, 'expected a number of connections, got "many"'),
    ],
)
def test_too_few_open_files_are_refused_before_haproxy_ends_for_them(
    monkeypatch: pytest.MonkeyPatch, limit: int, environment: dict[str, str], problem: str | None
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(launch.resource, "getrlimit", lambda _: (512, limit))
    monkeypatch.setattr(launch.resource, "setrlimit", refuse)
    with pytest.raises(InvalidConfig, match=problem) if problem else contextlib.nullcontext():
        launch.check_open_files(environment)


def _command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a `serve` beside a Python of its own, which has our HAProxy too."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("serve", script), ("modelyard-haproxy", "")):
        command = folder / name
        command.write_text(f"#!/bin/sh\n{text}\n")
        command.chmod(command.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "1 1 FOLDER/modelyard-haproxy"),
        ({"RAY_SERVE_ENABLE_HA_PROXY": "0"}, "0 1"),
        ({"RAY_SERVE_HAPROXY_BINARY_PATH": "/usr/sbin/haproxy"}, "1 1 /usr/sbin/haproxy"),
    ],
)
def test_the_child_gets_the_file_and_the_fast_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, str], expected: str
) -> None:
    _command(
        tmp_path,
        monkeypatch,
        f"for value in $RAY_SERVE_ENABLE_HA_PROXY $RAY_SERVE_THROUGHPUT_OPTIMIZED $RAY_SERVE_HAPROXY_BINARY_PATH\n"
        f'do set -- "$@" $value; done; echo "$@" > {tmp_path}/out; exit 7',
    )
    assert launch.run_serve(Path("x.yaml"), own) == 7
    assert (tmp_path / "out").read_text() == f"run x.yaml {expected.replace('FOLDER', str(tmp_path / 'bin'))}\n"


DRIVER = """
import sys
from pathlib import Path
from modelyard.launch import run_serve
sys.executable = sys.argv[1]
sys.exit(run_serve(Path("x.yaml")))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_stops_the_child_once_and_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    _command(
        tmp_path,
        monkeypatch,
        "trap 'echo interrupted; exit 3' INT\necho started\nwhile :; do sleep 0.02; done",
    )
    python, fake = os.path.realpath("/proc/self/exe"), sys.executable
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    driver = subprocess.Popen([python, "-c", DRIVER, fake], stdout=subprocess.PIPE, text=True, env=environment)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "started\n"
    driver.send_signal(number)
    out, _ = driver.communicate(timeout=30)
    assert (out, driver.returncode) == ("interrupted\n", 0)
