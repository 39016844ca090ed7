# SPDX-License-Identifier: Apache-2.0
"""Our log records go where Serve's go: the replica's log file, and the terminal where Serve says so."""

from __future__ import annotations

import logging


class _AtOnce(logging.Handler):
    """Writes each record as it comes, with what was gathered before it.

    Serve gathers a thousand records before it writes them: its own, one for each request. Ours are few, and are looked
    for when something is wrong.

    Args:
        handler: Serve's.
    """

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler

    def emit(self, record: logging.LogRecord) -> None:
        """See the base class."""
        try:
            self._handler.handle(record)
            self._handler.flush()
        except Exception:  # noqa: BLE001  # as handlers do: a closed stream is not the caller's error
            self.handleError(record)


def join_serve_log() -> None:
    """Sends the platform's and the frameworks' records to Serve's handlers of this process."""
    handlers = [_AtOnce(handler) for handler in logging.getLogger("ray.serve").handlers]
    for name in ("modelyard", "modelyard_deployments"):
        logger = logging.getLogger(name)
        logger.handlers = list(handlers)
        logger.setLevel(logging.INFO)
        logger.propagate = False
