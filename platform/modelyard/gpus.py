# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's management library says of the GPUs that this process has been given.

A fraction of a device is Ray's bookkeeping alone: the device is as busy as all who share it make it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import pynvml

_NONE: Final = ("", "-1", "NoDevFiles")
_MIB: Final = 1024 * 1024


def list_gpus() -> tuple[str, ...]:
    """The GPUs of this process: numbers, or identifiers that begin with ``GPU-`` or ``MIG-``.

    Ray names those of a replica with ``resources: {num_gpus: …}`` in its environment. To the others it says nothing, so
    that they see all devices of the machine: an unset variable means none here.

    Source: Ray, "Accelerator Support"; NVIDIA, "CUDA Environment Variables".
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    return () if named in _NONE else tuple(name.strip() for name in named.split(","))


def busy_percent() -> float | None:
    """How much of the last moment the GPUs of this process were busy, 0 to 100, on average; None where nobody knows.

    Source: NVML, ``nvmlDeviceGetUtilizationRates``; a part of a device (MIG) has none.
    """
    found = _ask(lambda device: float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu))
    return None if found is None else sum(found) / len(found)


def memory_mb() -> int | None:
    """MiB of the first GPU of this process, all of it; None where nobody knows."""
    found = _ask(lambda device: float(pynvml.nvmlDeviceGetMemoryInfo(device).total))
    return None if found is None else int(found[0] / _MIB)


def _ask(question: Callable[[Any], float]) -> list[float] | None:
    names = list_gpus()
    if not names:
        return None
    try:
        return [question(device) for device in _open(names)]
    except pynvml.NVMLError:
        return None


@functools.cache
def _open(names: Sequence[str]) -> list[Any]:
    """Handles of devices.

    Raises:
        pynvml.NVMLError: There is no driver, or no such device.
    """
    pynvml.nvmlInit()
    return [
        pynvml.nvmlDeviceGetHandleByIndex(int(name))
        if name.isdecimal()
        else pynvml.nvmlDeviceGetHandleByUUID(name.encode())
        for name in names
    ]
