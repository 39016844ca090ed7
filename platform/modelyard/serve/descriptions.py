# SPDX-License-Identifier: Apache-2.0
"""What applications have told of themselves, for a controller that starts while a model is scaled to zero.

In Ray's key-value store: it lives as long as the applications do.
"""

from __future__ import annotations

import pickle
from collections import defaultdict

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from modelyard.signature import Description

_NAMESPACE = b"modelyard-descriptions"


def keep_description(application: str, digest: str, description: Description) -> None:
    """Keeps it until it is cleared; the newest wins.

    Args:
        application: Whose.
        digest: Identity of the revision: another one of the same name does not inherit it.
        description: What it has told.
    """
    kept = pickle.dumps((digest, description))
    _internal_kv_put(application.encode(), kept, overwrite=True, namespace=_NAMESPACE)


def find_description(application: str, digest: str) -> Description | None:
    """The description, where one of this very revision is kept that this Modelyard can read."""
    raw: bytes | None = _internal_kv_get(application.encode(), namespace=_NAMESPACE)
    try:
        known, found = ("", None) if raw is None else pickle.loads(raw)  # noqa: S301  # our own
    except (AttributeError, ImportError, TypeError, ValueError, pickle.UnpicklingError):  # another version's
        return None
    return found if known == digest and isinstance(found, Description) else None


def list_descriptions() -> dict[str, set[int]]:
    """What is kept: numbers of revisions, by model."""
    kept: dict[str, set[int]] = defaultdict(set)
    for key in _internal_kv_list(b"", namespace=_NAMESPACE):
        model, _, number = key.decode().rpartition("@")
        if model and number.isdecimal():
            kept[model].add(int(number))
    return kept


def clear_description(application: str) -> None:
    """Forgets it."""
    _internal_kv_del(application.encode(), namespace=_NAMESPACE)
