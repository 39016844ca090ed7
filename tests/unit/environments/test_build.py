# SPDX-License-Identifier: Apache-2.0
"""Real installations of small packages, with nothing but a folder of wheels."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from modelyard.environments import build as module
from modelyard.environments.build import build, constraints, find_misfit
from modelyard.environments.overlay import Overlay
from modelyard.environments.start import reason_of, start_build
from modelyard.errors import ModelLoadError

pytestmark = pytest.mark.usefixtures("environments")


@pytest.fixture
def tiny(offline: Mapping[str, str]) -> Overlay:
    return Overlay("pip", ("tiny==1.0",), "", offline)


def run(overlay: Overlay, code: str) -> str:
    return subprocess.run(
        [overlay.python, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.strip()


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_it_holds_what_was_asked_for_in_front_of_the_platforms(tiny: Overlay, installer: str) -> None:
    overlay = replace(tiny, installer=installer)
    build(overlay)
    assert overlay.is_ready
    assert run(overlay, "import tiny, ray, numpy, modelyard.serve; print(tiny.__version__)") == "1.0"
    assert sorted(path.name for path in overlay.packages.iterdir() if path.suffix in (".py", ".dist-info", ".pth")) == [
        "platform.pth",
        "tiny-1.0.dist-info",
        "tiny.py",
    ]


def test_it_is_built_once_however_many_ask(tiny: Overlay) -> None:
    assert [reason_of(process) for process in [start_build(tiny) for _ in range(3)]] == ["", "", ""]
    made = (tiny.folder / "modelyard.json").stat().st_mtime_ns
    build(tiny)
    assert (tiny.folder / "modelyard.json").stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("installer", "requirement", "reason"),
    [
        ("pip", "tiny==9", "pip: Could not find a version that satisfies the requirement tiny==9 (from versions: 1.0"),
        ("uv", "tiny==9", "there is no version of tiny==9"),
        ("pip", "needy", "needy 1.0 depends on pydantic<2; The user requested (constraint) pydantic<3,>=2.11"),
        ("uv", "needy", "pydantic<2"),
        ("pip", "ray==2.50", "The user requested (constraint) ray"),
    ],
)
def test_a_failure_is_told_in_the_installers_words_and_leaves_nothing(
    tiny: Overlay, installer: str, requirement: str, reason: str
) -> None:
    overlay = replace(tiny, installer=installer, requirements=(requirement,))
    told = reason_of(start_build(overlay))
    assert reason in told
    assert str(overlay.folder) not in told
    assert not overlay.folder.exists()


def test_what_a_broken_off_build_has_left_is_no_obstacle(tiny: Overlay) -> None:
    (tiny.folder / "lib").mkdir(parents=True)
    (tiny.folder / "lib" / "half").write_text("")
    build(tiny)
    assert not (tiny.folder / "lib" / "half").exists()


def test_without_the_right_to_write_it_says_so(tiny: Overlay, environments: Path) -> None:
    environments.parent.joinpath("file").write_text("")
    environments.symlink_to(environments.parent / "file")
    assert reason_of(start_build(tiny)) == "the environment cannot be written: File exists"


def test_a_platform_without_the_installer_says_which_is_missing(tiny: Overlay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ModelLoadError, match="pip is not installed"):
        build(tiny)
    with pytest.raises(ModelLoadError, match=r"uv is not installed: pip install \"modelyard\[uv\]\""):
        build(replace(tiny, installer="uv"))


def _install(folder: Path, name: str, version: str, needs: str = "") -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata + (needs and f"Requires-Dist: {needs}\n"))


def test_a_package_that_no_longer_fits_is_found_through_others(tmp_path: Path) -> None:
    own, platform = tmp_path / "own", tmp_path / "platform"
    _install(platform, "library", "3.0", "table>=1")
    _install(platform, "table", "3.1", "numbers>=2")
    _install(platform, "numbers", "2.4")
    assert find_misfit(["library"], [str(own), str(platform)]) == ""
    _install(own, "numbers", "1.26")
    expected = "table 3.1 needs numbers>=2, but it has numbers 1.26"
    assert find_misfit(["library", "absent"], [str(own), str(platform)]) == expected


def test_what_ray_would_import_and_cannot_is_hidden(
    tiny: Overlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, "pyarrow", "99.0")
    (tmp_path / "pyarrow.py").write_text("raise ImportError('needs another numpy')")
    platform = module.platform_packages()
    monkeypatch.setattr(module, "platform_packages", lambda: (str(tmp_path), *platform))
    build(tiny)
    code = "import ray\ntry: import pyarrow\nexcept ModuleNotFoundError as exc: print(exc)"
    assert run(tiny, code) == "the platform's pyarrow is hidden here: ImportError: needs another numpy"


def test_the_platform_keeps_what_it_needs() -> None:
    lines = constraints()
    assert {f"{name}=={module.importlib.metadata.version(name)}" for name in ("ray", "modelyard")} <= set(lines)
    assert any(line.startswith("pydantic<3") for line in lines)
    assert any(line.startswith("anyio") for line in lines), "what starlette needs"
