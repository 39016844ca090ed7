# SPDX-License-Identifier: Apache-2.0
"""One overlay: which packages it holds, where it is, and whether it can be used.

An overlay is a virtual environment whose packages come before the platform's, which it sees as well. It is kept under
a digest of everything that decides what is in it, so that models with the same requirements share one, and replicas
after a restart find it. Whoever uses it holds its lock: builders alone, replicas together for as long as they run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import site
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

FOLDER_VARIABLE: Final = "MODELYARD_ENVIRONMENTS"
"""Where overlays are kept; without it, ``modelyard/environments`` in the user's cache folder."""
OVERLAY_VARIABLE: Final = "MODELYARD_OVERLAY"
"""The overlay that a replica is to be started in, as JSON."""
_UNUSED_AFTER_S: Final = 30 * 24 * 3600
_MARK: Final = "modelyard.json"


@dataclass(frozen=True)
class Overlay:
    """What is laid over the platform's packages.

    Attributes:
        installer: ``pip`` or ``uv``.
        requirements: What the model asks for.
        extra: The extra of this distribution that its framework needs; those packages have to go on fitting.
        variables: Environment variables for the installer.
    """

    installer: str
    requirements: tuple[str, ...]
    extra: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """As one line, the same for equal overlays; without ``$``, for Ray expands variables in those it sets."""
        return json.dumps(asdict(self), sort_keys=True).replace("$", "\\u0024")

    @classmethod
    def from_json(cls, text: str) -> Overlay:
        """What :meth:`to_json` wrote."""
        data = json.loads(text)
        return cls(data["installer"], tuple(data["requirements"]), data["extra"], data["variables"])

    @cached_property
    def key(self) -> str:
        """Of all that decides what is in it: the platform's packages too, for it is made to fit them."""
        content = [self.to_json(), sys.version, sys.prefix, _installed()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        return overlays_folder() / self.key

    @property
    def python(self) -> Path:
        """Its Python."""
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Where its own packages are."""
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / name / "site-packages"

    @property
    def is_ready(self) -> bool:
        """It was built to its end."""
        return (self.folder / _MARK).exists()

    def mark_ready(self) -> None:
        """It is complete; also what :func:`remove_unused` goes by."""
        (self.folder / _MARK).write_text(self.key)


def overlays_folder() -> Path:
    """Where all of them are, on this node."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(chosen) if chosen else (Path(cache) if cache else Path.home() / ".cache") / "modelyard" / "environments"


def platform_packages() -> tuple[str, ...]:
    """The folders with the packages of the platform's Python, this process's."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return tuple(folder for folder in [*site.getsitepackages(), *user] if Path(folder).is_dir())


def _installed() -> list[str]:
    """Names and versions of the platform's packages, by what their metadata's folders are called."""
    names = (entry.name for folder in platform_packages() for entry in Path(folder).iterdir())
    return sorted(name for name in names if name.endswith((".dist-info", ".egg-info")))


@contextmanager
def locked(overlay: Overlay, *, alone: bool) -> Iterator[int]:
    """Holds the overlay's lock, which processes that inherit the descriptor go on holding.

    Args:
        overlay: Whose.
        alone: For whoever builds it; the others share.
    """
    overlays_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock_of(overlay.folder).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield lock.fileno()


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def remove_unused(now: float | None = None) -> None:
    """Removes overlays that no replica has been started in for a month, and what broken-off builds have left."""
    oldest = (now or time.time()) - _UNUSED_AFTER_S
    for folder in [path for path in overlays_folder().iterdir() if path.is_dir()]:
        mark = folder / _MARK
        with _lock_of(folder).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # in use, or being built
                continue
            if not mark.exists() or mark.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)
