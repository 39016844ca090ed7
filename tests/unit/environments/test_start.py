# SPDX-License-Identifier: Apache-2.0
"""What Ray starts instead of Python becomes the right Python, or the platform's with the reason why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from modelyard.environments.overlay import OVERLAY_VARIABLE, Overlay, remove_unused
from modelyard.environments.start import (
    FAILURE_VARIABLE,
    PYTHON_VARIABLE,
    check_python,
    check_started,
    py_executable,
)
from modelyard.errors import ModelLoadError

TELL = f"import json, os, sys; print(json.dumps([sys.prefix, os.environ.get({FAILURE_VARIABLE!r}), sys.argv[1:]]))"


def start(variables: Mapping[str, str], *arguments: str) -> tuple[str, str | None, list[str]]:
    """As Ray does: by the shell, the arguments after it."""
    done = subprocess.run(
        ["bash", "-c", f'exec {py_executable()} "$@"', "bash", *arguments],
        env=os.environ | dict(variables),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    prefix, failure, passed = json.loads(done.stdout)
    return prefix, failure, passed


def test_it_becomes_the_python_of_the_overlay_and_builds_it(environments: Path, offline: dict[str, str]) -> None:
    overlay = Overlay("pip", ("tiny",), "", offline)
    code = f"import tiny; {TELL}"
    assert start({OVERLAY_VARIABLE: overlay.to_json()}, "-c", code, "--a", "b c") == (
        str(overlay.folder),
        None,
        ["--a", "b c"],
    )


def test_a_running_replica_keeps_its_overlay(environments: Path, offline: dict[str, str]) -> None:
    overlay = Overlay("pip", ("tiny",), "", offline)
    command = ["bash", "-c", f"exec {py_executable()} -c 'print(1, flush=True); input()'"]
    environment = os.environ | {OVERLAY_VARIABLE: overlay.to_json()}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"1\n"
        remove_unused(now=4e9)
        assert overlay.is_ready
        running.communicate(b"\n")
    remove_unused(now=4e9)
    assert not overlay.folder.exists()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({PYTHON_VARIABLE: "/nowhere/python"}, 'its Python "/nowhere/python" cannot be run: No such file or directory'),
        ({PYTHON_VARIABLE: "true"}, 'its Python "true" cannot be run: IndexError'),
        ({OVERLAY_VARIABLE: Overlay("pip", ("tiny==9",), "", {"PIP_NO_INDEX": "1"}).to_json()}, "tiny==9"),
    ],
)
def test_without_one_it_is_the_platforms_with_the_reason(
    environments: Path, variables: dict[str, str], reason: str
) -> None:
    prefix, failure, passed = start(variables, "-c", TELL, "x")
    assert (prefix, passed) == (sys.prefix, ["x"])
    assert reason in str(failure)


def test_the_replica_fails_with_that_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    check_started()
    monkeypatch.setenv(FAILURE_VARIABLE, "no such package")
    with pytest.raises(ModelLoadError, match="no such package"):
        check_started()


def test_a_python_with_the_platforms_packages_is_taken_with_its_arguments() -> None:
    assert check_python([sys.executable, "-X", "utf8"]) == [sys.executable, "-X", "utf8"]


def test_a_python_without_them_is_refused() -> None:
    with pytest.raises(ModelLoadError) as caught:
        check_python([sys.executable, "-S"])
    assert str(caught.value) == (
        f'its Python "{sys.executable}" does not fit the platform: ray missing (the platform has {version("ray")}), '
        f"modelyard missing (the platform has {version('modelyard')}), numpy missing"
    )


@pytest.mark.parametrize(("python", "is_refused"), [("3.9.1", True), (f"3.{sys.version_info.minor}.99", False)])
def test_another_minor_version_of_python_is_refused(tmp_path: Path, python: str, is_refused: bool) -> None:
    found = {"python": python, "ray": version("ray"), "modelyard": version("modelyard"), "numpy": "1.26.4"}
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho welcome\necho '{json.dumps(found)}'\n")
    fake.chmod(0o700)
    if is_refused:
        with pytest.raises(ModelLoadError, match=r"python 3\.9\.1 \(the platform has 3\."):
            check_python([str(fake)])
    else:
        assert check_python([str(fake)]) == [str(fake)]
