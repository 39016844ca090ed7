# SPDX-License-Identifier: Apache-2.0
"""Makes the environment of the published clients that cannot share a process with ours.

``kserve`` and ``tritonclient`` register the same protobuf messages under different definitions. Run
``python tests/e2e/install_clients.py``; it does nothing where the environment is already there.
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".clients" / "kserve"
PYTHON = FOLDER / "bin" / "python"
REQUIREMENTS = ("kserve==0.21.0",)
_DONE = FOLDER / ".installed"


def is_installed() -> bool:
    """Whether the environment holds exactly these requirements."""
    return _DONE.is_file() and _DONE.read_text().split() == list(REQUIREMENTS)


def install() -> None:
    """Makes the environment where it is missing or older.

    Raises:
        CalledProcessError: pip could not install a requirement.
    """
    if is_installed():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *REQUIREMENTS], check=True)
    _DONE.write_text("\n".join(REQUIREMENTS))


if __name__ == "__main__":
    install()
