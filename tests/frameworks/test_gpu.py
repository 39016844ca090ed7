# SPDX-License-Identifier: Apache-2.0
"""A replica with a part of a GPU takes that part of its memory."""

from __future__ import annotations

import pytest

from modelyard.errors import ModelLoadError
from modelyard.model import GPU_SHARE
from modelyard_deployments import _gpu
from modelyard_deployments._gpu import find_torch_device, gpu_share, gpu_share_mb


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What PyTorch was told, in place of one that finds a GPU."""
    torch = pytest.importorskip("torch")
    told: list[float] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", told.append)
    return told


@pytest.mark.parametrize(("wanted", "told"), [("auto", [0.4]), ("cuda", [0.4]), ("cpu", [])])
def test_pytorch_keeps_to_the_part_that_its_replica_has(
    limits: list[float], monkeypatch: pytest.MonkeyPatch, wanted: str, told: list[float]
) -> None:
    monkeypatch.setenv(GPU_SHARE, "0.4")
    assert find_torch_device(wanted) == ("cpu" if wanted == "cpu" else "cuda")
    assert limits == told


def test_a_whole_gpu_is_not_divided(limits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GPU_SHARE, raising=False)
    assert (find_torch_device("auto"), gpu_share(), limits) == ("cuda", 1.0, [])


def test_libraries_that_count_in_mib_are_told_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv(GPU_SHARE, "0.4")
    monkeypatch.setattr(_gpu, "memory_mb", lambda: 1000)
    assert gpu_share_mb() is None, "without a GPU"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpu_share_mb() == 400
    assert caplog.text == ""
    monkeypatch.setattr(_gpu, "memory_mb", lambda: None)
    assert gpu_share_mb() is None
    assert "is not kept to" in caplog.text


def test_a_gpu_that_is_not_there_is_refused() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelLoadError, match="give the model resources"):
        find_torch_device("cuda")
    assert find_torch_device("auto") == "cpu"
