# SPDX-License-Identifier: Apache-2.0
"""Embedding models and cross-encoders in the OpenAI protocol, with what vLLM, Cohere and Jina added to it.

Source: OpenAI API reference, "Embeddings"; vLLM ``entrypoints/pooling/scoring/protocol.py`` and
``entrypoints/serve/tokenize/protocol.py``.
"""

from __future__ import annotations

import base64
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias

import numpy as np
import orjson
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from modelyard.openai import OpenAIModel, OpenAIRequest, Part
from modelyard.tensor import Array
from modelyard_deployments._huggingface_classification import TextClassification, take_logits
from modelyard_deployments._huggingface_embeddings import FeatureExtraction, Tokens, cut
from modelyard_deployments._huggingface_encoder import TextEncoder
from modelyard_deployments._huggingface_folder import Folder, read_json
from modelyard_deployments._huggingface_gather import Gatherer
from modelyard_deployments._huggingface_load import Loaded
from modelyard_deployments._huggingface_options import HuggingFaceOptions
from modelyard_deployments._huggingface_scores import Applied, apply
from modelyard_deployments._openai_protocol import Body, Refusal, decode, encode, refusing, to_id

_AT_MOST: Final = 2048
"""Inputs of one call. Source: OpenAI API reference, "Create embeddings"."""
_PASSAGES: Final = ("document", "passage", "corpus")
"""What sentence-transformers calls the prompt of a text that is looked for."""

Text: TypeAlias = Annotated[str, Field(min_length=1)]
Token: TypeAlias = Annotated[int, Field(ge=0)]
Limit: TypeAlias = Annotated[int, Field(ge=-1)]


class EmbeddingsBody(Body):
    """``/v1/embeddings``."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=_AT_MOST)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1, max_length=_AT_MOST)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
    truncate_prompt_tokens: Limit | None = None
    prompt_name: str | None = None


class Document(BaseModel):
    """A document that is an object."""

    model_config = ConfigDict(extra="ignore", strict=True)

    text: str


class RerankBody(Body):
    """``/v1/rerank``."""

    query: Text
    documents: Annotated[list[str | Document], Field(min_length=1, max_length=_AT_MOST)]
    top_n: Annotated[int, Field(ge=0)] | None = None
    return_documents: bool = True
    user: str | None = None
    truncate_prompt_tokens: Limit | None = None


class ScoreBody(Body):
    """``/v1/score``."""

    text_1: str | Annotated[list[str], Field(min_length=1, max_length=_AT_MOST)] = Field(
        validation_alias=AliasChoices("text_1", "queries", "data_1")
    )
    text_2: str | Annotated[list[str], Field(min_length=1, max_length=_AT_MOST)] = Field(
        validation_alias=AliasChoices("text_2", "documents", "data_2")
    )
    user: str | None = None
    truncate_prompt_tokens: Limit | None = None


class TokenizeBody(Body):
    """``/tokenize``."""

    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = False


class DetokenizeBody(Body):
    """``/detokenize``."""

    tokens: list[Token]


Pairs: TypeAlias = Sequence[tuple[str, str]]


class TextModel(OpenAIModel):
    """What embedding models and cross-encoders have in common: they compare texts, and tell their tokens."""

    openai_routes: tuple[str, ...] = ("rerank", "score", "tokenize", "detokenize")

    def answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        """The whole reply in one part."""
        return refusing(self._answer(request))

    async def _answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        yield encode(await self.handlers[request.route](request))

    @property
    def handlers(self) -> Mapping[str, Callable[[OpenAIRequest], Awaitable[dict[str, Any]]]]:
        """What answers each route."""
        return {
            "rerank": self._rerank,
            "score": self._score,
            "tokenize": self._tokenize,
            "detokenize": self._detokenize,
        }

    @property
    @abstractmethod
    def text_encoder(self) -> TextEncoder:
        """Whose tokens these are."""

    @abstractmethod
    async def compare(self, pairs: Pairs, limit: int | None) -> tuple[list[float], int]:
        """How well the second text of each pair fits the first, and the number of tokens.

        Args:
            pairs: One or more.
            limit: Tokens to cut to; None does as the option ``truncation`` says.
        """

    @abstractmethod
    async def run_apart(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function where the model computes."""

    async def _rerank(self, request: OpenAIRequest) -> dict[str, Any]:
        body = decode(request, RerankBody)
        documents = [one if isinstance(one, str) else one.text for one in body.documents]
        limit = self.find_limit(body.truncate_prompt_tokens)
        scores, tokens = await self.compare([(body.query, document) for document in documents], limit)
        ranked = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
        results = [
            {"index": index, "relevance_score": scores[index]}
            | ({"document": {"text": documents[index]}} if body.return_documents else {})
            for index in ranked
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"id": to_id("rerank", request), "model": body.model, "usage": usage, "results": results}

    async def _score(self, request: OpenAIRequest) -> dict[str, Any]:
        body = decode(request, ScoreBody)
        scores, tokens = await self.compare(to_pairs(body), self.find_limit(body.truncate_prompt_tokens))
        return {
            "id": to_id("score", request),
            "object": "list",
            "created": int(time.time()),
            "model": body.model,
            "data": [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    async def _tokenize(self, request: OpenAIRequest) -> dict[str, Any]:
        body = decode(request, TokenizeBody)
        tokenizer = self.text_encoder.tokenizer

        def read() -> list[int]:
            with self.text_encoder.lock:
                ids = tokenizer(body.prompt, add_special_tokens=body.add_special_tokens, truncation=False)["input_ids"]
                return list(ids)

        tokens = await self.run_apart(read)
        return {
            "count": len(tokens),
            "max_model_len": self.text_encoder.max_length,
            "tokens": tokens,
            "token_strs": tokenizer.convert_ids_to_tokens(tokens) if body.return_token_strs else None,
        }

    async def _detokenize(self, request: OpenAIRequest) -> dict[str, Any]:
        body = decode(request, DetokenizeBody)
        self.check_tokens(body.tokens, "tokens")
        return {"prompt": await self.run_apart(self.text_encoder.tokenizer.decode, body.tokens)}

    def find_limit(self, wanted: int | None) -> int | None:
        """Tokens to cut to, of ``truncate_prompt_tokens``: -1 is as many as the model takes.

        Raises:
            Refusal: The model does not take so many.
        """
        most = self.text_encoder.max_length
        if wanted is None:
            return None
        if wanted == 0 or (most is not None and wanted > most):
            raise Refusal(f"truncate_prompt_tokens: expected -1 or 1 to {most}, got {wanted}", "truncate_prompt_tokens")
        return (most or 0) if wanted == -1 else wanted

    def check_tokens(self, tokens: Sequence[int], param: str) -> None:
        """Refuses numbers that stand for no token.

        Raises:
            Refusal: There is one.
        """
        count = len(self.text_encoder.tokenizer)
        if tokens and max(tokens) >= count:
            raise Refusal(f"{param}: expected tokens below {count}, got {max(tokens)}", param)


def to_pairs(body: ScoreBody) -> Pairs:
    """One text with each of several, or each with its own.

    Raises:
        Refusal: There are several of both, and not as many of one as of the other.
    """
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise Refusal(f"text_2: expected {len(first)} texts, one for each of text_1, got {len(second)}", "text_2")
    return list(zip(first, second, strict=True))


class EmbeddingModel(FeatureExtraction, TextModel):
    """An embedding model; texts are compared by the cosine of their embeddings."""

    openai_routes = ("embeddings", *TextModel.openai_routes)

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        super().__init__(loaded, options, task)
        self._gatherer: Gatherer[tuple[Tokens, int], Array] = Gatherer(self._embed)

    @property
    def text_encoder(self) -> TextEncoder:
        """The embedder's."""
        return self.embedder.encoder

    @property
    def handlers(self) -> Mapping[str, Callable[[OpenAIRequest], Awaitable[dict[str, Any]]]]:
        """As of all text models, and embeddings."""
        return {**super().handlers, "embeddings": self._answer_embeddings}

    def close(self) -> None:
        """Ends the thread that computes."""
        self._gatherer.close()

    async def run_apart(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls it in the thread that computes."""
        return await self._gatherer.call(function, *args)

    async def compare(self, pairs: Pairs, limit: int | None) -> tuple[list[float], int]:
        """Cosines; each text is embedded once."""
        passage = next((name for name in _PASSAGES if name in self.embedder.recipe.prompts), None)
        query = "query" if "query" in self.embedder.recipe.prompts else None
        first, second = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
        left, left_tokens = await self._embed_texts(first, query, limit)
        right, right_tokens = await self._embed_texts(second, passage, limit)
        places = {text: place for place, text in enumerate(first)}, {text: place for place, text in enumerate(second)}
        scores = [float(np.dot(left[places[0][one]], right[places[1][two]])) for one, two in pairs]
        return scores, left_tokens + right_tokens

    async def _answer_embeddings(self, request: OpenAIRequest) -> dict[str, Any]:
        body = decode(request, EmbeddingsBody)
        dimensions = self._check_dimensions(body.dimensions)
        # Longer ones are refused unless the client has them cut: so it is with OpenAI.
        rows = await self._to_rows(body, self.find_limit(body.truncate_prompt_tokens) or 0)
        skipped = 0 if _is_tokens(body.input) else self.embedder.count_skipped(body.prompt_name)
        embedded = np.stack(await self._gatherer.run([(row, skipped) for row in rows]))
        if dimensions is not None:
            embedded = cut(embedded, dimensions)
        tokens = sum(len(row["input_ids"]) for row in rows)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": to_form(one, body.encoding_format)}
                for index, one in enumerate(embedded)
            ],
            "model": body.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _check_dimensions(self, wanted: int | None) -> int | None:
        """How many of the first dimensions to keep; None for all.

        Raises:
            Refusal: The model's embeddings cannot be cut, or not to so many.
        """
        embedder = self.embedder
        if wanted is None or wanted == embedder.dimensions:
            return None
        if not embedder.is_matryoshka:
            raise Refusal(
                f"dimensions: the embeddings have {embedder.dimensions} and cannot be cut, got {wanted}", "dimensions"
            )
        if wanted > embedder.dimensions or (embedder.allowed_dimensions and wanted not in embedder.allowed_dimensions):
            known = ", ".join(map(str, embedder.allowed_dimensions)) or f"1 to {embedder.dimensions}"
            raise Refusal(f"dimensions: expected {known}, got {wanted}", "dimensions")
        return wanted

    async def _to_rows(self, body: EmbeddingsBody, limit: int) -> list[Tokens]:
        if not _is_tokens(body.input):
            texts = [body.input] if isinstance(body.input, str) else body.input
            rows: list[Tokens] = await self.run_apart(self._tokenize_texts, texts, body.prompt_name, limit)
            return rows
        given: Any = body.input
        lists: list[list[int]] = given if isinstance(given[0], list) else [given]
        for tokens in lists:
            self.check_tokens(tokens, "input")
        lists = [tokens[: limit or None] for tokens in lists]
        self.text_encoder.check_lengths("input", [len(tokens) for tokens in lists])
        return [{"input_ids": tokens, "attention_mask": [1] * len(tokens)} for tokens in lists]

    async def _embed_texts(self, texts: list[str], prompt: str | None, limit: int | None) -> tuple[Array, int]:
        """Embeddings of the length 1, and the number of tokens."""
        rows: list[Tokens] = await self.run_apart(self._tokenize_texts, texts, prompt, limit)
        skipped = self.embedder.count_skipped(prompt)
        embedded = np.stack(await self._gatherer.run([(row, skipped) for row in rows]))
        return cut(embedded, embedded.shape[1]), sum(len(row["input_ids"]) for row in rows)

    def _tokenize_texts(self, texts: Sequence[str], prompt: str | None, limit: int | None) -> list[Tokens]:
        return self.embedder.tokenize("input", texts, prompt, limit=limit)

    def _embed(self, rows: Sequence[tuple[Tokens, int]]) -> list[Array]:
        return list(self.embedder.embed([tokens for tokens, _ in rows], [skipped for _, skipped in rows]))


class CrossEncoder(TextClassification, TextModel):
    """A classifier of one class: the score of a pair of texts."""

    def __init__(self, loaded: Loaded, options: HuggingFaceOptions, task: str) -> None:
        super().__init__(loaded, options, task)
        chosen = options.function_to_apply
        self._function = chosen if chosen != "default" else find_activation(loaded.folder)
        self._gatherer: Gatherer[Tokens, float] = Gatherer(self._compute)

    @property
    def text_encoder(self) -> TextEncoder:
        """The classifier's."""
        return self._encoder

    def close(self) -> None:
        """Ends the thread that computes."""
        self._gatherer.close()

    async def run_apart(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls it in the thread that computes."""
        return await self._gatherer.call(function, *args)

    async def compare(self, pairs: Pairs, limit: int | None) -> tuple[list[float], int]:
        """The model's own score."""
        rows: list[Tokens] = await self.run_apart(self._tokenize_pairs, pairs, limit)
        return list(await self._gatherer.run(rows)), sum(len(row["input_ids"]) for row in rows)

    def _tokenize_pairs(self, pairs: Pairs, limit: int | None) -> list[Tokens]:
        first, second = [one for one, _ in pairs], [two for _, two in pairs]
        with self._encoder.lock:
            return list(self._encoder.to_rows(self._encoder.tokenize("documents", first, second, limit=limit)))

    def _compute(self, rows: Sequence[Tokens]) -> list[float]:
        with self._encoder.lock:
            logits = np.stack(self._encoder.run(rows, take_logits))
        scores: list[float] = apply(self._function, logits)[:, 0].tolist()
        return scores


def find_activation(folder: Folder) -> Applied:
    """What a cross-encoder of sentence-transformers puts behind its logit; the sigmoid unless it says otherwise.

    Source: sentence-transformers ``cross_encoder/model.py``, ``get_default_activation_fn``.
    """
    settings = folder.path / "config_sentence_transformers.json"
    said = (
        (read_json(settings).get("activation_fn") if settings.exists() else None)
        or folder.config.get("sentence_transformers", {}).get("activation_fn")
        or folder.config.get("sbert_ce_default_activation_function")
    )
    return "none" if str(said).endswith(".Identity") else "sigmoid"


def to_form(embedding: Array, form: Literal["float", "base64"]) -> Any:
    """Numbers, or base64 of them as little-endian FP32."""
    if form == "base64":
        return base64.b64encode(embedding.astype("<f4").tobytes()).decode()
    return orjson.Fragment(orjson.dumps(embedding, option=orjson.OPT_SERIALIZE_NUMPY))


def _is_tokens(given: Any) -> bool:
    return isinstance(given, list) and not isinstance(given[0], str)
