# SPDX-License-Identifier: Apache-2.0
"""Our log records go where Serve's go: the replica's log file, and the terminal where Serve says so."""

from __future__ import annotations

import logging


def join_serve_log() -> None:
    """Sends the platform's and the frameworks' records to Serve's handlers of this process."""
    serve_logger = logging.getLogger("ray.serve")
    for name in ("modelyard", "modelyard_deployments"):
        logger = logging.getLogger(name)
        logger.handlers = list(serve_logger.handlers)
        logger.setLevel(logging.INFO)
        logger.propagate = False
