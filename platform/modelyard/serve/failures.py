# SPDX-License-Identifier: Apache-2.0
"""Why an application could not load its model: written by the replica, read by the controller.

In Ray's key-value store, so that it is not lost when the controller is away while a replica fails, one entry for each
attempt: a replica that was starting when its model was repaired reports late, and that is no word on the repaired one.
A replica that never came to load anything has written nothing: then Serve's own message tells, somewhere in its
tracebacks. The names of attempts beyond the first are kept there too, for the controller that comes next.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Final

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from modelyard.environments.installers import clean

_NAMESPACE = b"modelyard-failures"
_ATTEMPTS = b"modelyard-attempts"
_SETUP: Final = "runtime env failed to be created."
_NO_START: Final = "worker startup repeatedly failed"
DIED_LOADING: Final = "its process died while loading; the application's log has the details"
_RAISED: Final = re.compile(r"^[A-Za-z_][\w.]*: (?=\S)", re.MULTILINE)


def report_failure(application: str, attempt: str, reason: str) -> None:
    """Keeps the reason until it is cleared; the attempt's newest wins."""
    _internal_kv_put(_key(application, attempt), reason.encode(), overwrite=True, namespace=_NAMESPACE)


def list_failed() -> dict[str, list[str]]:
    """Attempts that have failed, by application; one question for all of them."""
    found = defaultdict(list)
    for key in _internal_kv_list(b"", namespace=_NAMESPACE):
        application, _, attempt = key.decode().partition("/")
        found[application].append(attempt)
    return found


def find_failure(application: str, attempt: str) -> str | None:
    """The reason, where there is one (any more)."""
    raw: bytes | None = _internal_kv_get(_key(application, attempt), namespace=_NAMESPACE)
    return None if raw is None else raw.decode()


def clear_failure(application: str) -> None:
    """Forgets the reasons of all attempts."""
    _internal_kv_del(_key(application, ""), del_by_prefix=True, namespace=_NAMESPACE)


def clear_failures(model: str) -> None:
    """Forgets those of all revisions of a model, which is no more."""
    _internal_kv_del(f"{model}@".encode(), del_by_prefix=True, namespace=_NAMESPACE)


def clear_report(application: str, attempt: str) -> None:
    """Forgets the reason of one attempt, which has come to load after all."""
    _internal_kv_del(_key(application, attempt), namespace=_NAMESPACE)


def keep_attempt(application: str, name: str) -> None:
    """Keeps the name of the attempt at an application that has begun, until it is forgotten."""
    _internal_kv_put(application.encode(), name.encode(), overwrite=True, namespace=_ATTEMPTS)


def list_attempts() -> dict[str, str]:
    """The names that are kept, by application."""
    found = {key: _internal_kv_get(key, namespace=_ATTEMPTS) for key in _internal_kv_list(b"", namespace=_ATTEMPTS)}
    return {key.decode(): name.decode() for key, name in found.items() if name is not None}


def forget_attempt(application: str) -> None:
    """Forgets the name of its attempt."""
    _internal_kv_del(application.encode(), namespace=_ATTEMPTS)


def _key(application: str, attempt: str) -> bytes:
    return f"{application}/{attempt}".encode()


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
