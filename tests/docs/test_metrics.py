# SPDX-License-Identifier: Apache-2.0
"""Every metric is in the table of its page, and no other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from modelyard.serve.meter import METRICS
from modelyard.serve.poolmeter import POOL_METRICS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("page", "metrics"), [("openai.md", METRICS), ("pools.md", POOL_METRICS)])
def test_the_table_has_every_metric(page: str, metrics: Mapping[str, str]) -> None:
    assert set(re.findall(r"`(modelyard_\w+_\w+)`", (DOCS / page).read_text())) == set(metrics)
