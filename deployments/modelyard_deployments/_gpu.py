# SPDX-License-Identifier: Apache-2.0
"""Whether this replica has been given a GPU, and how much of one."""

from __future__ import annotations

import logging
import os
from typing import Final

from modelyard.errors import ModelLoadError
from modelyard.gpus import list_gpus, memory_mb
from modelyard.model import GPU_SHARE

_LOG: Final = logging.getLogger(__name__)


def has_gpu() -> bool:
    """This replica has ``resources: {num_gpus: …}``."""
    return bool(list_gpus())


def gpu_share() -> float:
    """The part of one GPU's memory that this replica may take: less than 1 where others have the rest."""
    return float(os.environ.get(GPU_SHARE, "1"))


def gpu_share_mb() -> int | None:
    """The same in MiB; None for as much as there is, and where the driver does not say how much that is."""
    if not has_gpu() or gpu_share() >= 1:
        return None
    whole = memory_mb()
    if whole is None:
        _LOG.warning("its part of the GPU's memory is not kept to: CUDA's driver does not say how much that is")
        return None
    return int(gpu_share() * whole)


def find_torch_device(wanted: str) -> str:
    """Where PyTorch computes; on a part of a GPU it may take that part of the memory, and no more.

    Args:
        wanted: ``cpu``, ``cuda`` or ``auto``.

    Raises:
        ModelLoadError: A GPU is wanted and PyTorch has none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError("option device: PyTorch finds no CUDA device; give the model resources: {num_gpus: 1}")
    device = wanted
    if wanted == "auto":
        device = "cuda" if has_gpu() and torch.cuda.is_available() else "cpu"
    if device == "cuda" and gpu_share() < 1:
        torch.cuda.set_per_process_memory_fraction(gpu_share())
    return device
