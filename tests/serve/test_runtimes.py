# SPDX-License-Identifier: Apache-2.0
"""What Ray is told of a model's runtime, what applications wait for, and what Serve's messages tell."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ray._private.runtime_env.conda import CondaPlugin
from ray._private.runtime_env.context import RuntimeEnvContext
from ray._private.runtime_env.image_uri import ImageURIPlugin
from ray._private.runtime_env.py_executable import PyExecutablePlugin
from ray.runtime_env import RuntimeEnv

from modelyard.config import Runtime
from modelyard.environments.overlay import OVERLAY_VARIABLE, Overlay
from modelyard.environments.start import PYTHON_VARIABLE, py_executable
from modelyard.serve.builds import Builds
from modelyard.serve.failures import find_setup_failure
from modelyard.serve.runtimes import find_overlay, to_runtime_env


def runtime_env(**runtime: Any) -> RuntimeEnv:
    found = Runtime.model_validate(runtime)
    return to_runtime_env(found, find_overlay("xgboost", found))


@pytest.mark.parametrize(
    ("runtime", "installer", "requirements"),
    [
        ({"version": "3.0.5"}, "pip", ("xgboost-cpu==3.0.5",)),
        ({"pip": ["scipy<1.15"], "version": "3.0.*"}, "pip", ("xgboost-cpu==3.0.*", "scipy<1.15")),
        ({"uv": ["a"], "version": "3"}, "uv", ("xgboost-cpu==3", "a")),
        ({"uv": ["a", "b"]}, "uv", ("a", "b")),
    ],
)
def test_packages_become_an_overlay(runtime: dict[str, Any], installer: str, requirements: tuple[str, ...]) -> None:
    overlay = Overlay(installer, requirements, "xgboost", {"PIP_INDEX_URL": "https://pypi.example.com"})
    variables = {"PIP_INDEX_URL": "https://pypi.example.com", "OMP_NUM_THREADS": "1"}
    assert runtime_env(**runtime, env_vars=variables) == {
        "py_executable": py_executable(),
        "env_vars": {**variables, OVERLAY_VARIABLE: overlay.to_json()},
    }


CONDA = {"channels": ["conda-forge"], "dependencies": ["python=3.11"]}


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ({}, {}),
        ({"env_vars": {"A": "1"}}, {"env_vars": {"A": "1"}}),
        ({"image_uri": "team/model:1"}, {"image_uri": "team/model:1"}),
        ({"image_uri": "a:1", "env_vars": {"A": "1"}}, {"image_uri": "a:1", "env_vars": {"A": "1"}}),
        (
            {"py_executable": "/envs/a/bin/python -O"},
            {"py_executable": py_executable(), "env_vars": {PYTHON_VARIABLE: "/envs/a/bin/python -O"}},
        ),
        (
            {"conda": "models", "env_vars": {"A": "1"}},
            {"conda": "models", "py_executable": py_executable(), "env_vars": {"A": "1", PYTHON_VARIABLE: "python"}},
        ),
        ({"conda": CONDA}, {"conda": CONDA, "py_executable": py_executable(), "env_vars": {PYTHON_VARIABLE: "python"}}),
    ],
    ids=str,
)
def test_the_rest_is_rays(runtime: dict[str, Any], expected: dict[str, Any]) -> None:
    found = runtime_env(**runtime)
    assert {key: value for key, value in found.items() if key != "_ray_commit"} == expected
    assert RuntimeEnv.deserialize(found.serialize()) == found


def test_a_conda_folder_has_to_be_there() -> None:
    with pytest.raises(ValueError, match="/nowhere/env"):
        runtime_env(conda="/nowhere/env")


def test_ray_starts_the_check_inside_the_conda_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDA_EXE", "/conda/bin/conda")
    found, context = runtime_env(conda="models"), RuntimeEnvContext()
    for plugin in (CondaPlugin(str(tmp_path)), PyExecutablePlugin()):  # in the order of Ray's agent
        plugin.modify_context([], found, context)
    assert context.py_executable == py_executable()
    assert "models" in " ".join(context.command_prefix)


def test_ray_starts_an_image_by_podman(tmp_path: Path) -> None:
    plugin, context = ImageURIPlugin(str(tmp_path)), RuntimeEnvContext()
    plugin.worker_path = "/in/the/image/default_worker.py"
    plugin.modify_context([], runtime_env(image_uri="team/model:1"), context)
    assert context.py_executable.startswith("podman run ")
    assert context.py_executable.endswith("--entrypoint python team/model:1")


def look_until_done(builds: Builds, wanted: Mapping[str, Overlay]) -> tuple[set[str], dict[str, str]]:
    """What was said of those that waited, and the failures."""
    said: set[str] = set()
    failed: dict[str, str] = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        waiting, now_failed = builds.look({name: one for name, one in wanted.items() if name not in failed})
        said |= set(waiting.values())
        failed |= now_failed
        if not waiting:
            return said, failed
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.usefixtures("environments")
def test_applications_wait_for_one_build_and_a_failure_is_theirs(offline: dict[str, str]) -> None:
    good, bad = Overlay("pip", ("tiny",), "", offline), Overlay("pip", ("tiny==9",), "", offline)
    builds = Builds()
    said, failed = look_until_done(builds, {"a@1": good, "b@1": good, "c@1": bad, "d@1": bad})
    assert {text.rpartition(" since ")[0] for text in said} == {"its environment is being built,"}
    assert good.is_ready
    assert set(failed) == {"c@1", "d@1"}
    assert "tiny==9" in failed["c@1"]
    assert builds.look({"a@1": good}) == ({}, {})


@pytest.mark.usefixtures("environments")
def test_a_build_that_nobody_wants_any_more_ends(offline: dict[str, str]) -> None:
    overlay = Overlay("pip", ("tiny",), "", offline)
    builds = Builds()
    assert set(builds.look({"a@1": overlay})[0]) == {"a@1"}
    builds.close()
    assert not overlay.is_ready
    assert look_until_done(builds, {"a@1": overlay})[1] == {}
    assert overlay.is_ready


NO_CONDA = """The deployment failed to start 2 times in a row. Error:
Exception when allocating Replica(id='j', deployment='Model', app='m@1'): Failed to set up runtime environment.
Could not create the actor because its associated runtime env failed to be created.
[Node 192.0.2.2] Traceback (most recent call last):
  File "ray/conda_utils.py", line 193, in get_conda_info_json
    exec_cmd([conda_path, "--help"], throw_on_error=False)
FileNotFoundError: [Errno 2] No such file or directory: 'conda'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "ray/conda_utils.py", line 195, in get_conda_info_json
    raise ValueError(f"Could not find Conda executable at {conda_path}.")
ValueError: Could not find Conda executable at /opt/conda/bin/conda.
"""
NO_PACKAGE = """Could not create the actor because its associated runtime env failed to be created.
[Node 192.0.2.2] Traceback (most recent call last):
  File "/opt/ray/utils.py", line 110, in check_output_cmd
ray._private.runtime_env.utils.SubprocessCalledProcessError: Run cmd[3] failed with the following details.
Last 50 lines of stdout:
    ResolvePackageNotFound:
      - tiny==9
"""


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (NO_CONDA, "its environment cannot be made: Could not find Conda executable at conda."),
        (
            NO_PACKAGE,
            (
                "its environment cannot be made: Run cmd[3] failed with the following details. Last 50 lines of "
                "stdout: ResolvePackageNotFound: - tiny==9"
            ),
        ),
        (
            "The actor is not schedulable: Could not create the actor because worker startup repeatedly failed.",
            "its process cannot be started: worker startup repeatedly failed",
        ),
        ("The deployment failed to start 2 times in a row.", None),
    ],
)
def test_serves_message_tells_why_a_process_was_not_started(message: str, reason: str | None) -> None:
    assert find_setup_failure(message) == reason
