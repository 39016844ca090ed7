# SPDX-License-Identifier: Apache-2.0
"""A real Triton and the platform with the same models: the same requests get the same answers, or there is a reason."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import triton_server
from deliberate import DELIBERATE, find_reason
from document import DOCUMENT, Found, all_cases, compare, to_markdown
from servers import both

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def found() -> Found:
    if not triton_server.INSTALLED.is_installed:
        pytest.skip(triton_server.NOT_INSTALLED)
    folder = Path(tempfile.mkdtemp(prefix="my-"))
    try:
        with both(folder) as pair:
            return compare(pair)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", all_cases())
def test_both_answer_alike_or_there_is_a_reason(found: Found, name: str) -> None:
    unexplained = {
        place: {"ours": ours, "Triton's": theirs}
        for place, (ours, theirs) in found[name].items()
        if find_reason(name, place, ours, theirs) is None
    }
    assert unexplained == {}


@pytest.mark.parametrize("difference", DELIBERATE, ids=lambda difference: difference.reason[:40])
def test_a_difference_that_is_told_is_still_there(found: Found, difference: object) -> None:
    assert any(
        find_reason(request, place, ours, theirs) is difference
        for request, places in found.items()
        for place, (ours, theirs) in places.items()
    )


def test_the_document_is_up_to_date(found: Found) -> None:
    assert DOCUMENT.read_text() == to_markdown(found), "run python tests/differential/document.py"
