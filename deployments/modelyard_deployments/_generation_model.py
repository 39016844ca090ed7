# SPDX-License-Identifier: Apache-2.0
"""A generative model of transformers: the OpenAI protocol's routes, and ``generate`` of v2."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Final

from modelyard.errors import ModelLoadError
from modelyard.openai import OpenAIModel, OpenAIRequest, Part
from modelyard.signature import Signature
from modelyard.tensor import Parameters, Tensors
from modelyard_deployments._generation_engine import Counts
from modelyard_deployments._generation_load import load_runtime
from modelyard_deployments._generation_runtime import Runtime
from modelyard_deployments._generation_settings import GenerationOptions
from modelyard_deployments._openai_chat import answer_chat
from modelyard_deployments._openai_completions import answer_completions
from modelyard_deployments._openai_protocol import refusing
from modelyard_deployments._openai_responses import answer_responses
from modelyard_deployments._openai_tokens import answer_detokenize, answer_tokenize
from modelyard_deployments._text_generation import TEXT_SIGNATURE, generate_text

_CHAT_ROUTES: Final = ("chat/completions", "responses")
_TEXT_ROUTES: Final = ("completions", "tokenize", "detokenize")


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
        return TEXT_SIGNATURE

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
            return refusing(answer_responses(runtime, request), request.route)
        if request.route == "tokenize":
            return refusing(answer_tokenize(runtime.tokenizer, runtime.prompts, request))
        return refusing(answer_detokenize(runtime.tokenizer, runtime.prompts, request))

    async def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """The whole answer.

        Raises:
            InvalidRequest: The text is not UTF-8 or too long, or a parameter is wrong.
        """
        async with aclosing(generate_text(self, inputs, outputs, parameters, self._complete, False)) as answers:
            return await anext(answers)

    def stream(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> AsyncGenerator[Tensors]:
        """The answer's pieces with ``stream: true``, else one answer that is the whole.

        Raises:
            InvalidRequest: As for ``predict``.
        """
        return generate_text(self, inputs, outputs, parameters, self._complete)

    def _complete(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        runtime = self._runtime
        return refusing(answer_completions(runtime, request, runtime.default_max_tokens))

    def check_health(self) -> None:
        """Raises where nothing will be generated any more."""
        self._runtime.engine.check_health()

    def close(self) -> None:
        """Ends what is being generated, and the engine."""
        self._runtime.engine.close()


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
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelLoadError(f"expected one .gguf file, got {names}; choose one with the option model_file")
    return files[0] if files else path
