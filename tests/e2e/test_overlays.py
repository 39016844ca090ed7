# SPDX-License-Identifier: Apache-2.0
"""What an overlay gives to KubeRay, really started; `make drills` does so with one of several nodes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import KNOWN_OUTPUT
from platform_process import PlatformProcess, running

from modelyard.admin import ModelState
from modelyard.client import Platform

ROOT = Path(__file__).parents[2]


def test_the_small_overlay_starts_and_answers(make_folder: Callable[[], Path]) -> None:
    document = yaml.safe_load((ROOT / "kuberay" / "overlays" / "dev" / "platform.yaml").read_text())
    document["http_options"]["host"] = "127.0.0.1"  # nothing of a test listens elsewhere
    process = PlatformProcess(make_folder(), document)
    with running(process), Platform.connect(process.url) as client:
        models = {status.name: status.state for status in client.list()}
        assert models == dict.fromkeys(process.models, ModelState.READY)
        assert client.predict("iris-sklearn", [[5.1, 3.5, 1.4, 0.2]]).outputs["output-0"].tolist() == [0]
        assert process.stop() == 0
        assert process.unexplained(KNOWN_OUTPUT) == []


def test_the_gpu_overlay_starts_and_its_models_get_their_gpus(make_folder: Callable[[], Path]) -> None:
    """Ray is told of GPUs that are not there; so far, and no further, goes the overlay's text with vLLM for CPUs."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed: python -m modelyard_deployments.vllm install")
    document = yaml.safe_load((ROOT / "kuberay" / "overlays" / "gpu" / "platform.yaml").read_text())
    document["http_options"]["host"] = "127.0.0.1"
    settings = {
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 8, "GPU": 2}',
        "RAY_OVERRIDE_LABELS": '{"modelyard-group": "cpu"}',
    }
    process = PlatformProcess(make_folder(), document, settings=settings)
    for model in process.models.values():
        folder = process.folder / model["uri"]
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with running(process), Platform.connect(process.url) as client:
        for status in client.list():
            assert status.state is ModelState.FAILED
            assert "resources.num_gpus: vLLM can use none here, it is the one for CPUs" in status.reason
        assert process.stop() == 0
