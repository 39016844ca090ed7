# SPDX-License-Identifier: Apache-2.0
"""What an example model is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Example:
    """One model.

    Attributes:
        file: The file or folder that it becomes in the folder of the model's name; ``"."`` where that folder itself is
            the artifact.
        train: Trains it and writes it to the path it is given, which does not exist yet.
    """

    file: str
    train: Callable[[Path], None]
