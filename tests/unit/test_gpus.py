# SPDX-License-Identifier: Apache-2.0
"""What is known of a process's GPUs; with a real driver where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from modelyard import gpus


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """What is known is known for the life of a process."""
    yield
    gpus._open_cuda.cache_clear()
    gpus._open_nvml.cache_clear()


@pytest.mark.parametrize(
    ("named", "found"),
    [
        (None, ()),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0", ("0",)),
        ("1, GPU-4e3b", ("1", "GPU-4e3b")),
    ],
)
def test_the_gpus_of_a_process_are_those_that_its_environment_names(
    monkeypatch: pytest.MonkeyPatch, named: str | None, found: tuple[str, ...]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus.list_gpus() == found


def test_a_process_without_gpus_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "_open_nvml", lambda: pytest.fail("they are others'"))
    assert gpus.busy_percent() is None


def test_where_the_driver_is_missing_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(gpus.ctypes, "CDLL", refuse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert (gpus.busy_percent(), gpus.memory_mb()) == (None, None)


@pytest.mark.parametrize("lacks", ["cuInit", "cuDeviceGetUuid_v2", "cuDeviceTotalMem_v2"])
def test_what_an_old_driver_does_not_know_is_not_known(monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    def fill(value: Any, *_: object) -> int:
        if hasattr(value, "_obj"):
            value._obj.value = 2**30
        return 0

    def count(value: Any) -> int:
        value._obj.value = 1
        return 0

    known = {
        "cuInit": lambda flags: 0,
        "cuDeviceGetCount": count,
        "cuDeviceGetUuid_v2": fill,
        "cuDeviceTotalMem_v2": fill,
    }
    old = SimpleNamespace(**{name: function for name, function in known.items() if name != lacks})
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: old)
    monkeypatch.setattr(gpus.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(gpus.pynvml, "nvmlDeviceGetHandleByUUID", lambda ident: ident)
    monkeypatch.setattr(gpus.pynvml, "nvmlDeviceGetUtilizationRates", lambda device: SimpleNamespace(gpu=7))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    expected = {"cuInit": (None, None), "cuDeviceGetUuid_v2": (None, 1024), "cuDeviceTotalMem_v2": (7, None)}
    assert (gpus.busy_percent(), gpus.memory_mb()) == expected[lacks]


def test_several_devices_are_as_busy_as_their_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(gpus, "_open_nvml", lambda: [30, 90])
    monkeypatch.setattr(gpus.pynvml, "nvmlDeviceGetUtilizationRates", lambda device: SimpleNamespace(gpu=device))
    assert gpus.busy_percent() == 60


def test_a_driver_says_how_busy_its_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        pytest.skip(f"no GPU: {exc}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    busy, memory_mb = gpus.busy_percent(), gpus.memory_mb()
    assert busy is not None
    assert 0 <= busy <= 100
    assert memory_mb is not None
    whole = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total / 1024**2
    assert 0.9 * whole < memory_mb <= whole
