# SPDX-License-Identifier: Apache-2.0
"""What generates: vLLM or transformers, and why."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import ModelLoadError
from modelyard.model import check_options, get_framework
from modelyard_deployments._huggingface_backends import looks_generative, pick_backend

FRAMEWORK = get_framework("huggingface")

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


def test_the_option_decides() -> None:
    pick = pick_backend("transformers", ("LlamaForCausalLM",))
    assert (pick.name, pick.reason) == ("transformers", "the option backend says so")


@needs_vllm
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM"])
def test_vllm_is_picked_for_architectures_that_it_has(name: str) -> None:
    assert pick_backend("auto", (name,)).name == pick_backend("vllm", (name,)).name == "vllm"


@needs_vllm
@pytest.mark.parametrize("names", [("T5ForConditionalGeneration",), ("BartForConditionalGeneration",), ("NoSuch",), ()])
def test_transformers_is_picked_for_what_vllm_lacks(names: tuple[str, ...]) -> None:
    pick = pick_backend("auto", names)
    assert pick.name == "transformers"
    assert (names[0] if names else "names no architecture") in pick.reason
    with pytest.raises(ModelLoadError, match="option backend: vLLM cannot serve this model"):
        pick_backend("vllm", names)


@pytest.mark.parametrize(
    ("config", "writes"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, True),
        ({"architectures": ["GPT2LMHeadModel"]}, True),
        ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}, True),
        ({"architectures": ["WhisperForConditionalGeneration"]}, False),
        ({"architectures": ["BertForMaskedLM"]}, False),
        ({"architectures": None}, False),
    ],
)
def test_a_config_tells_whether_its_model_writes(config: dict[str, Any], writes: bool) -> None:
    assert looks_generative(config) is writes


def _workers(folder: Path, **options: Any) -> int:
    return FRAMEWORK.workers(folder, check_options(FRAMEWORK, options))


@needs_vllm
def test_vllm_places_workers_and_transformers_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert _workers(tmp_path) == 1
    assert _workers(tmp_path, engine={"tensor_parallel_size": 2, "pipeline_parallel_size": 3}) == 6
    assert _workers(tmp_path, backend="transformers") == 0
    assert _workers(tmp_path, task="text-classification") == 0


def test_what_predicts_has_no_workers(saved: Any, tmp_path: Path) -> None:
    assert _workers(saved("text_classification")) == 0
    assert _workers(tmp_path / "nosuch") == 0
    assert _workers(tmp_path / "nosuch", backend="vllm") == 1


def test_a_predictive_model_has_no_other_backend(load: Any) -> None:
    assert load("text_classification", backend="transformers").signature.inputs
    with pytest.raises(ModelLoadError, match="options backend: the task text-classification has none of that name"):
        load("text_classification", backend="vllm")


@needs_vllm
def test_an_engines_arguments_are_checked(tmp_path: Path, saved: Any, load: Any) -> None:
    weights = (saved("embeddings_of_a_bare_model") / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    with pytest.raises(ModelLoadError, match=r"option engine: .*max_model_len"):
        load(tmp_path, backend="vllm", engine={"max_model_length": 5})
    with pytest.raises(ModelLoadError, match='the transformers backend has no "max_model_length"'):
        load(tmp_path, backend="transformers", engine={"max_model_length": 5})
