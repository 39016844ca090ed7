# SPDX-License-Identifier: Apache-2.0
"""What is known of a process's GPUs; with a real driver where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

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
