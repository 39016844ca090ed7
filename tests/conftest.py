# SPDX-License-Identifier: Apache-2.0
"""Options of the whole suite, and packages to install."""

import os
import zipfile
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--framework",
        help="in tests/frameworks: the cases and the folder of this framework alone. Heavy ones run only so, each in a "
        "process of its own as on the platform: some of their libraries cannot be imported into one",
    )


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with packages that nobody else has: ``tiny`` 1.0 and 2.0, ``needy`` that an old pydantic needs."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, version, needs in (("tiny", "1.0", ""), ("tiny", "2.0", ""), ("needy", "1.0", "pydantic<2")):
        info = f"{name}-{version}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (
            needs and f"Requires-Dist: {needs}\n"
        )
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", f'__version__ = "{version}"\n')
            wheel.writestr(f"{info}/METADATA", metadata)
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def offline(wheels: Path) -> dict[str, str]:
    """Environment variables with which installers look into that folder and nowhere else."""
    return {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_CONFIG_FILE": os.devnull,
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(wheels),
    }


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where overlays are kept, during this test."""
    folder = tmp_path / "environments"
    monkeypatch.setenv("MODELYARD_ENVIRONMENTS", str(folder))
    return folder
