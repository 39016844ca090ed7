# SPDX-License-Identifier: Apache-2.0
"""From a model's ``runtime`` to what Ray is told: ``runtime_env``.

Ray takes ``conda`` and ``image_uri`` as they are. For ``pip``, ``uv`` and ``version`` it would copy its whole virtual
environment (4.6 GB and half a minute where every framework is installed), so they become overlays. Everything but an
image begins with :mod:`modelyard.environments.start`, which refuses a Python that cannot talk to the platform; in Ray's
hands it would end before it says why, and be started again and again.
"""

from __future__ import annotations

from typing import Any, Final

from ray.runtime_env import RuntimeEnv

from modelyard.config import Runtime
from modelyard.environments.overlay import OVERLAY_VARIABLE, Overlay
from modelyard.environments.start import PYTHON_VARIABLE, py_executable
from modelyard.errors import InvalidConfig
from modelyard.model import get_framework

_INSTALLERS_VARIABLES: Final = ("PIP_", "UV_")


def find_overlay(framework: str, runtime: Runtime) -> Overlay | None:
    """The packages that this model's replicas have before the platform's; None where it asks for none.

    Raises:
        InvalidConfig: It asks for a version, and its framework is unknown or has no library of its own.
    """
    requirements = runtime.uv or runtime.pip or ()
    if runtime.version is None and not requirements:
        return None
    known = get_framework(framework)
    if runtime.version is not None:
        if not known.distribution:
            raise InvalidConfig((f'runtime.version: framework "{framework}" has no library of its own',))
        requirements = (f"{known.distribution}=={runtime.version}", *requirements)
    variables = {name: value for name, value in runtime.env_vars.items() if name.startswith(_INSTALLERS_VARIABLES)}
    return Overlay("uv" if runtime.uv else "pip", requirements, known.requires, variables)


def to_runtime_env(runtime: Runtime, overlay: Overlay | None) -> RuntimeEnv:
    """What Ray starts the replicas in; empty where that is the platform's own Python as it is.

    Args:
        runtime: As the model's revision has it.
        overlay: Its overlay.

    Raises:
        ValueError: ``conda`` names a folder that is not there.
    """
    variables = dict(runtime.env_vars)
    found: dict[str, Any] = {}
    if overlay is not None:
        variables[OVERLAY_VARIABLE] = overlay.to_json()
    elif runtime.py_executable is not None:
        variables[PYTHON_VARIABLE] = runtime.py_executable
    elif runtime.conda is not None:
        found["conda"] = runtime.conda
        variables[PYTHON_VARIABLE] = "python"  # Ray activates the environment before it starts it
    elif runtime.image_uri is not None:
        found["image_uri"] = runtime.image_uri
    if OVERLAY_VARIABLE in variables or PYTHON_VARIABLE in variables:
        found["py_executable"] = py_executable()
    if variables:
        found["env_vars"] = variables
    return RuntimeEnv(**found)
