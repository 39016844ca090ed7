# SPDX-License-Identifier: Apache-2.0
"""Whether this replica has been given a GPU."""

from __future__ import annotations

import os
from typing import Final

_NONE: Final = ("", "-1", "NoDevFiles")


def has_gpu() -> bool:
    """Ray names the GPUs of a replica with ``resources: {num_gpus: …}`` in its environment.

    To the others it says nothing, so that they see all devices of the machine: an unset variable means none here.

    Source: Ray, "Accelerator Support".
    """
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").strip() not in _NONE
