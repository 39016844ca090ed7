# SPDX-License-Identifier: Apache-2.0
"""Why an application could not load its model: written by the replica, read by the controller.

In Ray's key-value store, so that it is not lost when the controller is away while a replica fails.
"""

from __future__ import annotations

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

_NAMESPACE = b"modelyard-failures"


def report_failure(application: str, reason: str) -> None:
    """Keeps the reason until it is cleared; the newest wins."""
    _internal_kv_put(application.encode(), reason.encode(), overwrite=True, namespace=_NAMESPACE)


def find_failure(application: str) -> str | None:
    """The reason, where there is one."""
    raw: bytes | None = _internal_kv_get(application.encode(), namespace=_NAMESPACE)
    return None if raw is None else raw.decode()


def clear_failure(application: str) -> None:
    """Forgets the reason."""
    _internal_kv_del(application.encode(), namespace=_NAMESPACE)
