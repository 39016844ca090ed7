# SPDX-License-Identifier: Apache-2.0
"""Where a ``tritonserver`` is, and how to get one from its PyPI package: ``nvidia-pytriton``.

The package's server has the python backend only. It needs an environment of its own: its models run in a Python with
numpy 1 (with numpy 2 it says READY and returns wrong data), its libraries are found by ``LD_LIBRARY_PATH``, and beside
the backend must lie the program for this version of Python. Nothing of the package's own Python is used.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from modelyard.errors import ModelLoadError

PROGRAM: Final = "tritonserver"
INSTALL: Final = "python -m modelyard_deployments.triton install"

_WHEEL: Final = "nvidia-pytriton==0.7.0"
_BESIDE: Final = ("numpy<2",)
_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True, slots=True)
class Installation:
    """A server and what it needs.

    Attributes:
        program: The executable.
        backends: Its ``--backend-directory``; None where it knows itself.
        environment: Variables it needs.
    """

    program: Path
    backends: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def hide_gpus(self) -> Installation:
        """The same for a replica that has been given none."""
        return replace(self, environment={**self.environment, "CUDA_VISIBLE_DEVICES": ""})


class Folder:
    """A Triton installed from the package.

    Args:
        path: Where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done = path / ".installed"
        self._backends = path / "backends"
        self._packages = path / "lib" / f"python{_PYTHON}" / "site-packages"
        self._wheel = self._packages / "pytriton" / "tritonserver"

    @property
    def is_installed(self) -> bool:
        """It holds exactly what :meth:`install` puts there, for this version of Python."""
        return (
            self._done.is_file()
            and self._done.read_text().splitlines() == [_WHEEL, *_BESIDE]
            and self._packages.is_dir()
        )

    def install(self) -> None:
        """Makes the environment where it is missing or another one.

        Raises:
            CalledProcessError: pip could not install a requirement.
        """
        if self.is_installed:
            return
        _run(sys.executable, "-m", "venv", "--clear", str(self.path))
        pip = (str(self.path / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _run(*pip, *_BESIDE)
        _run(*pip, "--no-deps", _WHEEL)
        shutil.copytree(self._wheel / "backends", self._backends)
        stub = self._wheel / "python_backend_stubs" / _PYTHON / "triton_python_backend_stub"
        shutil.copy(stub, self._backends / "python")
        for program in (self._backends / "python" / stub.name, self._wheel / "bin" / PROGRAM):
            program.chmod(0o755)
        self._done.write_text("\n".join((_WHEEL, *_BESIDE)))

    def to_installation(self) -> Installation:
        """What starts its server; models find their Python by ``PATH`` alone, they ignore ``PYTHONPATH``."""
        libraries = (self._packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
        environment = {
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PATH": f"{self.path / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        return Installation(self._wheel / "bin" / PROGRAM, self._backends, environment)


def default_folder() -> Folder:
    """Where it is installed unless told otherwise: in this Python's environment."""
    return Folder(Path(sys.prefix) / "triton")


def find_installation(server: str | None) -> Installation:
    """The server to start.

    Args:
        server: The option ``server``: an executable, or a folder that was installed from the package. None for the
            one on ``PATH`` (NVIDIA's image), else the one in this Python's environment.

    Raises:
        ModelLoadError: There is none.
    """
    if server is not None:
        return _open(server)
    if found := shutil.which(PROGRAM):
        return Installation(Path(found))
    if (folder := default_folder()).is_installed:
        return folder.to_installation()
    raise ModelLoadError(
        f'no Triton on this machine: expected "{PROGRAM}" on PATH, as in NVIDIA\'s image, or one that `{INSTALL}` has '
        "installed in this Python's environment, or the path of either in the option server; a Triton elsewhere is "
        "reached by its URL, uri: grpc://host:8001"
    )


def _open(server: str) -> Installation:
    path = Path(server).absolute()
    if path.is_dir():
        if (folder := Folder(path)).is_installed:
            return folder.to_installation()
        raise ModelLoadError(
            f"option server: expected an executable, or a folder that `{INSTALL} DIR` has filled for Python {_PYTHON}, "
            f'got the folder "{server}"'
        )
    if not os.access(path, os.X_OK):
        state = "which cannot be executed" if path.exists() else "which does not exist"
        raise ModelLoadError(f'option server: expected an executable, got "{server}", {state}')
    return Installation(path)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)  # noqa: S603  # this Python's venv and pip


def main() -> None:
    """``install [DIR]``."""
    parser = argparse.ArgumentParser(prog="python -m modelyard_deployments.triton", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    install = commands.add_parser("install", help=f"install {_WHEEL} in an environment of its own")
    default = default_folder().path
    install.add_argument("directory", nargs="?", type=Path, default=default, metavar="DIR", help="where (%(default)s)")
    folder = Folder(parser.parse_args().directory.absolute())
    try:
        folder.install()
    except subprocess.CalledProcessError as exc:
        sys.exit(f"Triton cannot be installed: pip ended with status {exc.returncode}")
