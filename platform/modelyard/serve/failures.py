# SPDX-License-Identifier: Apache-2.0
"""Why an application could not load its model: written by the replica, read by the controller.

In Ray's key-value store, so that it is not lost when the controller is away while a replica fails. A replica that
never came to load anything has written nothing: then Serve's own message tells, somewhere in its tracebacks.
"""

from __future__ import annotations

import re
from typing import Final

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from modelyard.environments.installers import clean

_NAMESPACE = b"modelyard-failures"
_SETUP: Final = "runtime env failed to be created."
_NO_START: Final = "worker startup repeatedly failed"
DIED_LOADING: Final = "its process died while loading; the application's log has the details"
_RAISED: Final = re.compile(r"^[A-Za-z_][\w.]*: (?=\S)", re.MULTILINE)


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


def find_setup_failure(message: str) -> str | None:
    """Why Ray could not start a replica's process, in words of what it used for that; None where it could.

    Args:
        message: What Serve says of the application.
    """
    _, found, rest = message.rpartition(_SETUP)
    if found:
        raised = list(_RAISED.finditer(rest))
        said = " ".join(rest[raised[-1].end() if raised else 0 :].split())
        return f"its environment cannot be made: {clean(said)}"
    return f"its process cannot be started: {_NO_START}" if _NO_START in message else None
