# SPDX-License-Identifier: Apache-2.0
"""Every metric of language models is in docs/openai.md, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from modelyard.serve.meter import METRICS

PAGE = Path(__file__).parents[2] / "docs" / "openai.md"


def test_the_table_has_every_metric() -> None:
    assert set(re.findall(r"`(modelyard_llm_\w+)`", PAGE.read_text())) == set(METRICS)
