# SPDX-License-Identifier: Apache-2.0
"""What is known of a process's GPUs; with a real driver where there is one."""

from __future__ import annotations

import pynvml
import pytest

from modelyard import gpus


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


def test_without_a_gpu_or_its_driver_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (gpus.busy_percent(), gpus.memory_mb()) == (None, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-of-another-machine")
    assert (gpus.busy_percent(), gpus.memory_mb()) == (None, None)


def test_a_driver_says_how_busy_its_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        pytest.skip(f"no GPU: {exc}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    busy, memory_mb = gpus.busy_percent(), gpus.memory_mb()
    assert busy is not None
    assert 0 <= busy <= 100
    assert memory_mb == pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).total // 1024**2
