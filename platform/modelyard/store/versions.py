# SPDX-License-Identifier: Apache-2.0
"""Folders of versions: ``models/resnet/1``, ``models/resnet/2`` and so on.

Source: TensorFlow Serving "Serving a model", model base path: numeric children are versions, leading zeros allowed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from modelyard.errors import ModelLoadError

_MAX_VERSION: Final = 2**63 - 1


def list_versions(path: Path) -> dict[int, str]:
    """Names of the numeric folders in a folder, by their number; empty where there are none.

    Of two names for one number (``7`` and ``007``) the shorter counts.

    Raises:
        ModelLoadError: The folder cannot be read.
    """
    if not path.is_dir():
        return {}
    try:
        names = [entry.name for entry in os.scandir(path) if entry.name.isdecimal() and entry.is_dir()]
    except OSError as exc:
        raise ModelLoadError(f"the artifact cannot be read: {exc.strerror}") from exc
    found: dict[int, str] = {}
    for name in sorted(names, key=len):
        if name.isascii() and int(name) <= _MAX_VERSION:
            found.setdefault(int(name), name)
    return found


def is_version_folder(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a folder holds versions of a model rather than a model.

    Args:
        path: The artifact.
        suffixes: Endings of the files that a model of its framework is; empty where one is a whole folder, and then any
            file says that this is one.
    """
    if not list_versions(path):
        return False
    files = [entry.name.lower() for entry in path.iterdir() if entry.is_file() and not entry.name.startswith(".")]
    return not any(name.endswith(suffixes) for name in files) if suffixes else not files


def list_files(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of change of what is below a folder: equal while nobody writes there."""
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                info = (Path(folder) / name).stat()
            except FileNotFoundError:  # renamed or removed while we look
                continue
            found.append((f"{folder}/{name}", info.st_size, info.st_mtime_ns))
    return tuple(sorted(found))
