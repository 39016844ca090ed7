# SPDX-License-Identifier: Apache-2.0
"""Builds one overlay, in a process of its own: ``python -m modelyard.environments.build``.

Which one stands in the environment variable that replicas also get; prints why on standard output and exits with 1
where that fails. In a process of its own, so that it goes on when
whoever waits for it ends, and can be ended with everything it has started.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from modelyard.environments.installers import INSTALLERS, explain
from modelyard.environments.overlay import OVERLAY_VARIABLE, Overlay, locked, platform_packages, remove_unused
from modelyard.errors import ModelLoadError

_OWN: Final = "modelyard"
_RAY_IMPORTS: Final = ("pyarrow",)
"""What each of Ray's workers imports where it is there: it goes on without it, but not where its import fails."""


def build(overlay: Overlay) -> None:
    """Makes the overlay, unless it is there; waits while another process makes it.

    Raises:
        ModelLoadError: With the installer's own message, or which package would no longer fit.
        OSError: No room, or no right to write there.
    """
    with locked(overlay, alone=True) as lock:
        if overlay.is_ready:
            return
        shutil.rmtree(overlay.folder, ignore_errors=True)  # what a build has left that was broken off
        try:
            _make(overlay, lock)
        except BaseException:
            shutil.rmtree(overlay.folder, ignore_errors=True)
            raise
        overlay.mark_ready()
    remove_unused()


def _make(overlay: Overlay, lock: int) -> None:
    venv.create(overlay.folder, symlinks=True)
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in platform_packages()]
    (overlay.packages / "platform.pth").write_text("".join(lines))
    _install(overlay, lock)
    misfit = find_misfit(companions(overlay.extra), [str(overlay.packages), *platform_packages()])
    if misfit:
        raise ModelLoadError(f"the environment does not fit together: {misfit}; add {misfit.split()[0]} to it")
    _hide_what_fails(overlay)


def _hide_what_fails(overlay: Overlay) -> None:
    """Hides the platform's packages that no replica could start with: pyarrow 26 beside the overlay's numpy 1, say.

    Their metadata does not say that they do not fit, so no installer replaces them.
    """
    for name in _RAY_IMPORTS:
        if _find(name, [str(overlay.packages)]) or not _find(name, platform_packages()):
            continue
        command = [str(overlay.python), "-P", "-c", f"import {name}"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603  # its own Python
        if done.returncode:
            reason = f"the platform's {name} is hidden here: {done.stderr.strip().rpartition(chr(10))[2]}"
            (overlay.packages / f"{name}.py").write_text(f"raise ModuleNotFoundError({reason!r}, name={name!r})\n")


def _install(overlay: Overlay, lock: int) -> None:
    installer = INSTALLERS[overlay.installer]
    command = installer.command(overlay.python)
    scratch = overlay.folder / "tmp"
    scratch.mkdir()
    # Naming what the framework needs lets the installer replace what would no longer fit.
    named = {canonicalize_name(Requirement(text).name) for text in overlay.requirements}
    also = [name for name in companions(overlay.extra) if installer.sees_platform and name not in named]
    requirements = [*overlay.requirements, *also]
    (scratch / "requirements.txt").write_text("\n".join(requirements))
    (scratch / "constraints.txt").write_text("\n".join(constraints()))
    done = subprocess.run(  # noqa: S603  # pip or uv; the requirements are in a file
        [*command, "-r", "requirements.txt", "-c", "constraints.txt"],
        cwd=scratch,
        env=os.environ | {"TMPDIR": str(scratch)} | dict(overlay.variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        pass_fds=(lock,),  # nobody else builds here while it lives, even when this process is killed
    )
    if done.returncode:
        raise ModelLoadError(explain(overlay.installer, done.stdout, requirements))
    shutil.rmtree(scratch, ignore_errors=True)


def companions(extra: str) -> list[str]:
    """The packages of an extra of this distribution that the platform has, by name."""
    needed = [Requirement(text) for text in importlib.metadata.requires(_OWN) or ()]
    named = [canonicalize_name(one.name) for one in needed if one.marker and not _holds(one) and _holds(one, extra)]
    return [name for name in named if _find(name, None)]


def constraints() -> list[str]:
    """What the platform itself asks of packages, so that nothing it needs is replaced by what it cannot use."""
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in (_OWN, "ray")]
    asked = {f"{needed.name}{needed.specifier}" for _, needed in _walk([_OWN], None) if needed.specifier}
    return pinned + sorted(asked)


def find_misfit(names: Sequence[str], path: Sequence[str]) -> str:
    """The first package that another, or one that it needs, no longer fits; empty where all do.

    Args:
        names: The packages to begin with.
        path: Folders with packages, in the order of ``sys.path``.
    """
    for needing, needed in _walk(names, path):
        found = _find(needed.name, path)
        if found and not needed.specifier.contains(found.version, prereleases=True):
            return f"{needing} needs {needed.name}{needed.specifier}, but it has {needed.name} {found.version}"
    return ""


def _walk(names: Sequence[str], path: Sequence[str] | None) -> Iterator[tuple[str, Requirement]]:
    """Everything that these packages need, and those in turn, as far as it is installed."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting: list[tuple[str, frozenset[str]]] = [(name, frozenset()) for name in names]
    while waiting:
        name, extras = waiting.pop()
        key = (canonicalize_name(name), extras)
        found = _find(name, path)
        if key in seen or found is None:
            continue
        seen.add(key)
        for needed in map(Requirement, found.requires or ()):
            if any(_holds(needed, extra) for extra in extras | {""}):
                yield f"{name} {found.version}", needed
                waiting.append((needed.name, frozenset(needed.extras)))


def _holds(needed: Requirement, extra: str = "") -> bool:
    return needed.marker is None or needed.marker.evaluate({"extra": extra})


def _find(name: str, path: Sequence[str] | None) -> importlib.metadata.Distribution | None:
    where = sys.path if path is None else list(path)
    return next(iter(importlib.metadata.Distribution.discover(name=name, path=where)), None)


def main() -> None:
    """Builds what the environment variable describes."""
    try:
        build(Overlay.from_json(os.environ[OVERLAY_VARIABLE]))
    except ModelLoadError as exc:
        sys.exit(_tell(str(exc)))
    except OSError as exc:  # no room, no right: without the path, which is the platform's own affair
        sys.exit(_tell(f"the environment cannot be written: {exc.strerror}"))


def _tell(reason: str) -> int:
    sys.stdout.write(reason)
    return 1


if __name__ == "__main__":
    main()
