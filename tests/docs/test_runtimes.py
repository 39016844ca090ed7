# SPDX-License-Identifier: Apache-2.0
"""What docs/runtimes.md shows, held against the configuration."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from modelyard.config import Runtime, load_model_spec

TEXT = (Path(__file__).parents[2] / "docs" / "runtimes.md").read_text()


def test_every_key_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+): ", TEXT, re.MULTILINE)
    assert set(rows) == set(Runtime.model_fields)


def test_the_snippets_are_accepted() -> None:
    snippets = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    specs = [load_model_spec(model) for snippet in snippets for model in yaml.safe_load(snippet)]
    assert [spec.runtime.version for spec in specs] == ["3.0.5"]
