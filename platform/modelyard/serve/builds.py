# SPDX-License-Identifier: Apache-2.0
"""The controller's overlays under way: a model is deployed when its environment is there.

They are built beside the controller before Ray starts a replica, so that ``status`` can say that, and why it failed,
and nothing waits in Ray's hands meanwhile. On another node the replica's own start builds it again.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from modelyard.environments.overlay import Overlay
from modelyard.environments.start import reason_of, start_build

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Build:
    process: subprocess.Popen[str]
    state: str


class Builds:
    """Builds what applications wait for, each overlay once."""

    def __init__(self) -> None:
        self._running: dict[str, _Build] = {}

    def look(self, wanted: Mapping[str, Overlay]) -> tuple[dict[str, str], dict[str, str]]:
        """Begins what is missing, ends what nobody wants any more.

        Args:
            wanted: By application.

        Returns:
            The applications that have to wait, and those whose overlay could not be built, with the reason. A failure
            is told once; whoever asks again has it built again.
        """
        overlays = {overlay.key: overlay for overlay in wanted.values()}
        for key in self._running.keys() - overlays.keys():
            _end(self._running.pop(key).process)
        states: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for key, overlay in overlays.items():
            state, reason = self._look(key, overlay)
            for application in [name for name, one in wanted.items() if one.key == key]:
                if reason:
                    reasons[application] = reason
                elif state:
                    states[application] = state
        return states, reasons

    def _look(self, key: str, overlay: Overlay) -> tuple[str, str]:
        build = self._running.get(key)
        if build is None:
            if overlay.is_ready:
                return "", ""
            now = datetime.now(UTC).strftime("%H:%M:%S UTC")
            build = _Build(start_build(overlay), f"its environment is being built, since {now}")
            self._running[key] = build
            logger.info("building an environment with %s", overlay.installer)
        if build.process.poll() is None:
            return build.state, ""
        del self._running[key]
        return "", reason_of(build.process)

    def close(self) -> None:
        """Ends all of them."""
        self.look({})


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the installer too
    process.communicate()
