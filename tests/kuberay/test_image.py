# SPDX-License-Identifier: Apache-2.0
"""The image, as far as it can be looked at without building it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rendering import KUBERAY, ROOT, SERVICES, find

from modelyard.config import load_serve_file
from modelyard.version import __version__

DOCKERFILE = KUBERAY / "Dockerfile"
STAGES = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PLACES = {"modelyard": "cpu", "modelyard-gpu": "gpu"}
"""The stage that each image's name in the manifests stands for."""


def stage(name: str) -> str:
    """The lines of one stage."""
    _, _, rest = DOCKERFILE.read_text().partition(f" AS {name}\n")
    return rest.partition("\nFROM ")[0]


def extras(name: str) -> set[str]:
    found = re.search(r"^ARG EXTRAS=(\S+)$", stage(name), re.MULTILINE)
    assert found is not None
    return set(found[1].split(","))


def versions() -> Mapping[str, str]:
    lines = (KUBERAY / "constraints.txt").read_text().splitlines()
    pairs = (line.partition(" ;")[0].split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def requirements() -> Iterator[Requirement]:
    """What the platform and the extras of the images need, with this machine's markers."""
    named: list[str] = [*PROJECT["dependencies"]]
    for extra in extras("cpu") | extras("gpu"):
        named += PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, named):
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def test_the_file_has_no_fault_that_a_linter_knows() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")  # of the development extra
    result = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (result.stdout + result.stderr, result.returncode) == ("", 0)


def test_the_targets_are_those_that_the_file_tells() -> None:
    told = set(re.findall(r"--target (\w+)", DOCKERFILE.read_text()))
    assert told == {"cpu", "gpu", "examples", "baked"} <= {name for _, name in STAGES}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_an_image_runs_as_somebody_who_cannot_change_it(name: str) -> None:
    steps = re.findall(r"^(USER|RUN|COPY|CMD)\b(.*)$", stage(name), re.MULTILINE)
    assert steps[-2:] == [("USER", " 1000:1000"), ("CMD", ' ["bash"]')]
    assert [step for step, _ in steps].count("USER") == 1  # root until then


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_versions_go_together(name: str) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not installed: pip install uv")
    command = [uv, "pip", "compile", "--quiet", ROOT / "pyproject.toml", "--constraint", KUBERAY / "constraints.txt"]
    for extra in sorted(extras(name)):
        command += ["--extra", extra]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_an_image_has_what_the_operator_s_commands_and_probes_use() -> None:
    installed = re.search(r"apt-get install .*", stage("base"))
    assert installed is not None
    assert {"bash", "wget"} <= set(installed[0].split())


def test_a_login_shell_finds_what_the_pods_begin_with() -> None:
    # ENABLE_LOGIN_SHELL of the operator; /etc/profile sets PATH anew and reads what is in this folder then.
    assert 'echo "PATH=/opt/venv/bin:\\$PATH" > /etc/profile.d/modelyard.sh' in stage("base")
    for name in ("cpu", "gpu"):
        assert 'bash -lc "type -P bash wget ray serve modelyard modelyard-haproxy"' in stage(name)


def test_serve_starts_the_haproxy_of_the_image() -> None:
    # A path, for Serve looks for it nowhere.
    found = re.search(
        r"^RAY_SERVE_HAPROXY_BINARY_PATH=(.*)/(.*)$", (KUBERAY / "base/ray.env").read_text(), re.MULTILINE
    )
    assert found is not None
    assert f"PATH={found[1]}:$PATH" in stage("base")
    assert found[2] in PROJECT["scripts"]


def test_the_version_of_python_is_one_that_the_platform_runs_on() -> None:
    python = re.search(r"^ARG PYTHON=(\d+\.\d+)\.\d+-slim-\w+$", DOCKERFILE.read_text(), re.MULTILINE)
    assert python is not None
    assert f"Python :: {python[1]}" in " ".join(PROJECT["classifiers"])


def test_everything_that_the_project_names_is_pinned_to_what_it_allows() -> None:
    pinned = versions()
    wrong = [str(item) for item in requirements() if pinned.get(canonicalize_name(item.name), "") not in item.specifier]
    assert wrong == []


def test_what_builds_the_wheel_is_pinned_too() -> None:
    build = re.search(r"^RUN uv build .*--build-constraints (\S+)", stage("wheel"), re.MULTILINE)
    assert build is not None
    assert f"COPY kuberay/constraints.txt {build[1]}\n" in stage("base")
    (needed,) = map(Requirement, PYPROJECT["build-system"]["requires"])
    assert versions().get(needed.name, "") in needed.specifier


def test_uv_in_the_file_is_the_pinned_one() -> None:
    assert f"uv=={versions()['uv']}" in stage("base")


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_an_image_has_the_extras_that_the_project_has(name: str) -> None:
    assert extras(name) <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("folder", SERVICES)
def test_an_overlay_s_image_has_what_its_models_need(folder: str) -> None:
    own = KUBERAY / folder / "platform.yaml"
    config = load_serve_file(own if own.exists() else KUBERAY / "base" / "platform.yaml").platform
    head = find(folder, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]
    name, _, tag = head["template"]["spec"]["containers"][0]["image"].partition(":")
    needed = {spec.framework for spec in config.models}
    if config.catalog.url.startswith("postgresql"):
        needed.add("postgres")
    assert needed <= extras(PLACES[name])
    assert tag == __version__


def test_what_is_copied_is_in_the_context_and_nothing_else_is() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE))
    sources = {source for line in copied for source in line.split()}
    assert {source.partition("/")[0] for source in sources} == kept
    assert all((ROOT / source).exists() for source in sources)
