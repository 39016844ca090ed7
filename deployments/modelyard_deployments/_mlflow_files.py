# SPDX-License-Identifier: Apache-2.0
"""MLflow: from a folder with an ``MLmodel`` file to a loaded pyfunc, quietly, and what to say where that fails."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
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
class Differences:
    """What the model's environment was that this Python is not.

    Attributes:
        missing: Requirements of its ``requirements.txt`` of packages that are not installed.
        different: Requirements that another version is installed of, with that version.
        versions: Other versions of Python and mlflow, in words.
    """

    missing: tuple[str, ...] = ()
    different: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"not installed: {', '.join(self.missing)}"] if self.missing else []
        parts += [f"{wanted} (installed is {got})" for wanted, got in self.different.items()]
        return "; ".join((*parts, *self.versions))

    def advise(self, *, missing_only: bool = False) -> str:
        """The setting that gives the model what it asks for, after what is wrong; nothing where no package does.

        Args:
            missing_only: The packages that are there may stay as they are.
        """
        wanted = [*self.missing, *(() if missing_only and self.missing else self.different)]
        return f"; with `runtime: {{pip: {json.dumps(wanted)}}}` it gets what it asks for" if wanted else ""


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
    """No warnings: those of mlflow speak to whoever saves models.

    They are collected and forgotten, since mlflow sets filters of its own over ours.
    """
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore")
        yield


def read_mlmodel(folder: Path) -> Any:
    """The model's description, ``mlflow.models.Model``.

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
    """The loaded ``PyFuncModel``; says in the log where its environment was another one.

    Args:
        folder: Holds the MLmodel file.
        description: From :func:`read_mlmodel`.
        settings: The ``model_config`` of mlflow, over the one that was saved.

    Raises:
        ModelLoadError: It cannot be loaded, or cannot answer what was saved as an example of its input; names what
            its requirements differ in, and the setting that makes them fit.
    """
    import mlflow.pyfunc

    differ = find_differences(folder, description)
    if str(differ):
        _LOG.warning("%s: the model's environment was another one: %s%s", folder.name, differ, differ.advise())
    try:
        with quiet():
            pyfunc = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True, model_config=dict(settings) or None)
    except Exception as exc:  # loading runs the model's own code
        what = f"be loaded by {description.flavors[_PYFUNC]['loader_module']}"
        raise ModelLoadError(_explain(exc, what, differ)) from exc
    _check_example(pyfunc, differ)
    return pyfunc


def _check_example(pyfunc: Any, differ: Differences) -> None:
    """Asks the model what was saved with it; what another version has pickled often loads, and fails only here.

    Raises:
        ModelLoadError: Its environment was another one, and something in it is not there.
    """
    try:
        with quiet():
            if pyfunc.input_example is not None:
                pyfunc.predict(pyfunc.input_example)
    except (AttributeError, ImportError) as exc:
        if differ.advise():
            raise ModelLoadError(_explain(exc, "answer the example that was saved with it", differ)) from exc
        _log_refusal(exc)
    except Exception as exc:  # noqa: BLE001  # the model's own code; it may only want what is not there yet
        _log_refusal(exc)


def _log_refusal(exc: Exception) -> None:
    _LOG.warning("the model does not answer the example that was saved with it: %s: %s", type(exc).__name__, exc)


_SAME: Final = {"xgboost": "xgboost-cpu", "tensorflow-cpu": "tensorflow", "tensorflow": "tensorflow-cpu"}
"""Packages that hold the same module."""
_TOLD_APART: Final = ("mlflow", "mlflow-skinny")
"""The description has this version."""


def find_differences(folder: Path, description: Any) -> Differences:
    """The model's environment held against this one.

    Args:
        folder: Where ``requirements.txt`` is, if there is one.
        description: From :func:`read_mlmodel`.
    """
    missing, different = [], {}
    for requirement in _read_requirements(folder / "requirements.txt"):
        name = canonicalize_name(requirement.name)
        if name in _TOLD_APART:
            continue
        installed = _find_installed(name) or _find_installed(_SAME.get(name, name))
        if installed is None:
            missing.append(str(requirement))
        elif not requirement.specifier.contains(installed.partition("+")[0], prereleases=True):
            different[str(requirement)] = installed
    return Differences(tuple(missing), different, tuple(_find_versions(description)))


def _find_installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


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


def _find_versions(description: Any) -> Iterator[str]:
    import mlflow

    written = description.flavors[_PYFUNC].get("python_version")
    here = platform.python_version()
    if written and str(written).split(".")[:2] != here.split(".")[:2]:
        yield f"saved by Python {written} (this is {here})"
    if description.mlflow_version and str(description.mlflow_version) != mlflow.__version__:
        yield f"saved by mlflow {description.mlflow_version} (installed is {mlflow.__version__})"


def _explain(exc: Exception, what: str, differ: Differences) -> str:
    asked = f" ({differ})" if str(differ) else ""
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        advice = differ.advise(missing_only=True) or ": name the package that holds it in the model's runtime.pip"
        return f'the model needs the module "{exc.name}", which is not installed here{asked}{advice}'
    first = str(exc).strip().split("\n")[0]
    reason = f"the model cannot {what}: {type(exc).__name__}: {first}"
    return f"{reason}; its environment was another one{asked}{differ.advise()}" if asked else reason
