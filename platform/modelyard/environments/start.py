# SPDX-License-Identifier: Apache-2.0
"""What Ray starts for a replica instead of Python: becomes the Python of the model, with Ray's arguments.

``runtime_env.py_executable``; which Python it is to be stands in the process's environment variables. On the node of
the replica, so an overlay that is not there yet is built here. Where there is no such Python the platform's own is
started, with the reason in an environment variable: the replica then fails with it, as models do that cannot be
loaded, instead of Ray starting one process after another that ends before it says anything.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from modelyard.environments.overlay import OVERLAY_VARIABLE, Overlay, locked
from modelyard.errors import ModelLoadError
from modelyard.version import __version__

PYTHON_VARIABLE: Final = "MODELYARD_PYTHON"
"""The Python that a replica is to be started with, and its arguments, as for a shell."""
FAILURE_VARIABLE: Final = "MODELYARD_ENVIRONMENT_FAILURE"
_PROBE_TIMEOUT_S: Final = 60
_PROBE: Final = """
import importlib.metadata as m, json, platform
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
found = {name: version(name) for name in ("ray", "modelyard", "numpy")}
print("\\n" + json.dumps({"python": platform.python_version(), **found}))
"""


def py_executable() -> str:
    """What ``runtime_env.py_executable`` is to be."""
    return f"{shlex.quote(sys.executable)} -P -m {__name__}"


def check_started() -> None:
    """For the replica, before it loads its model.

    Raises:
        ModelLoadError: This process was to be another Python, and why it is not.
    """
    reason = os.environ.get(FAILURE_VARIABLE)
    if reason is not None:
        raise ModelLoadError(reason)


def start_build(overlay: Overlay) -> subprocess.Popen[str]:
    """Begins to build in a process group of its own; its output is why it failed."""
    command = [sys.executable, "-P", "-m", "modelyard.environments.build"]
    return subprocess.Popen(  # noqa: S603  # this module's sibling
        command,
        env=os.environ | {OVERLAY_VARIABLE: overlay.to_json()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def reason_of(process: subprocess.Popen[str]) -> str:
    """Waits for a build to end; why it failed, empty where it did not."""
    said, _ = process.communicate()
    return (said or f"its environment cannot be built (exit status {process.returncode})") if process.returncode else ""


def prepare_overlay(overlay: Overlay) -> list[str]:
    """The Python of the overlay, which this process now keeps from being removed, for as long as it lives.

    Raises:
        ModelLoadError: It cannot be built.
    """
    if not overlay.is_ready and (reason := reason_of(start_build(overlay))):
        raise ModelLoadError(reason)
    with locked(overlay, alone=False) as lock:
        if not overlay.is_ready:
            raise ModelLoadError("its environment was removed while it started")
        overlay.mark_ready()  # used today
        os.set_inheritable(os.dup(lock), True)
    return [str(overlay.python)]


def check_python(command: Sequence[str]) -> list[str]:
    """The command, if replicas can talk to the platform from it.

    Raises:
        ModelLoadError: It does not run, or has another Python, Ray or Modelyard.
    """
    try:
        done = subprocess.run(  # noqa: S603  # the Python that whoever may register models has chosen
            [*command, "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_PROBE_TIMEOUT_S,
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else type(exc).__name__
        raise ModelLoadError(f'its Python "{command[0]}" cannot be run: {why}') from exc
    expected = {"python": platform.python_version(), "ray": version("ray"), "modelyard": __version__}
    wrong = [
        f"{name} {found[name] or 'missing'} (the platform has {need})"
        for name, need in expected.items()
        if (_minor(found[name]) != _minor(need) if name == "python" else found[name] != need)
    ]
    if not found["numpy"]:
        wrong.append("numpy missing")
    if wrong:
        raise ModelLoadError(f'its Python "{command[0]}" does not fit the platform: {", ".join(wrong)}')
    return list(command)


def _minor(python: str) -> list[str]:
    return python.split(".")[:2]


def prepare() -> list[str]:
    """The Python to become, as the environment variables say.

    Raises:
        ModelLoadError: There is none.
    """
    python = os.environ.pop(PYTHON_VARIABLE, None)
    if python is not None:
        return check_python(shlex.split(python))
    return prepare_overlay(Overlay.from_json(os.environ.pop(OVERLAY_VARIABLE)))


def main() -> None:
    """Becomes the Python of the model."""
    try:
        command = prepare()
    except (ModelLoadError, OSError) as exc:
        os.environ[FAILURE_VARIABLE] = str(exc)
        command = [sys.executable]
    os.execvp(command[0], [*command, *sys.argv[1:]])  # noqa: S606  # becoming it is the purpose


if __name__ == "__main__":
    main()
