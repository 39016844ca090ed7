# SPDX-License-Identifier: Apache-2.0
"""Each framework has a page in ``docs/frameworks``, with its options and with snippets that are accepted."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from modelyard.config import load_model_spec
from modelyard.model import check_options, get_framework

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "frameworks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FRAMEWORKS = sorted(PROJECT["entry-points"]["modelyard.frameworks"])


def read(framework: str) -> str:
    return (PAGES / f"{framework}.md").read_text()


def test_each_framework_has_a_page_and_each_page_a_framework() -> None:
    assert sorted(path.stem for path in PAGES.glob("*.md")) == FRAMEWORKS


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_table_of_options_has_every_option_and_no_other(framework: str) -> None:
    table = re.search(r"^\| option \|.*\n\|[-|]+\n((?:\|.*\n)+)", read(framework), re.MULTILINE)
    assert table is not None
    names = [name for line in table[1].splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])]
    assert sorted(names) == sorted(get_framework(framework).options.model_fields)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_files_are_named(framework: str) -> None:
    assert [ending for ending in get_framework(framework).suffixes if f"`{ending}`" not in read(framework)] == []


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_snippets_are_accepted(framework: str) -> None:
    snippets = re.findall(r"```yaml\n(- name:.*?)```", read(framework), re.DOTALL)
    specs = [load_model_spec(model) for snippet in snippets for model in yaml.safe_load(snippet)]
    assert framework in {spec.framework for spec in specs}
    for spec in specs:
        check_options(get_framework(spec.framework), spec.options)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
