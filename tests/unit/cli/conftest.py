# SPDX-License-Identifier: Apache-2.0
"""A shell in front of a platform without a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.catalog import Catalog
from modelyard.cli import main
from modelyard.testing.platform import FakePlatform


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakePlatform]:
    with Catalog(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        yield FakePlatform(catalog)


class Shell:
    """Runs commands against the fake platform."""

    def __init__(self, fake: FakePlatform, capsys: pytest.CaptureFixture[str]) -> None:
        self._fake = fake
        self._capsys = capsys

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        with pytest.raises(SystemExit) as caught:
            main(arguments, connect=self._fake.connect)
        out, err = self._capsys.readouterr()
        return int(caught.value.code or 0), out, err

    def json(self, *arguments: str) -> Any:
        status, out, err = self.run(*arguments, "--json")
        assert (status, err) == (0, "")
        return json.loads(out)


@pytest.fixture
def shell(fake: FakePlatform, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(fake, capsys)
