# SPDX-License-Identifier: Apache-2.0
"""What replicas counted before they stopped, so that a model's statistics never go backwards while it is scaled.

In Ray's key-value store, one entry for each replica that stopped in good order; a crash loses its counts.
"""

from __future__ import annotations

import pickle

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from modelyard.statistics import Statistics

_NAMESPACE = b"modelyard-counts"


def keep_counts(application: str, member: str, replica: str, counts: Statistics) -> None:
    """Keeps what a replica counted, until its model is removed."""
    if counts.execution_count:
        _internal_kv_put(_key(application, member, replica), pickle.dumps(counts), overwrite=True, namespace=_NAMESPACE)


def get_kept_counts(application: str, member: str) -> dict[str, Statistics]:
    """What the application's replicas counted of a member that have stopped or are about to, by replica."""
    prefix = _key(application, member, "")
    found = {
        key.removeprefix(prefix).decode(): _internal_kv_get(key, namespace=_NAMESPACE)
        for key in _internal_kv_list(prefix, namespace=_NAMESPACE)
    }
    return {replica: pickle.loads(raw) for replica, raw in found.items() if raw is not None}  # noqa: S301  # our own


def clear_counts(model: str) -> None:
    """Forgets those of all revisions of a model, which is no more."""
    for key in _internal_kv_list(f"{model}@".encode(), namespace=_NAMESPACE):
        _internal_kv_del(key, namespace=_NAMESPACE)


def _key(application: str, member: str, replica: str) -> bytes:
    return f"{application}/{member}/{replica}".encode()
