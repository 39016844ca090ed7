# SPDX-License-Identifier: Apache-2.0
"""What models of the user's own are made from, ``modelyard.Model``; see ``framework: custom``.

"One request": beside the model. To the platform it is a :class:`modelyard.model.Model` like any other once it is
loaded. Before that it is a plain class, for tests: what it leaves out is no reason not to make one, and what its
``predict`` takes is its own business, so type checkers do not compare it with the platform's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.peers import PeerCalls
from modelyard.signature import Signature

if TYPE_CHECKING:

    class Model(PeerCalls):
        """A model of the user's own."""

        concurrency: int
        predict: Callable[..., Any]

        @property
        def signature(self) -> Signature:
            """What it takes and gives, where that does not follow from the type hints of ``predict``."""

        def load(self, path: Path, settings: Mapping[str, Any]) -> None:
            """Called first, once, with the artifact's path and the option ``settings``."""

        def check_health(self) -> None:
            """Asked for periodically; where it raises, the replica is replaced."""

        def close(self) -> None:
            """Called last."""

else:
    from modelyard import model as platform

    class Model(platform.Model):
        """A model of the user's own."""

        @property
        def signature(self):
            """Follows from the type hints when it is loaded, or is that of the model behind it."""
            raise NotImplementedError("a class without a signature has one when it is loaded")

        def predict(self, *_, **__):
            """Left out where another model predicts, or ``stream`` answers."""
            raise NotImplementedError("it has no predict of its own")
