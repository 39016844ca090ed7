# SPDX-License-Identifier: Apache-2.0
"""Writes ``docs/triton.md`` from what both servers answered.

python tests/differential/document.py
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

import cases  # noqa: E402  # beside this file, and beside what it uses
import servers  # noqa: E402
from deliberate import DELIBERATE, find_reason  # noqa: E402
from wire import Ask, differences  # noqa: E402

DOCUMENT = HERE.parents[1] / "docs" / "triton.md"
Found = Mapping[str, Mapping[str, tuple[Any, Any]]]


def all_cases() -> dict[str, Ask]:
    """Every request by its name."""
    tables = (table for name, table in vars(cases).items() if name.isupper() and isinstance(table, dict))
    return {name: ask for table in tables if all(map(callable, table.values())) for name, ask in table.items()}


def compare(pair: servers.Pair) -> Found:
    """Asks both everything; the differences by request."""
    return {name: differences(ask(pair.ours), ask(pair.theirs)) for name, ask in all_cases().items()}


def to_markdown(found: Found) -> str:
    """The document."""
    shown: dict[str, list[str]] = defaultdict(list)
    for request, places in found.items():
        for place, (ours, theirs) in places.items():
            reason = find_reason(request, place, ours, theirs)
            if reason is not None:
                values = f" {ours}, Triton {theirs}" if place.endswith(("status", "code")) else ""
                shown[reason.reason].append(f"{request}: `{place}`{values}")
    same = sum(not places for places in found.values())
    parts = [
        "# Differences from Triton",
        "",
        "Made by `python tests/differential/document.py`; do not edit. The same models (Triton's python backend, from",
        "`tests/differential/repository`) run on Triton 2.51 and on Modelyard, and both get the same requests over",
        f"HTTP and gRPC. Of {len(found)} requests {same} are answered alike, field by field; the others differ in what",
        "follows, on purpose. Texts of errors, times and made ids are not compared.",
    ]
    for one in DELIBERATE:
        parts += ["", f"## {one.reason}", "", *(f"- {line}" for line in shown[one.reason])]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Starts both servers and writes the document."""
    folder = Path(tempfile.mkdtemp(prefix="my-"))
    try:
        with servers.both(folder) as pair:
            DOCUMENT.parent.mkdir(exist_ok=True)
            DOCUMENT.write_text(to_markdown(compare(pair)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
