# SPDX-License-Identifier: Apache-2.0
"""A document with one key misspelt, for each of its keys."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator
from typing import Any

FREE = frozenset(
    {
        *("labels", "annotations", "matchLabels", "nodeSelector"),
        *("requests", "limits", "resources", "rayStartParams", "data"),
    }
)
"""Mappings whose keys are anybody's; other tests look into them."""


def renamed(document: Any, free: Container[str] = FREE, path: str = "$") -> Iterator[tuple[str, Any]]:
    """For each key that has a fixed name: its path, and the document with that key misspelt.

    Args:
        document: Mappings and lists.
        free: Names of mappings whose own keys are left.
        path: Of the document.
    """
    if isinstance(document, list):
        for index, item in enumerate(document):
            for where, changed in renamed(item, free, f"{path}[{index}]"):
                yield where, [*document[:index], changed, *document[index + 1 :]]
    if not isinstance(document, dict):
        return
    for key, value in document.items():
        here = f"{path}.{key}"
        if path.rpartition(".")[2] not in free:
            yield here, {("misspelt" + name if name == key else name): item for name, item in document.items()}
        for where, changed in renamed(value, free, here):
            yield where, copy.copy(document) | {key: changed}
