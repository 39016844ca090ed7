# SPDX-License-Identifier: Apache-2.0
"""MLflow: from a folder with an ``MLmodel`` file to a loaded pyfunc, quietly, and what to say where that fails."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from modelyard.errors import ModelLoadError

_LOG: Final = logging.getLogger(__name__)
_MLMODEL: Final = "MLmodel"
_PYFUNC: Final = "python_function"

_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Read by mlflow at its import: unless told otherwise it reports its use over the network and logs to the terminal."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the model's ``requirements.txt`` asks for and this Python does not have.

    Attributes:
        missing: Requirements of packages that are not installed.
        different: Requirements that another version is installed of, with that version.
    """

    missing: tuple[str, ...] = ()
    different: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"not installed: {', '.join(self.missing)}"] if self.missing else []
        parts += [f"{wanted} (installed is {got})" for wanted, got in self.different.items()]
        return "; ".join(parts)


def import_mlflow() -> Any:
    """The pyfunc module, imported without mlflow's telemetry and log handlers.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with quiet():
        import mlflow.pyfunc
        import mlflow.tracing

        mlflow.tracing.disable()
    logger = logging.getLogger("mlflow")
    logger.handlers, logger.propagate = [_Forward()], False
    logger.setLevel(logging.WARNING)
    return mlflow.pyfunc


class _Forward(logging.Handler):
    """Hands mlflow's records to our own logger, which writes where the replica's records go."""

    def emit(self, record: logging.LogRecord) -> None:
        """Of a level that is logged at all."""
        _LOG.handle(record)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings: those of mlflow speak to whoever saves models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_mlmodel(folder: Path) -> Any:
    """The model's description, ``mlflow.models.Model``; says in the log what its requirements differ in.

    Raises:
        ModelLoadError: There is none, it is damaged, or it has no pyfunc flavour.
    """
    path = folder / _MLMODEL
    if not path.is_file():
        what = "a file" if folder.is_file() else "a folder without one"
        raise ModelLoadError(
            f"expected a folder with an MLmodel file, as mlflow's save_model writes it, got {what}: {folder.name}"
        )
    import mlflow.models

    try:
        description = mlflow.models.Model.load(str(path))
        flavors = description.flavors
        _ = description.signature
    except Exception as exc:  # whatever the file's content makes the parser and mlflow raise
        reason = str(exc).strip().split("\n")[0]
        raise ModelLoadError(f"MLmodel cannot be read, it is damaged or incomplete: {reason}") from exc
    if not isinstance(flavors, dict) or _PYFUNC not in flavors:
        got = ", ".join(map(str, flavors)) if flavors else "none"
        raise ModelLoadError(f"MLmodel: expected the flavor {_PYFUNC}, got {got}: save the model with it")
    if "loader_module" not in flavors[_PYFUNC]:
        raise ModelLoadError(f"MLmodel: the flavor {_PYFUNC} has no loader_module")
    return description


def load_pyfunc(folder: Path, description: Any, settings: Mapping[str, Any]) -> Any:
    """The loaded ``PyFuncModel``.

    Args:
        folder: Holds the MLmodel file.
        description: From :func:`read_mlmodel`.
        settings: The ``model_config`` of mlflow, over the one that was saved.

    Raises:
        ModelLoadError: It cannot be loaded; says so where its requirements differ from what is installed.
    """
    import mlflow.pyfunc

    differ = find_differences(folder)
    _log_differences(folder.name, description, differ)
    try:
        with quiet():
            return mlflow.pyfunc.load_model(str(folder), suppress_warnings=True, model_config=dict(settings) or None)
    except Exception as exc:  # loading runs the model's own code
        raise ModelLoadError(_explain(exc, description, differ)) from exc


def find_differences(folder: Path) -> Requirements:
    """The model's requirements held against this Python's packages; empty where it tells none."""
    missing, different = [], {}
    for requirement in _read_requirements(folder / "requirements.txt"):
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if not _is_there_under_another_name(requirement.name):
                missing.append(str(requirement))
            continue
        public = installed.partition("+")[0]
        if not requirement.specifier.contains(public, prereleases=True):
            different[str(requirement)] = installed
    return Requirements(tuple(missing), different)


_SAME: Final = {"mlflow": "mlflow-skinny", "xgboost": "xgboost-cpu", "tensorflow-cpu": "tensorflow"}
"""Packages that hold the same module, as far as models need it."""


def _is_there_under_another_name(name: str) -> bool:
    other = _SAME.get(canonicalize_name(name), "")
    return bool(other) and any(importlib.metadata.distributions(name=other))


def _read_requirements(path: Path) -> Iterator[Requirement]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        with contextlib.suppress(InvalidRequirement):  # an option, a local folder, a comment
            requirement = Requirement(line.split(" #")[0].strip())
            if requirement.marker is None or requirement.marker.evaluate():
                yield requirement


def _log_differences(name: str, description: Any, differ: Requirements) -> None:
    import mlflow

    written = description.flavors[_PYFUNC].get("python_version")
    here = platform.python_version()
    notes = [str(differ)] if str(differ) else []
    if written and str(written).split(".")[:2] != here.split(".")[:2]:
        notes.append(f"saved by Python {written} (this is {here})")
    if description.mlflow_version and str(description.mlflow_version) != mlflow.__version__:
        notes.append(f"saved by mlflow {description.mlflow_version} (installed is {mlflow.__version__})")
    if notes:
        _LOG.warning("%s: the model's environment was another one: %s", name, "; ".join(notes))


def _explain(exc: Exception, description: Any, differ: Requirements) -> str:
    advice = "give the model its own packages with runtime, from its requirements.txt"
    asked = f" (its requirements: {differ})" if str(differ) else ""
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        return f'the model needs the module "{exc.name}", which is not installed here{asked}: {advice}'
    loader = description.flavors[_PYFUNC]["loader_module"]
    first = str(exc).strip().split("\n")[0]
    reason = f"the model cannot be loaded by {loader}: {type(exc).__name__}: {first}"
    return f"{reason}; it may need other versions{asked}: {advice}" if asked else reason
