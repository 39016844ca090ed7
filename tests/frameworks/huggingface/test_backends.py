# SPDX-License-Identifier: Apache-2.0
"""What generates: vLLM or transformers, and why."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import InvalidConfig, ModelLoadError
from modelyard.model import check_options, get_framework
from modelyard_deployments._huggingface_backends import Wanted, looks_generative, pick_backend
from modelyard_deployments._huggingface_options import HuggingFaceOptions

FRAMEWORK = get_framework("huggingface")

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")


def test_the_option_decides() -> None:
    pick = pick_backend(Wanted("transformers"), ("LlamaForCausalLM",))
    assert (pick.name, pick.reason) == ("transformers", "the option backend says so")


@needs_vllm
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM"])
def test_vllm_is_picked_for_architectures_that_it_has(name: str) -> None:
    assert pick_backend(Wanted("auto"), (name,)).name == pick_backend(Wanted("vllm"), (name,)).name == "vllm"


@needs_vllm
@pytest.mark.parametrize("names", [("T5ForConditionalGeneration",), ("BartForConditionalGeneration",), ("NoSuch",), ()])
def test_transformers_is_picked_for_what_vllm_lacks(names: tuple[str, ...]) -> None:
    pick = pick_backend(Wanted("auto"), names)
    assert pick.name == "transformers"
    assert (names[0] if names else "names no architecture") in pick.reason
    with pytest.raises(ModelLoadError, match="option backend: vLLM cannot serve this model"):
        pick_backend(Wanted("vllm"), names)


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
    assert _workers(tmp_path, engine={"data_parallel_size": 2}) == 2
    assert _workers(tmp_path, engine={"tensor_parallel_size": "2"}) == 2
    assert _workers(tmp_path, engine={"max_running": 2}) == 0
    assert _workers(tmp_path, threads=2) == 1
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
@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, ("auto", "backend")),
        ({"engine": {"max_model_len": 5, "chat_template": "x"}, "device": "auto"}, ("auto", "backend")),
        ({"engine": {"max_running": 5, "max_model_len": 5}}, ("transformers", "engine.max_running")),
        ({"threads": 2}, ("auto", "backend")),
        ({"device": "cuda"}, ("auto", "backend")),
        ({"threads": 2, "engine": {"enforce_eager": True}}, ("vllm", "engine.enforce_eager")),
        ({"engine": {"tensor_parallel_size": 2}}, ("vllm", "engine.tensor_parallel_size")),
        ({"backend": "transformers", "engine": {"max_running": 5}}, ("transformers", "backend")),
    ],
)
def test_options_of_one_backend_choose_it(options: dict[str, Any], wanted: tuple[str, str]) -> None:
    checked = check_options(FRAMEWORK, options)
    assert isinstance(checked, HuggingFaceOptions)
    assert (checked.wanted.name, checked.wanted.option) == wanted


@needs_vllm
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": {"max_runing": 5}}, 'no backend has the engine argument "max_runing": did you mean "max_running"?'),
        ({"engine": {"max_modellen": 5}}, 'did you mean "max_model_len"?'),
        ({"engine": {"max_running": 5, "enforce_eager": True}}, "expected those of one backend"),
        ({"backend": "vllm", "threads": 2}, "threads: vLLM has no such option, it goes by resources"),
        ({"backend": "vllm", "device": "cpu"}, "device: vLLM has no such option, it goes by resources"),
        ({"backend": "vllm", "engine": {"max_model_length": 5}}, 'vLLM has no engine argument "max_model_length"'),
        (
            {"backend": "transformers", "engine": {"max_model_length": 5}},
            'the transformers backend has no "max_model_l',
        ),
        ({"backend": "transformers", "engine": {"max_running": 0}}, "engine.max_running: Input should be greater"),
    ],
)
def test_an_engines_arguments_are_checked_before_deployment(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match="options: ") as caught:
        check_options(FRAMEWORK, options)
    assert said in str(caught.value)


@needs_vllm
def test_options_that_vllm_does_not_use_are_named() -> None:
    checked = check_options(FRAMEWORK, {"device": "cuda", "threads": 2})
    assert isinstance(checked, HuggingFaceOptions)
    pick = pick_backend(checked.wanted, ("LlamaForCausalLM",))
    assert (pick.name, pick.reason.partition("; ")[2]) == ("vllm", "not used: device, threads, as it goes by resources")


@needs_vllm
def test_arguments_of_vllm_for_what_it_cannot_serve_are_refused() -> None:
    with pytest.raises(ModelLoadError, match=r"option engine\.x: vLLM cannot serve this model: .*NoSuch"):
        pick_backend(Wanted("vllm", "engine.x"), ("NoSuch",))
