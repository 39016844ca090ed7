# SPDX-License-Identifier: Apache-2.0
"""A generative model of transformers: the OpenAI protocol's routes, and ``generate`` of v2."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.openai import OpenAIModel, OpenAIRequest, Part
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import Array, Parameters, Tensors
from modelyard_deployments._generation_answers import Piece, TextRules
from modelyard_deployments._generation_engine import Counts
from modelyard_deployments._generation_load import load_runtime
from modelyard_deployments._generation_runtime import Ask, Runtime
from modelyard_deployments._generation_sampling import Sampling
from modelyard_deployments._generation_settings import GenerationOptions
from modelyard_deployments._openai_chat import answer_chat
from modelyard_deployments._openai_completions import answer_completions
from modelyard_deployments._openai_protocol import Refusal, refusing
from modelyard_deployments._openai_responses import answer_responses
from modelyard_deployments._openai_tokens import answer_detokenize, answer_tokenize

_SIGNATURE: Final = Signature(
    inputs=(TensorSpec("text_input", "BYTES", (1,)),),
    outputs=(TensorSpec("text_output", "BYTES", (1,)),),
    on_request=(TensorSpec("finish_reason", "BYTES", (1,)),),
    batch_axis=False,
    decoupled=True,
    example={"text_input": "The capital of France is"},
)
_CHAT_ROUTES: Final = ("chat/completions", "responses")
_TEXT_ROUTES: Final = ("completions", "tokenize", "detokenize")


class _V2Parameters(BaseModel):
    """Parameters of ``generate``; all others are refused. Source: Triton's vLLM backend, for the names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stream: bool = False
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: int | None = None
    stop: str | None = None
    ignore_eos: bool = False
    exclude_input_in_output: bool = True


class GenerationModel(OpenAIModel):
    """A loaded generative model.

    Args:
        runtime: What generates.
        reason: Why this backend runs it.
    """

    concurrency = 4096

    def __init__(self, runtime: Runtime, reason: str = "") -> None:
        self._runtime = runtime
        self._reason = reason
        self.openai_routes = (*(_CHAT_ROUTES if runtime.prompts.has_template else ()), *_TEXT_ROUTES)

    @property
    def signature(self) -> Signature:
        """A text in, a text or its pieces out."""
        return _SIGNATURE

    @property
    def properties(self) -> Mapping[str, str]:
        """Which backend runs it, and why."""
        return {"backend": "transformers", **({"backend_reason": self._reason} if self._reason else {})}

    async def start(self) -> None:
        """Tells the engine where to count, and its name."""
        self._runtime.engine.meter, self._runtime.engine.name = self.meter, self.name

    @property
    def counts(self) -> Counts:
        """What it does and did."""
        return self._runtime.engine.counts

    def answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        """Answers one call of the OpenAI protocol."""
        runtime = self._runtime
        if request.route == "chat/completions":
            return refusing(answer_chat(runtime, request))
        if request.route == "completions":
            return refusing(answer_completions(runtime, request))
        if request.route == "responses":
            return refusing(answer_responses(runtime, request))
        if request.route == "tokenize":
            return refusing(answer_tokenize(runtime.tokenizer, runtime.prompts, request))
        return refusing(answer_detokenize(runtime.tokenizer, runtime.prompts, request))

    async def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """The whole answer.

        Raises:
            InvalidRequest: The text is not UTF-8 or too long, or a parameter is wrong.
        """
        text, finish = "", ""
        async with aclosing(self._pieces(inputs, parameters)) as pieces:
            async for piece in pieces:
                text, finish = text + piece.text, piece.finish or finish
        return _to_outputs(text, finish)

    async def stream(
        self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters
    ) -> AsyncGenerator[Tensors]:
        """The answer's pieces with ``stream: true``, else one answer that is the whole.

        Raises:
            InvalidRequest: As for ``predict``.
        """
        if not _to_parameters(parameters).stream:
            yield await self.predict(inputs, outputs, parameters)
            return
        async with aclosing(self._pieces(inputs, parameters)) as pieces:
            async for piece in pieces:
                if piece.text or piece.finish:
                    yield _to_outputs(piece.text, piece.finish or "")

    def check_health(self) -> None:
        """Raises where nothing will be generated any more."""
        self._runtime.engine.check_health()

    def close(self) -> None:
        """Ends what is being generated, and the engine."""
        self._runtime.engine.close()

    async def _pieces(self, inputs: Tensors, parameters: Parameters) -> AsyncGenerator[Piece]:
        asked = _to_parameters(parameters)
        text = _to_text(inputs["text_input"])
        prompts = self._runtime.prompts
        prompt = await prompts.from_text(text)
        try:
            room = prompts.check_length(prompt, asked.max_tokens, "text_input")
        except Refusal as exc:
            raise InvalidRequest(str(exc)) from exc
        max_tokens = asked.max_tokens or min(room, self._runtime.default_max_tokens)
        (answer,) = self._runtime.start(
            Ask(prompt, self._to_sampling(asked, max_tokens), TextRules((asked.stop,) if asked.stop else ()))
        )
        try:
            if not asked.exclude_input_in_output:
                yield Piece(text, ())
            async with aclosing(answer.pieces) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            answer.generation.cancel()

    def _to_sampling(self, asked: _V2Parameters, max_tokens: int) -> Sampling:
        members = asked.model_dump(
            exclude_none=True, exclude={"stream", "max_tokens", "stop", "exclude_input_in_output"}
        )
        members["min_tokens"] = min(asked.min_tokens, max_tokens)
        return Sampling(**{**self._runtime.defaults, **members, "max_tokens": max_tokens})


def load_generation(path: Path, options: GenerationOptions, reason: str = "") -> GenerationModel:
    """Loads a generative model and starts its engine.

    Args:
        path: A folder as ``save_pretrained`` writes it, a ``.gguf`` file, or a folder with a single one.
        options: The framework's.
        reason: Why this backend runs it, for people.

    Raises:
        ModelLoadError: It cannot be loaded, or an option does not fit it.
    """
    return GenerationModel(load_runtime(_find_file(path), options), reason)


def _find_file(path: Path) -> Path:
    if not path.is_dir() or (path / "config.json").exists():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelLoadError(f"expected one .gguf file, got {names}; choose one with the option model_file")
    return files[0] if files else path


def _to_parameters(parameters: Mapping[str, Any]) -> _V2Parameters:
    try:
        return _V2Parameters.model_validate(parameters)
    except ValidationError as exc:
        error = exc.errors()[0]
        name = ".".join(map(str, error["loc"]))
        raise InvalidRequest(f'parameter "{name}": {error["msg"]}') from exc


def _to_text(array: Array) -> str:
    try:
        text: str = array.reshape(-1)[0].decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f'input "text_input": expected UTF-8 text, got {exc.object[:20]!r}') from exc
    return text


def _to_outputs(text: str, finish: str) -> dict[str, Array]:
    return {"text_output": _one(text), "finish_reason": _one(finish)}


def _one(text: str) -> Array:
    array = np.empty(1, object)
    array[0] = text.encode()
    return array
