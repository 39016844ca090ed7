# SPDX-License-Identifier: Apache-2.0
"""Whether this replica has been given a GPU, and how much of one."""

from __future__ import annotations

import os
from typing import Final

from modelyard.errors import ModelLoadError
from modelyard.model import GPU_SHARE

_NONE: Final = ("", "-1", "NoDevFiles")


def has_gpu() -> bool:
    """Ray names the GPUs of a replica with ``resources: {num_gpus: …}`` in its environment.

    To the others it says nothing, so that they see all devices of the machine: an unset variable means none here.

    Source: Ray, "Accelerator Support".
    """
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").strip() not in _NONE


def gpu_share() -> float:
    """The part of one GPU's memory that this replica may take: less than 1 where others have the rest."""
    return float(os.environ.get(GPU_SHARE, "1"))


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
