# SPDX-License-Identifier: Apache-2.0
"""Who changes models, for their history."""

from __future__ import annotations

import getpass
import os
import socket
from typing import Final

_MAX_CHARS: Final = 200
"""As many as the platform reads."""
_UNKNOWN: Final = "unknown"


def find_actor(actor: str | None = None) -> str:
    """The name as it is given or in ``MODELYARD_ACTOR``; without either, the user and the machine, ``me@laptop``.

    What cannot be printed is in it as ``?``, and only so much as the platform reads.
    """
    given = _clean(actor or "") or _clean(os.environ.get("MODELYARD_ACTOR", ""))
    return given or _clean(f"{_user()}@{_host()}")


def _clean(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name.strip())[:_MAX_CHARS].strip()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user often has no name
        return _UNKNOWN


def _host() -> str:
    try:
        return socket.gethostname()
    except OSError:
        return _UNKNOWN
