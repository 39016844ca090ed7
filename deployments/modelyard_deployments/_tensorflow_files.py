# SPDX-License-Identifier: Apache-2.0
"""TensorFlow: which folder or file is the model, and what is wrong with it before TensorFlow reads it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from modelyard.errors import ModelLoadError

KERAS_SUFFIXES: Final = (".keras", ".h5", ".hdf5")
_GRAPHS: Final = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")
_EXPECTED: Final = "expected a SavedModel (saved_model.pb) or a Keras model (.keras, .h5)"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_CONFIG: Final = "config.json"


def find_model(path: Path) -> Path:
    """The folder of a SavedModel, or the file of a Keras model.

    Args:
        path: That folder or file, a SavedModel's ``saved_model.pb``, or a folder that holds one model: a Keras file or
            the folder of a SavedModel.

    Raises:
        ModelLoadError: There is none, it cannot be told which, or a file is obviously not what its name says.
    """
    if path.is_file():
        return _check_file(path)
    if _is_saved_model(path):
        _check_graph(path)
        return path
    found = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    models = [entry for entry in found if _is_saved_model(entry) or (entry.is_file() and _is_keras(entry))]
    if not models:
        raise ModelLoadError(f"{_EXPECTED}, got neither; the directory holds {_listing(found)}")
    if len(models) > 1:
        raise ModelLoadError(
            f"expected one model, got {len(models)}: {_listing(models)}; choose one with the option model_file"
        )
    return find_model(models[0])


def _is_saved_model(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in _GRAPHS)


def _is_keras(path: Path) -> bool:
    return path.name.lower().endswith(KERAS_SUFFIXES)


def _check_file(path: Path) -> Path:
    if path.name in _GRAPHS:
        return find_model(path.parent)
    if not _is_keras(path):
        raise ModelLoadError(f"{_EXPECTED}, got {path.name}")
    head = _check_content(path)
    if path.name.lower().endswith(".keras"):
        _check_archive(path)
    elif not head.startswith(_HDF5):
        raise ModelLoadError(f"{path.name}: expected a file in HDF5's format, got something else")
    return path


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as exc:
        raise ModelLoadError(f"{path.name}: expected a Keras archive, got something else or a part of one") from exc
    if _CONFIG not in names:
        raise ModelLoadError(f"{path.name}: expected a Keras archive with {_CONFIG}, got a zip archive without")


def _check_graph(folder: Path) -> None:
    graph = next(folder / name for name in _GRAPHS if (folder / name).is_file())
    for path in (graph, *sorted((folder / "variables").glob("variables.*"))):
        _check_content(path, may_be_empty=path != graph)


def _check_content(path: Path, may_be_empty: bool = False) -> bytes:
    """How the file begins."""
    with path.open("rb") as stream:
        head = stream.read(64)
    if not head and not may_be_empty:
        raise ModelLoadError(f"{path.name}: the file is empty")
    if head.startswith(b"version https://git-lfs"):
        raise ModelLoadError(f"{path.name}: the file is a pointer of Git LFS; fetch the model itself with git lfs pull")
    return head


def _listing(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:10]) + (" …" if len(names) > 10 else "") if names else "nothing"
