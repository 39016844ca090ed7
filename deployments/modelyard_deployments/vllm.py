# SPDX-License-Identifier: Apache-2.0
"""vLLM: large language models and embedding models in the Hugging Face layout, over the OpenAI protocol.

The engine is that of ``ray.serve.llm``, which places its workers on the GPUs of a replica's placement group; what it
answers is vLLM's own OpenAI server, called in the replica's process. As an ordinary model it completes text
(``text_input`` to ``text_output``), or gives ``embedding``, ``score`` or ``text`` where it embeds, compares or hears.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import Field, field_validator

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Framework, Options
from modelyard.openai import ROUTES, OpenAIModel, OpenAIRequest, Part
from modelyard.signature import Signature
from modelyard.tensor import Parameters, Tensors
from modelyard_deployments import _asgi
from modelyard_deployments._openai_protocol import refusing
from modelyard_deployments._text_generation import TEXT_SIGNATURE, generate_text, to_exception
from modelyard_deployments._vllm_adapters import Adapters, Shelf, open_shelf
from modelyard_deployments._vllm_arguments import TRANSFER, count_workers, find_code_folders, find_problems, names_code
from modelyard_deployments._vllm_engine import Engine, prepare_environment
from modelyard_deployments._vllm_errors import say_errors
from modelyard_deployments._vllm_install import INSTALL
from modelyard_deployments._vllm_prefill import NIXL, Prefill
from modelyard_deployments._vllm_requests import Requests
from modelyard_deployments._vllm_tensors import Predictor, make_predictor

_CONFIG: Final = "config.json"


class VLLMOptions(Options):
    """Options of a model on vLLM."""

    engine: dict[str, Any] = Field(
        default_factory=dict,
        description="vLLM's engine arguments and those of its OpenAI server, as vLLM names them: `max_model_len`, "
        "`tensor_parallel_size`, `tool_call_parser` …",
    )
    adapters: str | None = Field(
        default=None,
        description="A folder with a folder for each LoRA adapter, or its URL in a store (`s3://bucket/adapters`). "
        "Their names are model names. They are added and removed with their folders, while the model runs.",
    )

    prefill: str | None = Field(
        default=None,
        min_length=1,
        description="Another vLLM model on the platform, of the same weights: its replicas read the prompts, and this "
        "model's generate. Both exchange keys and values by `engine.kv_transfer_config`, which is NIXL here where "
        "nothing else is given, and has to be given there.",
    )

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, value: dict[str, Any]) -> dict[str, Any]:
        if problems := find_problems(value):
            raise ValueError("; ".join(problems))
        return value


class VLLMModel(OpenAIModel):
    """A model on an engine.

    Args:
        path: Its folder.
        options: How it runs.
        shelf: Where its adapters are; None where it has none.
        reason: Why this backend runs it; empty where the user has said so.
    """

    concurrency = 1024

    def __init__(self, path: Path, options: VLLMOptions, shelf: Shelf | None = None, reason: str = "") -> None:
        engine = options.engine
        if options.prefill is not None:
            engine = engine | {TRANSFER: {**NIXL, **(engine.get(TRANSFER) or {})}}
        self._engine = Engine(path, engine, has_adapters=options.adapters is not None)
        self._keeps_cache = engine.get(TRANSFER) is not None and options.prefill is None
        self._prefill: Prefill | None = None
        self._prefill_name = options.prefill
        self._shelf = shelf
        self._reason = reason
        self._adapters: Adapters | None = None
        self._predictor: Predictor | None = None
        self.signature_may_change = self._shelf is not None

    async def start(self) -> None:
        """Starts the engine: loads the weights, measures the memory, and answers one call.

        Raises:
            ModelLoadError: It does not start.
        """
        if self._prefill_name == self.name:
            raise ModelLoadError(f'options.prefill: expected another model, got "{self.name}" itself')
        await self._engine.start(self.name, self.meter, keeps_cache=self._keeps_cache)
        paths = self._engine.paths
        self._requests = Requests(self._engine.app.routes)
        self.openai_routes = tuple(route for route in ROUTES if _path(route, paths))
        self._predictor = await make_predictor(self.name, self.openai_routes, self._ask)
        if "completions" in self.openai_routes:
            await self._warm_up()
        elif self._predictor is None:
            raise ModelLoadError(
                "vLLM: the model neither generates nor embeds, compares or hears: framework: huggingface classifies"
            )
        if self._shelf is not None:
            self._adapters = Adapters(self._shelf, self._engine.models)
            await self._adapters.start()
        if self._prefill_name is not None:  # its own first prompt it has read itself: the other may not be there yet
            self._prefill = Prefill(self._prefill_name, self.name, self._requests)

    async def _warm_up(self) -> None:
        """One answer, for what vLLM makes with its first request; a model that cannot answer never gets ready."""
        body = orjson.dumps({"model": self.name, "prompt": "a", "max_tokens": 2})
        parts = [part async for part in self.answer(OpenAIRequest("completions", body))]
        if parts[0].status != 200:
            raise ModelLoadError(f"vLLM: {parts[0].data.decode(errors='replace')}")

    @property
    def signature(self) -> Signature:
        """Text to text, or what else it predicts."""
        return TEXT_SIGNATURE if self._predictor is None else self._predictor.signature

    @property
    def adapters(self) -> tuple[str, ...]:
        """Those that are loaded now."""
        return self._adapters.names if self._adapters is not None else ()

    @property
    def properties(self) -> Mapping[str, str]:
        """That vLLM runs it, and why."""
        return {"backend": "vllm", **({"backend_reason": self._reason} if self._reason else {})}

    def answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        """What vLLM's own server answers."""
        path = _path(request.route, self._engine.paths)
        if path is None:
            raise InvalidRequest(f'model "{self.name}" does not answer /v1/{request.route}')
        return refusing(self._answer(request, path), request.route)

    async def _answer(self, request: OpenAIRequest, path: str) -> AsyncGenerator[Part]:
        self._requests.check(request)
        if self._prefill is not None:
            request = await self._prefill.read(request)
        headers = ((b"x-request-id", request.id.encode("latin-1", "replace")),) if request.id else ()
        asked = _asgi.call(self._engine.app, path, request.body, request.content_type, headers)
        async with contextlib.aclosing(say_errors(request.route, asked)) as parts:
            async for part in parts:
                yield part

    def stream(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> AsyncGenerator[Tensors]:
        """Completes a text."""
        return generate_text(self, inputs, outputs, parameters)

    async def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Vectors, scores or texts, one for each row.

        Raises:
            InvalidRequest: A text is no UTF-8 or too long, or a recording is none.
        """
        if self._predictor is None:
            raise NotImplementedError  # its signature is decoupled
        return await self._predictor.predict(inputs)

    async def _ask(self, request: OpenAIRequest) -> Any:
        """The document that answers a call of its own."""
        parts = [part async for part in self.answer(request)]
        document = orjson.loads(b"".join(part.data for part in parts))
        if parts[0].status != 200:
            raise to_exception(document["error"], parts[0].status)
        return document

    def check_health(self) -> None:
        """The engine's processes are there.

        Raises:
            RuntimeError: They are not.
        """
        self._engine.check_health()

    def close(self) -> None:
        """Ends the engine's processes."""
        if self._adapters is not None:
            self._adapters.stop()
        self._engine.close()


def _path(route: str, paths: frozenset[str]) -> str | None:
    """Where vLLM's server has a route; at the root, some of them."""
    return next((path for path in (f"/v1/{route}", f"/{route}") if path in paths), None)


class VLLMFramework(Framework):
    """Folders in the Hugging Face layout, on vLLM."""

    options = VLLMOptions
    requires = "vllm"
    install = INSTALL
    distribution = "vllm"

    def load(self, path: Path, options: VLLMOptions) -> VLLMModel:
        """Makes the model; its engine starts on the replica's event loop.

        Raises:
            ModelLoadError: It is no folder in the Hugging Face layout.
        """
        return load_vllm(path, options)

    def workers(self, path: Path, options: VLLMOptions) -> int:
        """The product of all that the engine is parallel in."""
        return count_workers(options.engine)

    def runs_code(self, options: Mapping[str, Any]) -> bool:
        """Where ``trust_remote_code`` is asked for, or an engine argument names code."""
        return names_code(options.get("engine"))

    def code_locations(self, uri: str, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The artifact, and what engine arguments name beside it."""
        found = super().code_locations(uri, options)
        return found and (*found, *find_code_folders(options.get("engine")))  # nothing, where none runs


def load_vllm(path: Path, options: VLLMOptions, reason: str = "") -> VLLMModel:
    """See :meth:`VLLMFramework.load`.

    Args:
        path: The model's folder, or its GGUF file.
        options: How it runs.
        reason: Why this backend runs it.

    Raises:
        ModelLoadError: It is no folder in the Hugging Face layout, or its adapters' is none.
        InvalidConfig: The store that its adapters are in can never be reached from here.
    """
    if path.is_dir() and not (path / _CONFIG).is_file():
        raise ModelLoadError(f"expected a folder with {_CONFIG}, as Hugging Face's libraries save models; got none")
    # Before the environment says that the hub is not to be asked, which its library reads once.
    is_alone = count_workers(options.engine) == 1  # else its workers may be on nodes that have only a volume in common
    shelf = None if options.adapters is None else open_shelf(options.adapters, copies=is_alone)
    prepare_environment()
    import vllm  # noqa: F401  # says at once, and not in the engine's own words, that it is not installed

    return VLLMModel(path, options, shelf, reason)


if __name__ == "__main__":
    from modelyard_deployments._vllm_install import main

    main()
