# SPDX-License-Identifier: Apache-2.0
"""What the documents and the configuration files claim, held against the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from modelyard.config import load_serve_file
from modelyard.launch import FAST
from modelyard.model import get_framework

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def framework_rows() -> dict[str, list[str]]:
    rows = (line.strip("|").split("|") for line in README.splitlines() if line.startswith("| `"))
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in rows}


def test_the_table_lists_every_framework_of_this_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(framework_rows()) == set(project["entry-points"]["modelyard.frameworks"])


@pytest.mark.parametrize("name", framework_rows())
def test_the_table_lists_the_files_a_framework_recognises(name: str) -> None:
    assert set(re.findall(r"`(\.\w+)`", framework_rows()[name][0])) == set(get_framework(name).suffixes)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_file_is_accepted(path: Path) -> None:
    assert load_serve_file(path).platform.models


def test_the_example_platform_has_the_names_that_others_point_at() -> None:
    names = {spec.name for spec in load_serve_file(ROOT / "configs/platform.yaml").platform.models}
    assert names == {"iris-sklearn", "iris-xgboost", "iris-lightgbm", "breast-cancer", "housing"}


def test_the_example_platform_fits_two_cores() -> None:
    found = load_serve_file(ROOT / "configs/platform.yaml").platform
    models = sum(spec.resources.num_cpus * spec.autoscaling.max_replicas for spec in found.models)
    assert models + found.ingress.num_cpus * found.ingress.num_replicas + found.controller.num_cpus <= 2


def test_make_run_installs_the_extras_that_the_example_platform_needs() -> None:
    extras = re.search(r"^RUN_EXTRAS := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert extras is not None
    used = {spec.framework for spec in load_serve_file(ROOT / "configs/platform.yaml").platform.models}
    assert set(extras[1].split(",")) == used


def test_nothing_hides_the_standard_library_s_platform_module() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "deployments" / "__init__.py").exists()


def test_fast_mode_is_haproxy_and_throughput() -> None:
    assert FAST["RAY_SERVE_ENABLE_HA_PROXY"] == FAST["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(document: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []
