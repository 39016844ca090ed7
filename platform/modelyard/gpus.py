# SPDX-License-Identifier: Apache-2.0
"""What the driver says of the GPUs that this process has been given.

A fraction of a device is Ray's bookkeeping alone: the device is as busy as all who share it make it.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import uuid
from typing import Any, Final

import pynvml

logger = logging.getLogger(__name__)

_NONE: Final = ("", "-1", "NoDevFiles")
_MIB: Final = 1024 * 1024
_UUID_BYTES: Final = 16
_UNKNOWN: Final = (pynvml.NVMLError, AttributeError)
"""What the driver does not say; an old one does not know each function."""


def list_gpus() -> tuple[str, ...]:
    """The GPUs of this process: numbers, or identifiers that begin with ``GPU-`` or ``MIG-``.

    Ray names those of a replica with ``resources: {num_gpus: …}`` in its environment. To the others it says nothing, so
    that they see all devices of the machine: an unset variable means none here.

    Source: Ray, "Accelerator Support"; NVIDIA, "CUDA Environment Variables".
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    return () if named in _NONE else tuple(name.strip() for name in named.split(","))


def memory_mb() -> int | None:
    """MiB of the first GPU of this process, all of it, or of the part that is partitioned off (MIG); None without."""
    cuda = _open_cuda()
    total = ctypes.c_size_t()
    try:
        failed = cuda is None or cuda.cuDeviceTotalMem_v2(ctypes.byref(total), 0)
    except AttributeError:
        return None
    return None if failed else total.value // _MIB


def busy_percent() -> float | None:
    """How much of the last moment the GPUs of this process were busy, 0 to 100, on average; None where nobody knows.

    Source: NVML, ``nvmlDeviceGetUtilizationRates``; a part that is partitioned off (MIG) has none.
    """
    devices = _open_nvml() if list_gpus() else []
    try:
        found = [float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu) for device in devices]
    except _UNKNOWN:
        return None
    return sum(found) / len(found) if found else None


@functools.cache
def _open_cuda() -> Any:
    """CUDA's driver, which knows the devices of this process, in their order, by the environment; None without.

    It makes no context, so whoever computes finds everything as it was.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    try:
        if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return None
    except AttributeError:
        return None
    return cuda


@functools.cache
def _open_nvml() -> list[Any]:
    """Handles of the same devices; NVIDIA's management library counts them otherwise, so by their identifiers."""
    cuda = _open_cuda()
    if cuda is None:
        return []
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    try:
        pynvml.nvmlInit()
        devices = []
        for number in range(count.value):
            ident = (ctypes.c_char * _UUID_BYTES)()
            cuda.cuDeviceGetUuid_v2(ident, number)
            devices.append(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.UUID(bytes=ident.raw)}".encode()))
    except _UNKNOWN as exc:
        logger.warning("how busy its GPUs are is not known: %s", exc)
        return []
    return devices
