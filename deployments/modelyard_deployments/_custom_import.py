# SPDX-License-Identifier: Apache-2.0
"""Finds the user's class, and says in words what stands in the way."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

from modelyard.errors import ModelLoadError
from modelyard.model import Model
from modelyard.openai import OpenAIModel
from modelyard.own import Model as OwnModel

_MODULE: Final = "model"
_BASES: Final = (Model, OwnModel, OpenAIModel)


def import_class(path: Path, entrypoint: str | None, installed: bool) -> type[Model]:
    """The class that is the model.

    Args:
        path: The artifact: a folder with Python files, or one Python file.
        entrypoint: Its module and name; None for the only one in ``model.py``, or in the file.
        installed: The module may be one of an installed package.

    Raises:
        ModelLoadError: There is none, or importing it raises.
    """
    name, _, attribute = (entrypoint or (path.stem if path.is_file() else _MODULE)).partition(":")
    module = _import_file(name, path) if path.is_file() else _import_from(name, path, installed)
    known = [
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Model) and one.__module__ == module.__name__
    ]
    if entrypoint is None:
        return _only(known, name)
    found = getattr(module, attribute, None)
    if isinstance(found, type) and issubclass(found, Model) and found not in _BASES:
        return found
    advice = f"; the module has {', '.join(one.__name__ for one in known)}" if known else ""
    raise ModelLoadError(
        f'entrypoint "{entrypoint}": expected a subclass of modelyard.Model, got {_describe(found, attribute)}{advice}'
    )


def _only(known: list[type[Model]], module: str) -> type[Model]:
    """The class that is meant where no name is said: the only one, or the one that is called ``Model``."""
    named = [one for one in known if one.__name__ == Model.__name__]
    if len(known) == 1 or named:
        return (named or known)[0]
    got = ", ".join(one.__name__ for one in known) or "none"
    raise ModelLoadError(
        f'module "{module}": expected one subclass of modelyard.Model, got {got}; '
        f"the option entrypoint names it, {module}:NAME"
    )


def _describe(found: object, name: str) -> str:
    if found is None:
        return "nothing of that name"
    if found in _BASES:
        return "modelyard.Model itself"
    if isinstance(found, type):
        return f"a class that is none: write class {name}(modelyard.Model)"
    return f"{type(found).__name__} {found!r}"


@contextmanager
def reasons(what: str, path: Path) -> Iterator[None]:
    """Turns whatever the user's code raises into what ``status`` shows, with the line of the user's that raised it.

    Args:
        what: What cannot be done then.
        path: The artifact.

    Raises:
        ModelLoadError: The user's code raised, or ends the process.
    """
    try:
        yield
    except ModelLoadError:
        raise
    except (Exception, SystemExit) as exc:  # it is any code
        advice = ""
        if isinstance(exc, ModuleNotFoundError):
            advice = "; a file of yours belongs into the model's folder, a package into runtime: {pip: [...]}"
        raise ModelLoadError(f"{what}: {_explain(exc, path.resolve())}{advice}") from exc


def _explain(exc: BaseException, root: Path) -> str:
    folder = root if root.is_dir() else root.parent
    text = f"{type(exc).__name__}: {exc}".replace(f"{folder}/", "")
    if isinstance(exc, SyntaxError):  # which says itself where
        return text
    frames = [one for one in traceback.extract_tb(exc.__traceback__) if Path(one.filename).is_relative_to(root)]
    return f"{text} ({Path(frames[-1].filename).relative_to(folder)}, line {frames[-1].lineno})" if frames else text


def _import_from(name: str, folder: Path, installed: bool) -> ModuleType:
    """The module of that name in the folder, which stays importable: a replica has one model only.

    Raises:
        ModelLoadError: There is none, it raises, or the name belongs to something else.
    """
    root = str(folder.resolve())
    if root not in sys.path:
        sys.path.insert(0, root)
    importlib.invalidate_caches()
    with reasons(f'module "{name}" cannot be imported', folder):
        module = importlib.import_module(name)
    origin = Path(getattr(module, "__file__", None) or ".").resolve()
    if not origin.is_relative_to(root) and not (installed and _is_absent(name, folder)):
        raise ModelLoadError(
            f'module "{name}" is not one in the model\'s folder: rename it where the name is taken; a module of an '
            "installed package is loaded with the option installed: true"
        )
    return module


def _is_absent(name: str, folder: Path) -> bool:
    """The folder has nothing of that name, so the module is meant that is installed."""
    top = name.partition(".")[0]
    return not (folder / top).exists() and not (folder / f"{top}.py").exists()


def _import_file(name: str, path: Path) -> ModuleType:
    """The module that the file is; nothing beside it can be imported, as nothing beside it is the artifact.

    Raises:
        ModelLoadError: It is no Python file or has another name, or it raises.
    """
    if path.suffix != ".py":
        raise ModelLoadError(f"expected a Python file or a folder with some, got the file {path.name}")
    if name != path.stem:
        raise ModelLoadError(f'the file {path.name} is the module "{path.stem}", and entrypoint names "{name}"')
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or name in sys.modules:
        raise ModelLoadError(f'the name of the file {path.name} is taken by another module "{name}": rename it')
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with reasons(f'module "{name}" cannot be imported', path):
        spec.loader.exec_module(module)
    return module
