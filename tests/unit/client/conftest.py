# SPDX-License-Identifier: Apache-2.0
"""A platform that only remembers, for the tests of its client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelyard.catalog import Catalog
from modelyard.testing.platform import FakePlatform


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakePlatform]:
    with Catalog(f"sqlite:///{tmp_path}/catalog.db") as catalog:
        yield FakePlatform(catalog)
